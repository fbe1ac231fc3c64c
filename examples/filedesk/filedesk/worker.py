"""Examines files in the background: their checksum, their lines, how small they can be packed."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
import zlib
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from filedesk.database import File, State
from filedesk.store import BLOCK
from ringloop import fs

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from filedesk.broker import Broker, Job
    from filedesk.database import Database
    from filedesk.store import Store

log = logging.getLogger(__name__)
REPORT_S = 0.05  # between two reports of one file's progress
ALIVE_S = 5.0
RETRY_S = 1.0
LEVEL = 6


class Findings:
    """What is known of a file so far."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()
        self._packer = zlib.compressobj(LEVEL)
        self.lines = 0
        self.packed = 0

    def add(self, block: bytes) -> None:
        """Look at more of it. Milliseconds without the GIL, so for a thread."""
        self._digest.update(block)
        self.packed += len(self._packer.compress(block))
        self.lines += block.count(b"\n")

    def end(self) -> str:
        """That was all; return the checksum."""
        self.packed += len(self._packer.flush())
        return self._digest.hexdigest()


class Workers:
    """Tasks that take jobs, one at a time each."""

    def __init__(self, database: Database, store: Store, broker: Broker) -> None:
        self._database, self._store, self._broker = database, store, broker

    @asynccontextmanager
    async def running(self, number: int) -> AsyncIterator[None]:
        """Work until the block ends. What is not done then comes again at the next start."""
        tasks = [asyncio.create_task(self._work(), name=f"worker-{n}") for n in range(number)]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _work(self) -> None:
        while True:
            try:
                job = await self._broker.take()
                try:
                    await self._examine(job)
                except Exception:
                    await job.again()
                    raise
            except Exception:
                log.exception("a worker failed; it goes on")
                await asyncio.sleep(RETRY_S)

    async def _examine(self, job: Job) -> None:
        waits = File.state.in_((State.QUEUED, State.WORKING))  # working: a worker that is gone
        file = await self._database.change(job.file_id, waits, state=State.WORKING)
        if file is not None:
            await self._broker.publish(file.shown(0))
            try:
                found = await self._look(job, file)
            except OSError as error:
                found = {"state": State.FAILED, "error": str(error)}
            # Nothing if it was deleted meanwhile.
            if file := await self._database.change(job.file_id, waits, **found):
                await self._broker.publish(file.shown())
        await job.done()

    async def _look(self, job: Job, file: File) -> dict[str, object]:
        findings = Findings()
        seen = 0
        reported = said_alive = time.monotonic()
        async with fs.open(self._store.path(file.id), "rb") as stored:
            while block := await stored.read(BLOCK):
                await asyncio.to_thread(findings.add, block)
                seen += len(block)
                now = time.monotonic()
                if now - reported >= REPORT_S:
                    reported = now
                    await self._broker.publish(file.shown(seen))
                if now - said_alive >= ALIVE_S:
                    said_alive = now
                    await job.alive()
        sha256 = findings.end()
        found = {"sha256": sha256, "lines": findings.lines, "packed": findings.packed}
        if file.expected_sha256 not in (None, sha256):
            return found | {"state": State.FAILED, "error": "its checksum is not the one announced"}
        return found | {"state": State.DONE}
