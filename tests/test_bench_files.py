"""The benchmark of files: lateness by row, where the files are, and no O_DIRECT where it is not."""

from __future__ import annotations

import argparse
import asyncio
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from ringloop.bench import file_peers, file_words, files, machine
from ringloop.bench.file_peers import LATE, ROWS, Data
from ringloop.bench.results import LateRound, Results

if TYPE_CHECKING:
    from collections.abc import Iterator

NO_O_DIRECT = "/proc/self/mountinfo"
FIGURES = {"ticks": 10, "p999_ms": 1.5, "max_ms": 2.5}


class DataWithoutDirect(Data):
    def __init__(self) -> None:
        self.big = NO_O_DIRECT


def test_a_tick_counts_for_the_row_that_ran_when_it_fell_due() -> None:
    turns = [(0.0, "small"), (1.0, "lines"), (2.0, "small"), (3.0, "")]
    ticks = [(0.5, 0.01), (0.9, 1.5), (1.0, 0.02), (2.9, 0.03), (3.1, 0.04)]
    assert file_peers.late_by_row(ticks, turns) == {
        "small": [0.01, 1.5, 0.03],  # 1.5 late: it came in the turn after the next
        "lines": [0.02],
        "": [0.04],
    }


@pytest.mark.parametrize(("ticks", "p999_ms"), [(1000, 999.0), (2000, 1998.0)])
def test_the_latest_tick_is_the_p999_of_up_to_a_thousand(ticks: int, p999_ms: float) -> None:
    late_s = [i / 1000 for i in reversed(range(ticks))]
    figures = file_peers.in_figures(late_s)
    assert figures == {
        "ticks": ticks,
        "p999_ms": pytest.approx(p999_ms),
        "max_ms": pytest.approx(ticks - 1),
    }


def test_a_row_that_stalls_the_loop_is_told_from_one_that_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def work(row: str, data: Data) -> int | None:
        await asyncio.sleep(0.05)  # the ticks of the row before are over
        if row == "lines":
            time.sleep(1)  # and what fell due comes when the next row runs
        return 1 if row in ("lines", "small") else None

    monkeypatch.setattr(file_peers, "LATE_FOR_S", 0.2)
    late = asyncio.run(file_peers.lateness(work, DataWithoutDirect()))
    assert late.keys() == {"small", "lines", LATE}  # and no row that is not this peer's
    assert late["lines"]["max_ms"] >= 900
    assert late["small"]["max_ms"] < late["lines"]["max_ms"]
    assert late[LATE]["max_ms"] == late["lines"]["max_ms"]
    assert late[LATE]["ticks"] >= late["lines"]["ticks"] + late["small"]["ticks"]


def test_lateness_is_measured_without_the_row_that_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    rows = []

    async def work(row: str, data: Data) -> int | None:
        rows.append(row)
        await asyncio.sleep(0.02)
        return 1

    monkeypatch.setattr(file_peers, "LATE_FOR_S", 0.01)
    asyncio.run(file_peers.lateness(work, DataWithoutDirect()))
    assert rows == [row for row in ROWS if row not in ("direct", LATE)]


def test_whether_o_direct_is_refused_is_tried(tmp_path: Path) -> None:
    assert file_peers.why_not_direct(NO_O_DIRECT) == "Invalid argument"
    path = tmp_path / "big"
    path.write_bytes(bytes(file_peers.BLOCK))
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECT))
    except OSError:
        pytest.skip("the file system of the temporary folder refuses O_DIRECT")
    assert file_peers.why_not_direct(str(path)) is None


def test_the_file_system_is_the_mount_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    assert machine.file_system(Path("/proc/self")) == "proc"

    def no_proc(path: Path) -> str:
        raise FileNotFoundError(path)

    monkeypatch.setattr(Path, "read_text", no_proc)
    assert machine.file_system(Path("/proc/self")) == ""


@pytest.mark.parametrize(("name", "in_memory"), [("ext4", False), ("tmpfs", True), ("ramfs", True)])
def test_files_without_a_disk_are_told(name: str, in_memory: bool) -> None:
    assert file_words.place(name).startswith(f"The files were on {name}")
    assert ("no disk" in file_words.place(name)) is in_memory


def test_lateness_by_row_is_the_median_of_the_rounds() -> None:
    results = Results({}, {})
    for number, p999_ms in enumerate([1.0, 9.0, 2.0]):
        results.late += [
            LateRound("lines", "aiofiles", number, 100 + number, p999_ms, p999_ms + 1),
            LateRound("small", "ringloop-uring", number, 8, 0.5, 0.5),
        ]
    assert file_words.late_by_row(results) == (
        ["aiofiles", "ringloop-uring"],
        {"small": ["-", "0.5 (0.5) of 8"], "lines": ["2.0 (10.0) of 101", "-"]},
    )


@pytest.fixture
def measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Iterator[tuple[Results, str]]:
    """What a run saves and prints on a tmpfs that refuses O_DIRECT."""

    def measure(peer: str, row: str, folder: Path) -> Any:
        assert row != "direct"
        if row != LATE:
            return 1.0
        has_ticker = peer == "aiofiles" or peer.startswith("ringloop")
        return {LATE: FIGURES | {"p999_ms": 7.0}, "lines": FIGURES} if has_ticker else None

    monkeypatch.setattr(files, "prepare", lambda folder, scale: (folder / "big").touch())
    monkeypatch.setattr(files, "measure", measure)
    monkeypatch.setattr(machine, "describe", dict)
    monkeypatch.setattr(machine, "file_system", lambda folder: "tmpfs")
    monkeypatch.setattr(file_peers, "why_not_direct", lambda path: "Invalid argument")
    output = tmp_path / "results.json"
    args = argparse.Namespace(peer=None, rounds=2, output=output, smoke=True)
    assert files.benchmark(args) == 0
    yield Results.load(output), capsys.readouterr().out


def test_a_row_that_is_refused_is_left_out_with_the_reason(measured: tuple[Results, str]) -> None:
    results, text = measured
    assert list(results.files) == [row for row in ROWS if row != "direct"]
    assert results.not_run == {"files, direct": "O_DIRECT is refused here: Invalid argument"}
    assert "direct is not run: O_DIRECT is refused here: Invalid argument." in text


def test_a_run_says_and_saves_where_its_files_were(measured: tuple[Results, str]) -> None:
    results, text = measured
    assert results.file_system == "tmpfs"
    assert file_words.place("tmpfs") in text.replace("\n", " ")


def test_a_run_shows_and_saves_lateness_by_row(measured: tuple[Results, str]) -> None:
    results, text = measured
    assert results.files[LATE]["aiofiles"] == [7.0, 7.0]  # all rows together, as ever
    of_one = [r for r in results.late if r.peer == "aiofiles"]
    assert of_one == [LateRound("lines", "aiofiles", n, 10, 1.5, 2.5) for n in range(2)]
    assert "1.5 (2.5) of 10" in text


def test_the_files_that_are_synced_are_new_for_every_peer(tmp_path: Path) -> None:
    files.prepare(tmp_path, 1000)
    for peer in ("sync", files.C_URING, "executor"):
        assert files.measure(peer, "fsync", tmp_path) > 0
    assert [len(list(new.iterdir())) for new in tmp_path.glob("new-*")] == [1000] * 3
