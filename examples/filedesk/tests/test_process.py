"""Filedesk as a process: how it starts, ends, and is started again after it was killed."""

from __future__ import annotations

import asyncio
import hashlib
import signal
from typing import TYPE_CHECKING, Any
from uuid import UUID

import aiohttp
import pytest

from desk import Desk, content
from filedesk.database import Database, File
from filedesk.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

Run = Any
Start = Any


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_at_once_with_pages_open(run: Run, start: Start, signum: int) -> None:
    process = start("--port", "0")
    assert "ringloop.loop" in process.greeting

    async def main() -> None:
        async with aiohttp.ClientSession(process.url) as session:
            desk = Desk(session)
            file = await desk.upload("big", content(6_000_000))
            events = [desk.events() for _ in range(3)]
            for stream in events:
                assert (await anext(stream))[0] == "snapshot"
            status, errors, seconds = await asyncio.to_thread(process.end, signum)
            assert (status, errors) == (0, "")
            assert seconds < 5  # less than Uvicorn would wait for the streams
            for stream in events:  # Each ends as an answer should, and is not cut off.
                told = [data async for _, data in stream]
                assert all(data["id"] == file["id"] for data in told), told

    run(main())


def test_what_was_not_done_when_it_was_killed_is_done_afterwards(run: Run, start: Start) -> None:
    data = content(3_000_000)
    process = start("--port", "0", "--workers", "0")

    async def before() -> tuple[str, str]:
        async with aiohttp.ClientSession(process.url) as session:
            desk = Desk(session)
            whole = await desk.upload("whole", data)
            half = await desk.announce("half", len(data))
            await desk.send(half["id"], 0, data[:1_000_000])
            return whole["id"], half["id"]

    whole, half = run(before())
    assert process.end(signal.SIGKILL)[0] == -signal.SIGKILL
    process = start("--port", "0")

    async def after() -> None:
        async with aiohttp.ClientSession(process.url) as session:
            desk = Desk(session)
            assert await desk.offset(half) == 1_000_000
            await desk.send(half, 1_000_000, data[1_000_000:])
            for file_id in (whole, half):
                done = await desk.ended(file_id)
                assert done["sha256"] == hashlib.sha256(data).hexdigest()

    run(after())
    assert process.end(signal.SIGTERM)[:2] == (0, "")


def test_what_had_arrived_when_it_was_killed_is_examined_afterwards(
    run: Run, start: Start, tmp_path: Path
) -> None:
    """Killed after it noted the last bytes: before the file had its own name, and after that."""
    data = content(300_000)
    process = start("--port", "0")

    async def before() -> list[str]:
        async with aiohttp.ClientSession(process.url) as session:
            desk = Desk(session)
            return [(await desk.announce(name, len(data)))["id"] for name in "ab"]

    ids = run(before())
    assert process.end(signal.SIGKILL)[0] == -signal.SIGKILL
    parts = [tmp_path / f"{UUID(file_id).hex}.part" for file_id in ids]
    for part in parts:
        part.write_bytes(data)
    parts[1].rename(parts[1].with_suffix(""))

    async def note() -> None:
        database = Database(Settings(folder=str(tmp_path)).database_url)
        for file_id in ids:
            assert await database.change(UUID(file_id), File.received == 0, received=len(data))
        await database.close()

    run(note())
    process = start("--port", "0")

    async def after() -> None:
        async with aiohttp.ClientSession(process.url) as session:
            for file_id in ids:
                done = await Desk(session).ended(file_id)
                assert done["sha256"] == hashlib.sha256(data).hexdigest()

    run(after())
    assert process.end(signal.SIGTERM)[:2] == (0, "")


def test_a_worker_alone_needs_a_broker(start: Callable[..., Any], driver: str) -> None:
    with pytest.raises(AssertionError, match="--broker nats://"):
        start("worker")
