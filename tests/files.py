"""What the tests of files share."""

from __future__ import annotations

import asyncio
import os
import threading
from typing import TYPE_CHECKING

from requirement import missing
from ringloop.bench.file_words import IN_MEMORY
from ringloop.bench.machine import file_system
from ringloop.fs import _threads

if TYPE_CHECKING:
    from pathlib import Path


def drop_cache(path: Path) -> None:
    """Out of the page cache, so that no inline read has it."""
    fd = os.open(path, os.O_RDWR)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


def needs_a_disk(path: Path) -> None:
    """Skip where nothing leaves the page cache."""
    kind = file_system(path)
    if kind in IN_MEMORY:
        missing(f"{path} is on {kind}: with TMPDIR=a folder on a disk this test runs")


async def threads_settled() -> None:
    """What the pool's threads were at is done, and the signals sent to them are taken.

    When all threads are here at the same time, each is done with what it had.
    """
    together = threading.Barrier(_threads.MAX_THREADS)
    await asyncio.gather(*[_threads.run(together.wait, 10) for _ in range(together.parties)])
