"""Micro-benchmarks of an event loop without any network: operations a second of CPU time.

CPU time, since none of them waits for anything: on an idle machine it is the time that
passes, and on a busy one it leaves out what the process had to wait for its core. (Where
child processes are waited for, it is what starting and reaping them costs their parent.)

    python -P on_loop.py --loop uvloop micro.py

prints one JSON object, a rate for each name in `MICROS`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

WINDOW_S = 0.2
BATCH = 100
MAX_COUNT = 1 << 26


async def call_soon_chain(count: int) -> None:
    """A callback that schedules itself: one loop iteration each."""
    loop = asyncio.get_running_loop()
    finished = loop.create_future()
    left = count

    def step() -> None:
        nonlocal left
        left -= 1
        if left:
            loop.call_soon(step)
        else:
            finished.set_result(None)

    loop.call_soon(step)
    await finished


async def sleep_zero(count: int) -> None:
    """A task that yields."""
    for _ in range(count):
        await asyncio.sleep(0)


async def spawn_gather(count: int) -> None:
    """Tasks that are created, yield once, and are gathered, 100 at a time."""

    async def child() -> None:
        await asyncio.sleep(0)

    for _ in range(count // BATCH):
        await asyncio.gather(*[asyncio.create_task(child()) for _ in range(BATCH)])


async def timers(count: int) -> None:
    """Timers that are added and cancelled, 100 at a time, as timeouts that never expire."""
    loop = asyncio.get_running_loop()
    for _ in range(count // BATCH):
        handles = [loop.call_later(30 + i, print) for i in range(BATCH)]
        for handle in handles:
            handle.cancel()
        await asyncio.sleep(0)


async def executor(count: int) -> None:
    """Round trips through the default executor, one after another."""
    loop = asyncio.get_running_loop()
    for _ in range(count):
        await loop.run_in_executor(None, int)


async def processes(count: int) -> None:
    """Processes that end at once, ten at a time. Their own time is not counted."""

    async def run() -> None:
        process = await asyncio.create_subprocess_exec("/bin/true")
        await process.wait()

    for _ in range(count // 10):
        await asyncio.gather(*[run() for _ in range(10)])


MICROS: dict[str, Callable[[int], Awaitable[None]]] = {
    "call_soon chain": call_soon_chain,
    "sleep(0)": sleep_zero,
    "spawn + gather": spawn_gather,
    "timer add + cancel": timers,
    "executor round trip": executor,
    "subprocess spawn": processes,
}


async def rate(micro: Callable[[int], Awaitable[None]], window_s: float) -> float:
    """Doubles the count until a run fills the window; one more is the measured one.

    So what is slow enough to fill it with the first run is not measured cold, either.
    """

    async def seconds(count: int) -> float:
        start = time.process_time()
        await micro(count)
        return time.process_time() - start

    count = BATCH
    while await seconds(count) < window_s and count < MAX_COUNT:
        count *= 2
    return count / await seconds(count)


async def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="micro.py")
    parser.add_argument("--window", type=float, default=WINDOW_S, help="seconds, each")
    options = parser.parse_args(arguments)
    print(json.dumps({name: await rate(micro, options.window) for name, micro in MICROS.items()}))
