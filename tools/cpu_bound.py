"""What CPU-bound work does to a loop, and what it costs to have it done elsewhere.

    python tools/cpu_bound.py       prints the tables of docs/cpu-bound.md, in a minute

Run it on an otherwise idle machine.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import platform
import statistics
import sys
import time
from typing import TYPE_CHECKING, Any

import ringloop
from ringloop import offload

if TYPE_CHECKING:
    from collections.abc import Callable

    Call = Callable[..., Any]  # async: function, *args -> what the function gives

TICK_S = 0.010
WORK_S = 3.0  # of one CPU, for each row about lateness
ROUNDS = 5
SIZES_US = (10, 100, 1_000, 10_000)  # pieces of 100 ms are in the first table


def spin(turns: int) -> int:
    """Compute in Python, and hold the GIL: as parsers, templates and most loops do."""
    total = 0
    for i in range(turns):
        total += i & 3
    return total


def nothing(data: bytes) -> None:
    """Do as little as can be."""


async def on_the_loop(function: Callable[..., Any], *args: Any) -> Any:
    """Call it in the loop's thread, and let the loop go round once."""
    await asyncio.sleep(0)
    return function(*args)


async def kinds() -> dict[str, Call]:
    """The ways that there are here."""
    found: dict[str, Call] = {
        "on the loop": on_the_loop,
        "`to_thread`": offload.to_thread,
        "`to_interpreter`": offload.to_interpreter,
        "`to_process`": offload.to_process,
    }
    try:
        await offload.to_interpreter(spin, 1)
    except RuntimeError as error:
        print(error, file=sys.stderr)
        del found["`to_interpreter`"]
    return found


def turns_per_second() -> float:
    """How fast `spin` is: the best of some, so that a disturbance does not count."""
    spin(100_000)
    times = []
    for _ in range(10):
        start = time.perf_counter()
        spin(200_000)
        times.append(time.perf_counter() - start)
    return 200_000 / min(times)


async def side_by_side(call: Call, turns: int, calls: int, at_once: int) -> float:
    """Seconds for so many calls, so many of them at once."""
    left = iter(range(calls))

    async def caller() -> None:
        for _ in left:
            await call(spin, turns)

    await asyncio.gather(*(call(spin, 1) for _ in range(at_once)))  # workers are there
    start = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(at_once)))
    return time.perf_counter() - start


async def ticker(late: list[float]) -> None:
    """Wake up every 10 ms and note how late that was."""
    loop = asyncio.get_running_loop()
    while True:
        due = loop.time() + TICK_S
        await asyncio.sleep(TICK_S)
        late.append(loop.time() - due)


async def lateness(call: Call, speed: float, cpus: int) -> tuple[float, list[float]]:
    """Seconds for 3 s of work in pieces of 100 ms, and how late a ticker was meanwhile."""
    late: list[float] = []
    task = asyncio.create_task(ticker(late))
    await asyncio.sleep(0.1)
    late.clear()
    seconds = await side_by_side(call, int(speed / 10), int(WORK_S * 10), cpus)
    task.cancel()
    return seconds, sorted(late)


async def cost_us(call: Call, data: bytes) -> float:
    """Microseconds for a call that does nothing, one after another; the median of rounds."""
    await call(nothing, data)
    medians = []
    for _ in range(ROUNDS):
        times = []
        for _ in range(200 if len(data) < 1000 else 20):
            start = time.perf_counter()
            await call(nothing, data)
            times.append(time.perf_counter() - start)
        medians.append(statistics.median(times))
    return statistics.median(medians) * 1e6


def row(*cells: object) -> None:
    print("|", " | ".join(str(cell) for cell in cells), "|")


async def main() -> None:
    cpus = len(os.sched_getaffinity(0))
    driver = ringloop.backend_info()["driver"]
    print(f"Python {platform.python_version()}, ringloop on {driver}, {cpus} CPUs.\n")
    speed = turns_per_second()
    ways = await kinds()

    row("3 s of pure Python in pieces of 100 ms", "seconds", "ticker late: p50, ms", "p99", "most")
    row(*["---"] * 5)
    for name, call in ways.items():
        seconds, late = await lateness(call, speed, cpus)
        points = (late[len(late) // 2], late[int(len(late) * 0.99)], late[-1])
        row(name, f"{seconds:.2f}", *(f"{point * 1e3:.1f}" for point in points))

    print()
    row("a call that does nothing, us", "no data", "1 MB argument")
    row(*["---"] * 3)
    for name, call in ways.items():
        costs = [await cost_us(call, bytes(size)) for size in (0, 1_000_000)]
        row(name, *(f"{cost:.0f}" for cost in costs))

    print()
    row(
        f"pieces of so much work, {cpus} at once: speed against the loop",
        *(f"{size} us" for size in SIZES_US),
    )
    row(*["---"] * (len(SIZES_US) + 1))
    speeds: dict[str, list[list[float]]] = {name: [[] for _ in SIZES_US] for name in ways}
    for _ in range(ROUNDS):  # interleaved, as machines have moods
        for i, size in enumerate(SIZES_US):
            calls = max(6, min(2000, 100_000 // size))
            turns = max(1, int(speed * size / 1e6))
            for name, call in ways.items():
                seconds = await side_by_side(call, turns, calls, cpus)
                speeds[name][i].append(calls / seconds)
    base = [statistics.median(rates) for rates in speeds["on the loop"]]
    for name, rates in speeds.items():
        medians = map(statistics.median, rates)
        row(name, *(f"{mine / loop:.2f}" for mine, loop in zip(medians, base, strict=True)))


if __name__ == "__main__":
    # By its own name, so that other interpreters and processes find its functions.
    ringloop.run(importlib.import_module("cpu_bound").main())
