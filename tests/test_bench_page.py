"""The page of results says what the results say, losses first of all, and always the same."""

from __future__ import annotations

import argparse
import os
from typing import TYPE_CHECKING

import pytest

from ringloop.bench import files, page, page_runs, run
from ringloop.bench.cells import Cell
from ringloop.bench.micro import MICROS
from ringloop.bench.results import (
    Count,
    LateRound,
    MemoryRound,
    MicroRound,
    OpenRound,
    Results,
    Round,
)

if TYPE_CHECKING:
    from pathlib import Path

MACHINE = {
    "date": "2026-01-02T03:04:05+00:00",
    "kernel": "6.18.44-abc",
    "cpu": "a processor",
    "cores": 2,
    "virtual": True,
    "python": "CPython 3.13.0",
    "versions": {"uvloop": "0.21.0", "rloop": "0.2.1"},
}
CPU_US = {
    "protocol:64x1024": {"ringloop-uring": 4.0, "ringloop-epoll": 4.4, "uvloop": 5.0, "c-uring": 3},
    "protocol:1x1024": {"ringloop-uring": 33.0, "ringloop-epoll": 30, "uvloop": 30.0, "rloop": 31},
}
LATENCY_US = {"p50": 50.0, "p99": 400.0, "p999": 3000.0, "max": 5000.0}


@pytest.fixture
def results() -> Results:
    found = Results(MACHINE, {"rounds": 3}, {"Redis": "no Redis at 127.0.0.1"})
    for cell, peers in CPU_US.items():
        for peer, cpu_us in peers.items():
            for number in range(3):
                noise = 1 + (number - 1) / 1000 if peer == "ringloop-epoll" else 1
                cpu_s = cpu_us * noise * 1000 / 1e6
                found.closed.append(Round(cell, peer, number, 1000, 1.0, cpu_s, 0.1, LATENCY_US))
    found.closed.append(Round("protocol:1x1024", "asyncio", 0, error="its server ended"))
    for peer in ("ringloop-uring", "uvloop"):
        rates = dict.fromkeys(MICROS, 1e6) | {"sleep(0)": 3e6 if peer == "uvloop" else 2e6}
        found.micro += [MicroRound(peer, number, rates) for number in range(3)]
        found.open += [
            OpenRound("protocol:64x1024", peer, 0, 500, common, 500, 1.0, 0.1, LATENCY_US)
            for common in (False, True)
        ]
        found.memory += [
            MemoryRound("TCP", peer, 0, 10000, 20 << 20, 1024.0),
            MemoryRound("TLS", peer, 0, 9000, 21 << 20, 20480.0),
        ]
        found.counts.append(Count("protocol:64x1024", peer, 2.02, {"read": 1.0}, 4384.0))
    found.files = {"lines": {"sync": [100.0, 100, 100], "ringloop-uring": [50.0, 60, 70]}}
    return found


def line(text: str, beginning: str) -> str:
    (found,) = (line for line in text.splitlines() if line.startswith(beginning))
    return found


def test_the_machine_is_told(results: Results) -> None:
    assert "2026-01-02 on a 2-core virtual machine, Linux 6.18, Python 3.13," in page.text(results)
    assert "rloop 0.2.1, in 3 rounds of 1 s." in page.text(results)


def test_other_programs_on_the_machine_are_told(results: Results) -> None:
    assert "Other programs" not in page.text(results)
    results.machine = MACHINE | {"load_average": 3.04}
    assert "(load average up to 3.0 on 2 cores)" in page.text(results)


def test_wins_draws_and_losses_are_counted_and_losses_are_named(results: Results) -> None:
    text = page.text(results)
    assert "in 1 of 2 cells, as much in 0, more in 1." in line(text, "- **ringloop-uring** takes")
    losses = line(text, "- It **loses** here")
    assert "ringloop-uring, protocol: 1 x 1 KiB (1.10 of uvloop, 1.06 of rloop)" in losses
    assert "ringloop-uring, rate of sleep(0) (0.67 of uvloop)" in losses
    assert "64 x 1 KiB" not in losses


def test_too_few_rounds_are_no_victory(results: Results) -> None:
    results.closed = [r for r in results.closed if r.round == 0]
    results.micro = []
    text = page.text(results)
    assert "- **ringloop-uring** was not measured in rounds enough to say." in text
    assert "loses" not in text
    assert "in 0 of" not in text


def test_a_cell_in_which_ringloop_failed_is_no_victory(results: Results) -> None:
    results.closed = [r for r in results.closed if r.cell == "protocol:64x1024"]
    results.closed.append(Round("protocol:1x1024", "ringloop-uring", 0, error="wrong bytes"))
    results.micro = []
    text = page.text(results)
    assert line(text, "- It **failed**") == (
        "- It **failed** here: ringloop-uring, protocol: 1 x 1 KiB."
    )
    assert "loses to no other" not in text


def test_ratios_come_with_their_word(results: Results) -> None:
    text = page.text(results)
    assert "| 0.80 (0.80-0.80) less |" in text
    assert "| 1.10 (1.10-1.10) **MORE** |" in text
    assert "| 1.00 (1.00-1.00) even |" in text


def test_failures_and_absences_are_listed(results: Results) -> None:
    text = page.text(results)
    assert "- asyncio, protocol:1x1024: its server ended" in text
    assert "- Redis: no Redis at 127.0.0.1" in text


def test_everything_measured_is_on_the_page(results: Results) -> None:
    text = page.text(results)
    assert "| sleep(0) | 2,000 | 3,000 |" in text
    assert "| uvloop | 1,000 | 500 | 50 | 400 | 3,000 | 50 | 400 | 3,000 |" in text
    assert "| uvloop | 20.0 | 1.0 (of 10,000) | 20.0 (of 9,000) |" in text
    assert "| protocol: 64 x 1 KiB | uvloop | 2.02 | 4,384 | read 1.00 |" in text
    assert "| lines of a text file | ringloop-uring | 60 | 0.60 of sync |" in text


def test_lateness_by_row_is_on_the_page_where_it_was_measured(results: Results) -> None:
    heading = "How late the ticks were that fell due while a row ran, in ms"
    assert heading not in page.text(results)
    results.late = [LateRound("lines", "ringloop-uring", n, 20, 0.4 + n, 0.5 + n) for n in range(3)]
    assert line(page.text(results), heading)
    assert "| lines of a text file | 1.4 (2.5) of 20 |" in page.text(results)


def test_lateness_has_a_digit_below_a_millisecond(results: Results) -> None:
    results.files["late"] = {"ringloop-uring": [1.42]}
    assert "runs: ms, p99.9 | ringloop-uring | 1.4 | - |" in page.text(results)


def test_where_the_files_were_is_on_the_page_where_it_is_known(results: Results) -> None:
    assert "The files were on" not in page.text(results)
    results.file_system = "ext4"
    assert "O_DIRECT. The files were on ext4.\n" in page.text(results)
    results.file_system = "tmpfs"
    assert "The files were on tmpfs: there is no disk" in page.text(results)


def test_nothing_measured_is_no_error() -> None:
    assert page.text(Results(MACHINE, {})).startswith("# Results")


def test_the_page_measures_what_can_be_measured() -> None:
    named = [text for run in page_runs.RUNS for text in run["cell"]]
    words = {"micro", "memory", "files"}
    assert words < set(named)
    assert all(Cell.parse(text) for text in named if text not in words)
    assert set(page_runs.ORDER) < set(named)


def arguments(folder: Path) -> argparse.Namespace:
    return argparse.Namespace(page=folder, files=[], rounds=None)


@pytest.mark.parametrize("error", [RuntimeError("no aiofiles"), KeyboardInterrupt()])
def test_a_run_that_fails_takes_nothing_from_the_others(
    results: Results,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: BaseException,
) -> None:
    def measure(args: argparse.Namespace) -> int:
        results.save(args.output)
        return 0

    def fail(args: argparse.Namespace) -> int:
        raise error

    written: list[Results] = []
    monkeypatch.setattr(run, "benchmark", measure)
    monkeypatch.setattr(files, "benchmark", fail)
    monkeypatch.setattr(page, "write", lambda results, folder: written.append(results))
    interrupted = isinstance(error, KeyboardInterrupt)
    assert page_runs.make(arguments(tmp_path)) == (130 if interrupted else 1)
    assert written[0].closed
    assert interrupted or "files: no aiofiles" in capsys.readouterr().err


def test_a_folder_that_is_none_is_noticed_before_measuring(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(page_runs, "_measure", lambda *args: pytest.fail("it measured"))
    assert page_runs.make(arguments(tmp_path / "file")) == 2
    assert "file" in capsys.readouterr().err


@pytest.mark.skipif(
    "libasan" in os.environ.get("LD_PRELOAD", ""),
    reason="matplotlib is not for us to run under sanitizers",
)
def test_the_same_results_make_the_same_files(results: Results, tmp_path: Path) -> None:
    for name in ("one", "two"):
        page.write(results, tmp_path / name)
    page.write(Results.load(tmp_path / "one" / "results.json"), tmp_path / "again")
    names = {path.name for path in (tmp_path / "one").iterdir()}
    pictures = {f"results-{name}.svg" for name in ("cpu", "rates", "latency", "memory")}
    assert names == pictures | {"results.md", "results.json"}
    for name in names:
        content = (tmp_path / "one" / name).read_bytes()
        assert content == (tmp_path / "two" / name).read_bytes()
        assert content == (tmp_path / "again" / name).read_bytes()
    text = (tmp_path / "one" / "results.md").read_text()
    assert all(f"({picture})" in text for picture in pictures)
    drawn = (tmp_path / "one" / "results-cpu.svg").read_text()
    assert "protocol: 64 x 1 KiB" in drawn  # text, not outlines of it
