"""The showcase of examples/filedesk: files go up, are examined, and come back; all is checked.

The server is on ringloop, with SQLite, its folder and its workers in one process. This side is a
client: it follows the progress as a page would.
"""

import asyncio
import hashlib
import json
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp

from children import child

EXAMPLE = Path(__file__).resolve().parent.parent / "examples" / "filedesk"
SIZES = (12_000_000, 3_000_000, 1_000)
PIECE = 1_000_000
PATIENCE_S = 30
STEPS = 2 * sum(SIZES)  # Each byte is received, and examined.


class ShowcaseError(Exception):
    """The showcase ran, and did something wrong."""


class Visitor:
    """Somebody who has the page open, and uploads."""

    def __init__(self, session: aiohttp.ClientSession, progress: Callable[[int], None]) -> None:
        self._session = session
        self._progress = progress
        self._seen: dict[str, dict[str, Any]] = {}
        self.connected = asyncio.Event()
        self.reports = 0

    async def watch(self) -> dict[str, dict[str, Any]]:
        """Follow the events until all files are through."""
        async with self._session.get("/api/events") as answer:
            async for line in answer.content:
                name, _, value = line.decode().rstrip().partition(": ")
                if name != "data":
                    continue
                if not self.connected.is_set():
                    self.connected.set()  # That was the snapshot, of nothing.
                    continue
                file = json.loads(value)
                self.reports += 1
                before = self._seen.get(file["id"], file)
                if any(file[count] < before[count] for count in ("received", "examined")):
                    raise ShowcaseError(f"progress went back, from {before} to {file}")
                self._seen[file["id"]] = file
                files = self._seen.values()
                self._progress(sum(one["received"] + one["examined"] for one in files))
                ended = [one for one in files if one["state"] in ("done", "failed")]
                if len(ended) == len(SIZES):
                    return self._seen
        raise ShowcaseError("the stream of events ended early")

    async def upload(self, name: str, data: bytes) -> str:
        """Upload a file in pieces; return its id."""
        body = {"name": name, "size": len(data)}
        async with self._session.post("/api/files", json=body) as answer:
            answer.raise_for_status()
            file_id: str = (await answer.json())["id"]
        for offset in range(0, len(data), PIECE):
            piece = data[offset : offset + PIECE]
            headers = {"Upload-Offset": str(offset)}
            address = f"/api/files/{file_id}"
            async with self._session.patch(address, data=piece, headers=headers) as answer:
                answer.raise_for_status()
        return file_id

    async def check(self, file: dict[str, Any], data: bytes) -> None:
        """Check what was found in a file, and that it comes back, in whole and in part."""
        right = {
            "state": "done",
            "sha256": hashlib.sha256(data).hexdigest(),
            "lines": data.count(b"\n"),
        }
        found = {key: file[key] for key in right}
        if found != right:
            raise ShowcaseError(f"{file['name']}: found {found}, not {right}")
        address = f"/api/files/{file['id']}/content"
        async with self._session.get(address) as answer:
            if answer.status != 200 or await answer.read() != data:
                raise ShowcaseError(f"{file['name']}: other bytes came back than went up")
        async with self._session.get(address, headers={"Range": "bytes=-100"}) as answer:
            if answer.status != 206 or await answer.read() != data[-100:]:
                raise ShowcaseError(f"{file['name']}: its end came back wrong")


async def visit(folder: str, progress: Callable[[int], None]) -> str:
    """Run the showcase in this folder; return a sentence about it. Raise if it does wrong."""
    command = (sys.executable, "-m", "filedesk", "--port", "0", "--folder", folder)
    async with child("env", f"PYTHONPATH={EXAMPLE}", *command) as program:
        greeting = await program.line()
        address, _, loop = greeting.removeprefix("filedesk on ").partition(", ")
        if loop != "ringloop.loop":
            await program.succeed()
            raise program.error(f"printed {greeting!r} where it should name its address and loop")
        start = time.perf_counter()
        try:
            async with asyncio.timeout(PATIENCE_S), aiohttp.ClientSession(address) as session:
                reports = await _everything(Visitor(session, progress))
        except TimeoutError:
            raise program.error(f"was not through within {PATIENCE_S} s") from None
        except aiohttp.ClientError as error:
            raise program.error(f"failed a request: {error}") from None
        seconds = time.perf_counter() - start
        program.terminate()
        await program.succeed()
    return (
        f"showcase (examples/filedesk, on ringloop): {len(SIZES)} files, "
        f"{sum(SIZES) / 1e6:.0f} MB, uploaded, examined, downloaded and compared "
        f"in {seconds:.1f} s; {reports} reports of progress"
    )


async def _everything(visitor: Visitor) -> int:
    contents = {
        f"file {number}.txt": random.Random(number).randbytes(size).hex("\n", 32)[:size].encode()
        for number, size in enumerate(SIZES)
    }
    try:
        async with asyncio.TaskGroup() as tasks:
            watching = tasks.create_task(visitor.watch())
            await visitor.connected.wait()
            for name, data in contents.items():
                tasks.create_task(visitor.upload(name, data))
    except ExceptionGroup as group:
        raise group.exceptions[0] from None
    for file in watching.result().values():
        await visitor.check(file, contents[file["name"]])
    return visitor.reports
