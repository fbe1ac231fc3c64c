"""What `files.py` measures: each row in the plain way of each peer.

A program of its own: `python -P file_peers.py PEER ROW FOLDER NEW` prints operations a second,
or null where the peer has no such row. For the row `late` it prints what `lateness` returns.
NEW is an empty folder for new files.
"""

from __future__ import annotations

import asyncio
import bisect
import json
import mmap
import os
import random
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

TASKS = 64
BLOCK = 4096
CHUNK = 65536
PREADS = 100_000
WRITES = 100_000
LINE = b"x" * 100
SYNCED = 1000
DIRECT = 20_000
LATE = "late"
NO_ROW = ""
TICK_S = 0.01
LATE_FOR_S = 11.0  # 1,100 ticks: the p99.9 is the second that is latest

ROWS = {
    "small": "open, read and close files of 4 KiB, 64 tasks",
    "read_many": "the same files through read_many",
    "pread": "4 KiB at random places of one file, 64 tasks",
    "chunks": "64 KiB one after the other",
    "lines": "lines of a text file",
    "writes": "100 bytes to a buffered file",
    "fsync": "write and fsync new files, 64 tasks",
    "direct": "4 KiB at random places past the page cache (O_DIRECT), 64 at a time",
    LATE: "how late a 10 ms ticker on the same loop is while all of this runs: ms, p99.9",
}
SLOW = 20
"""By how much less the slow peers do, which take as much longer."""


async def in_tasks(items: list[Any], work: Callable[[Any], Awaitable[object]]) -> int:
    async def some(part: Iterable[Any]) -> None:
        for item in part:
            await work(item)

    await asyncio.gather(*[some(items[i::TASKS]) for i in range(TASKS)])
    return len(items)


def why_not_direct(path: str) -> str | None:
    """Why this file cannot be read past the page cache.

    Tried with a read, as a file system may open it so and want larger blocks.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
        try:
            with mmap.mmap(-1, BLOCK) as aligned:
                os.preadv(fd, [aligned], 0)
        finally:
            os.close(fd)
    except OSError as error:
        return error.strerror
    return None


class Data:
    def __init__(self, folder: Path, new: Path, part: int) -> None:
        self.small = sorted(str(p) for p in (folder / "small").iterdir())[::part]
        self.big = str(folder / "big")
        blocks = Path(self.big).stat().st_size // BLOCK
        self.places = [random.randrange(blocks) * BLOCK for _ in range(PREADS // part)]
        self.text = str(folder / "text")
        self.written = str(folder / "written")
        self.writes = WRITES // part
        self.synced = [f"{new}/{i}" for i in range(SYNCED)]


def sync(row: str, d: Data) -> int | None:
    n = 0
    if row in ("direct", LATE):
        return None  # one after the other is another thing
    if row in ("small", "read_many"):
        for path in d.small:
            with open(path, "rb") as f:  # noqa: PTH123 - what is compared
                f.read()
        return len(d.small)
    if row == "pread":
        fd = os.open(d.big, os.O_RDONLY)
        for place in d.places:
            os.pread(fd, BLOCK, place)
        os.close(fd)
        return len(d.places)
    if row == "chunks":
        with open(d.big, "rb") as f:  # noqa: PTH123 - what is compared
            while f.read(CHUNK):
                n += 1
    elif row == "lines":
        with open(d.text) as t:  # noqa: PTH123 - what is compared
            for _ in t:
                n += 1
    elif row == "writes":
        with open(d.written, "wb") as f:  # noqa: PTH123 - what is compared
            for _ in range(d.writes):
                f.write(LINE)
        return d.writes
    else:
        for path in d.synced:
            sync_one(path)
        return len(d.synced)
    return n


def sync_one(path: str) -> None:
    with open(path, "wb") as f:  # noqa: PTH123 - what is compared
        f.write(LINE)
        f.flush()
        os.fsync(f.fileno())


async def ringloop_fs(row: str, d: Data) -> int:
    from ringloop import fs  # noqa: PLC0415 - the other peers do without

    async def small(path: str) -> None:
        async with fs.open(path, "rb") as f:
            await f.read()

    async def synced(path: str) -> None:
        async with fs.open(path, "wb") as f:
            await f.write(LINE)
            await f.fsync()

    n = 0
    if not row:
        return 0
    if row == "small":
        return await in_tasks(d.small, small)
    if row == "direct":
        direct = lambda path, flags: os.open(path, flags | os.O_DIRECT)  # noqa: E731
        async with fs.open(d.big, "rb", opener=direct) as f:
            return await in_tasks(d.places[:DIRECT], lambda place: f.pread(BLOCK, place))
    if row == "fsync":
        return await in_tasks(d.synced, synced)
    if row == "read_many":
        async for _ in fs.read_many(d.small):
            n += 1
    elif row == "pread":
        async with fs.open(d.big, "rb") as f:
            return await in_tasks(d.places, lambda place: f.pread(BLOCK, place))
    elif row == "chunks":
        async with fs.open(d.big, "rb") as f:
            while await f.read(CHUNK):
                n += 1
    elif row == "lines":
        async with fs.open(d.text) as t:
            async for _ in t:
                n += 1
    else:
        async with fs.open(d.written, "wb") as f:
            for _ in range(d.writes):
                await f.write(LINE)
        return d.writes
    return n


async def aiofiles_(row: str, d: Data) -> int | None:
    import aiofiles  # type: ignore[import-untyped]  # noqa: PLC0415

    async def small(path: str) -> None:
        async with aiofiles.open(path, "rb") as f:
            await f.read()

    n = 0
    if row in ("small", "read_many"):
        return await in_tasks(d.small, small)
    if row == "chunks":
        async with aiofiles.open(d.big, "rb") as f:
            while await f.read(CHUNK):
                n += 1
    elif row == "lines":
        async with aiofiles.open(d.text) as f:
            async for _ in f:
                n += 1
                if n == d.writes:
                    break
    elif row == "writes":
        async with aiofiles.open(d.written, "wb") as f:
            for _ in range(d.writes):
                await f.write(LINE)
        return d.writes
    else:
        return None
    return n


async def executor(row: str, d: Data, threads: int | None = None) -> int | None:
    loop = asyncio.get_running_loop()
    if threads and row:
        loop.set_default_executor(ThreadPoolExecutor(threads))
    if row == "pread":
        fd = os.open(d.big, os.O_RDONLY)
        n = await in_tasks(
            d.places, lambda place: loop.run_in_executor(None, os.pread, fd, BLOCK, place)
        )
        os.close(fd)
        return n
    if row == "fsync":
        return await in_tasks(d.synced, lambda path: loop.run_in_executor(None, sync_one, path))
    return None


async def executor_of_64(row: str, d: Data) -> int | None:
    return await executor(row, d, TASKS)


async def aiofiles_and_executor(row: str, d: Data) -> int | None:
    done = await aiofiles_(row, d)
    return await executor(row, d) if done is None else done


def late_by_row(
    ticks: list[tuple[float, float]], turns: list[tuple[float, str]]
) -> dict[str, list[float]]:
    """Of ticks (when each was due, how late it was) and turns (when each began, its row).

    A tick counts for the row that ran when it fell due: when it comes, another may run. So
    what falls due at the end of a row may be late by what the next one begins with.
    """
    began = [start for start, _ in turns]
    late: dict[str, list[float]] = {}
    for due, by in ticks:
        _, row = turns[bisect.bisect(began, due) - 1]
        late.setdefault(row, []).append(by)
    return late


def in_figures(late_s: list[float]) -> dict[str, float]:
    late_ms = [by * 1000 for by in sorted(late_s)]
    p999_ms = late_ms[int(len(late_ms) * 0.999)]
    return {"ticks": len(late_ms), "p999_ms": p999_ms, "max_ms": late_ms[-1]}


async def lateness(
    work: Callable[[str, Data], Awaitable[int | None]], d: Data
) -> dict[str, dict[str, float]]:
    """All rows one after the other for a while, and beside them a ticker.

    What it was late by while each row ran, and under `LATE` all the time.
    """
    loop = asyncio.get_running_loop()
    ticks: list[tuple[float, float]] = []
    turns: list[tuple[float, str]] = []
    left_out = (LATE, "direct") if why_not_direct(d.big) else (LATE,)
    rows = [row for row in ROWS if row not in left_out]
    rows_over = False

    async def tick() -> None:
        due = loop.time() + TICK_S
        while not rows_over:
            await asyncio.sleep(due - loop.time())
            ticks.append((due, loop.time() - due))
            due += TICK_S  # after a stall the ticks that it swallowed are late, too

    ticker = asyncio.ensure_future(tick())
    end = loop.time() + LATE_FOR_S
    while loop.time() < end:
        for row in rows:
            start = loop.time()
            done = await work(row, d)
            turns.append((start, NO_ROW if done is None else row))
    turns.append((loop.time(), NO_ROW))
    rows_over = True
    await ticker
    late = late_by_row(ticks, turns)
    late.pop(NO_ROW, None)
    late[LATE] = [by for _, by in ticks]
    return {row: in_figures(late_s) for row, late_s in late.items()}


def main(
    peer: str, row: str, folder: Path, new: Path
) -> float | dict[str, dict[str, float]] | None:
    data = Data(folder, new, 1 if peer == "sync" or peer.startswith("ringloop") else SLOW)
    if peer == "sync":
        start = time.perf_counter()
        done = sync(row, data)
        return None if done is None else done / (time.perf_counter() - start)
    new_loop: Any = asyncio.new_event_loop
    works = {"aiofiles": aiofiles_, "executor": executor, "executor-64": executor_of_64}
    work: Any = works.get(peer, ringloop_fs)
    if row == LATE and peer == "aiofiles":
        work = aiofiles_and_executor
    elif row == LATE and not peer.startswith("ringloop"):
        return None
    if peer.startswith("ringloop"):
        import ringloop  # noqa: PLC0415

        def new_loop() -> asyncio.AbstractEventLoop:
            return ringloop.EventLoop(peer.removeprefix("ringloop-"))

    async def timed() -> float | dict[str, dict[str, float]] | None:
        await work("", data)  # imports
        if row == LATE:
            return await lateness(work, data)
        start = time.perf_counter()
        count = await work(row, data)
        return None if count is None else count / (time.perf_counter() - start)

    with asyncio.Runner(loop_factory=new_loop) as runner:
        return runner.run(timed())


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))))
