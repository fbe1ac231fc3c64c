"""What the benchmark makes of its rounds: medians, ratios within a round, rates, failures."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from ringloop.bench import memory, micro, open_loop
from ringloop.bench.cells import Cell
from ringloop.bench.peers import PEERS
from ringloop.bench.processes import PeerError
from ringloop.bench.results import (
    NO_DIRECT,
    Count,
    LateRound,
    MemoryRound,
    MicroRound,
    OpenRound,
    Results,
    Round,
    Spread,
)

if TYPE_CHECKING:
    from pathlib import Path

CELL = "protocol:64x1024"


def closed(peer: str, number: int, cpu_us: float, *, rate: int = 1000) -> Round:
    latencies = {"p50": 1.0, "p99": 2.0, "p999": 3.0, "max": 4.0}
    return Round(CELL, peer, number, rate, 1.0, cpu_us * rate / 1e6, 0.1, latencies)


def results() -> Results:
    return Results(machine={"python": "CPython 3.13"}, settings={"rounds": 3})


def test_ratios_are_taken_within_a_round() -> None:
    found = results()
    for number, slow in enumerate([1, 2, 10]):  # the machine was slower and slower
        found.closed += [closed("ringloop-uring", number, 3 * slow)]
        found.closed += [closed("uvloop", number, 4 * slow)]
    ratio = found.cpu_ratio(CELL, "ringloop-uring", "uvloop")
    assert ratio
    assert [ratio.low, ratio.median, ratio.high] == pytest.approx([0.75] * 3)
    assert ratio.count == 3


def test_a_peer_that_failed_in_one_round_has_no_figures() -> None:
    found = results()
    found.closed += [closed("uvloop", 0, 4), Round(CELL, "uvloop", 1, error="it ended")]
    assert found.rounds(CELL, "uvloop") == {}
    assert found.spread(CELL, "uvloop", lambda r: r.cpu_us) is None
    assert found.failures == [(CELL, "uvloop", "it ended")]


def test_half_of_its_own_rate_and_half_of_the_slowest() -> None:
    found = results()
    for number in range(3):
        found.closed += [closed("ringloop-uring", number, 3, rate=8000 + number * 1000)]
        found.closed += [closed("asyncio", number, 9, rate=2000)]
    found.closed += [Round(CELL, "rloop", 0, error="it ended")]
    peers = [PEERS[name] for name in ("ringloop-uring", "rloop", "asyncio")]
    rates = open_loop.rates(found, Cell.parse(CELL), peers)
    assert rates == {"ringloop-uring": (4500, 1000), "asyncio": (1000, 1000)}


def test_latencies_of_both_rates_are_told_apart() -> None:
    found = results()
    for number in range(3):
        for common in (False, True):
            latencies = {"p50": 10.0 + 5 * common, "p99": 1.0, "p999": 1.0, "max": 1.0}
            found.open.append(
                OpenRound(CELL, "uvloop", number, 500, common, 500, 1, 0.1, latencies)
            )
    assert found.latency(CELL, "uvloop", False, "p50") == Spread(10, 10, 10, 3)
    assert found.latency(CELL, "uvloop", True, "p50") == Spread(15, 15, 15, 3)


def test_what_was_saved_is_what_is_loaded(tmp_path: Path) -> None:
    found = results()
    found.closed = [closed("uvloop", 0, 4), Round(CELL, "rloop", 0, error="it ended")]
    found.open = [OpenRound(CELL, "uvloop", 0, 500, True, latency_us={"p50": 1.0})]
    found.micro = [MicroRound("uvloop", 0, {"sleep(0)": 1e6})]
    found.memory = [MemoryRound("TCP", "uvloop", 0, 100, 1 << 20, 1024.5)]
    found.counts = [Count(CELL, "uvloop", 2.02, {"read": 1.0}, 4384.5)]
    found.files = {"lines": {"sync": [1.0]}}
    found.late = [LateRound("lines", "aiofiles", 0, 100, 1.5, 2.5)]
    found.file_system = "ext4"
    found.not_run["Redis"] = "no Redis"
    found.save(tmp_path / "found.json")
    assert Results.load(tmp_path / "found.json") == found


def test_results_from_before_lateness_was_told_by_row_are_loaded(tmp_path: Path) -> None:
    found = results()
    found.files = {"late": {"aiofiles": [4.0]}}
    found.save(tmp_path / "found.json")
    data = json.loads((tmp_path / "found.json").read_text())
    assert data.pop("late") == []
    assert data.pop("file_system") == ""
    (tmp_path / "found.json").write_text(json.dumps(data))
    assert Results.load(tmp_path / "found.json") == found


def test_a_saved_round_takes_a_line_and_says_only_what_is_unusual(tmp_path: Path) -> None:
    found = results()
    found.closed = [closed("uvloop", number, 4) for number in range(3)]
    found.save(tmp_path / "found.json")
    lines = [line for line in (tmp_path / "found.json").read_text().split("\n") if CELL in line]
    assert len(lines) == 3
    assert not any("error" in line or "wrong" in line for line in lines)


def machine(**changed: object) -> dict[str, object]:
    usual = {"cpu": "x", "cores": 2, "kernel": "6.18", "python": "CPython 3.13.0"}
    return usual | {"date": "2026-01-01"} | changed


def test_a_micro_benchmark_that_fills_the_window_at_once_is_not_measured_cold(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now_s = 0.0
    counts: list[int] = []

    async def work(count: int) -> None:
        nonlocal now_s
        now_s += count / (100 if counts else 10)  # a second
        counts.append(count)

    monkeypatch.setattr(time, "process_time", lambda: now_s)
    assert asyncio.run(micro.rate(work, 1.0)) == pytest.approx(100)


def test_merged_results_have_the_later_ones_of_a_cell() -> None:
    first, second = Results(machine(), {}), Results(machine(date="2026-01-02"), {})
    first.closed = [closed("uvloop", 0, 4), replace(closed("uvloop", 0, 4), cell="sock:1x1")]
    first.micro = [MicroRound("uvloop", 0, {"sleep(0)": 1.0})]
    first.memory = [MemoryRound("TCP", "uvloop", 0, 1, 2, 3.0)]
    first.files = {"lines": {"sync": [1.0]}, "direct": {"c-uring": [2.0]}}
    first.late = [LateRound("direct", "ringloop-uring", 0, 100, 1.5, 2.5)]
    first.file_system = "ext4"
    second.closed = [closed("asyncio", 0, 9)]
    second.memory = [MemoryRound("TLS", "uvloop", 0, 4, 5, 6.0)]
    second.files = {"lines": {"sync": [3.0]}}
    second.late = [LateRound("lines", "ringloop-uring", 0, 100, 1.5, 2.5)]
    second.file_system = "tmpfs"
    merged = Results.merge([first, second])
    assert [(r.cell, r.peer) for r in merged.closed] == [("sock:1x1", "uvloop"), (CELL, "asyncio")]
    assert merged.micro == first.micro
    assert merged.memory == first.memory + second.memory
    assert merged.files == second.files  # of another file system is no row
    assert merged.late == second.late
    assert merged.file_system == "tmpfs"
    assert Results.merge([first, Results(machine(), {})]).files == first.files
    assert merged.machine["date"] == "2026-01-02"


def test_a_row_that_the_later_files_have_was_run() -> None:
    refused, without, run = (Results(machine(), {}) for _ in range(3))
    refused.files = {"lines": {"sync": [1.0]}}
    refused.not_run = {NO_DIRECT: "O_DIRECT is refused here", "Redis": "no Redis"}
    run.files = {"direct": {"c-uring": [2.0]}}
    assert Results.merge([refused, without]).not_run == refused.not_run
    assert Results.merge([refused, run]).not_run == {"Redis": "no Redis"}
    assert Results.merge([run, refused]).not_run == refused.not_run


def test_results_of_two_machines_are_not_merged() -> None:
    with pytest.raises(ValueError, match=r"not go together: kernel is 6\.18, or 5\.10"):
        Results.merge([Results(machine(), {}), Results(machine(kernel="5.10"), {})])
    others = [Results(machine(versions={"uvloop": version}), {}) for version in ("0.21", "0.22")]
    with pytest.raises(ValueError, match=r"not go together: versions is .*0\.21"):
        Results.merge(others)


@pytest.mark.parametrize(
    ("ratios", "verdict"),
    [
        ([0.8, 0.9, 0.99], "less"),
        ([0.8, 0.9, 1.01], "even"),
        ([1.01, 1.5, 1.2], "more"),
        ([0.5, 0.6], ""),
    ],
)
def test_less_and_more_are_what_every_round_says(ratios: list[float], verdict: str) -> None:
    spread = Spread.of(ratios)
    assert spread
    assert spread.verdict == verdict


@pytest.mark.parametrize("text", ["[]", "{}", '{"format": 1}'])
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "other.json").write_text(text)
    with pytest.raises(ValueError, match="does not hold results"):
        Results.load(tmp_path / "other.json")


def test_memory_is_read_from_the_kernels_words(tmp_path: Path) -> None:
    status = tmp_path / "status"
    status.write_text("Name:\tpython\nVmRSSx:\t1 kB\nVmRSS:\t   25600 kB\n")
    assert memory._kilobytes(status, "VmRSS") == 25600
    with pytest.raises(PeerError, match="does not tell VmSwap"):
        memory._kilobytes(status, "VmSwap")
    with pytest.raises(PeerError, match="cannot be read: No such file"):
        memory._kilobytes(tmp_path / "none", "VmRSS")
    assert memory.available_bytes() > 1 << 20
