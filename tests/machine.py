"""What this process has of the machine, told apart from what the machine does by itself."""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
import time
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from types import TracebackType


def own_bytes() -> int:
    """Memory without the pages of files, which the kernel takes and gives as it likes."""
    match = re.search(r"^RssAnon:\s+(\d+) kB$", Path("/proc/self/status").read_text(), re.M)
    assert match
    return int(match[1]) * 1024


def open_fds() -> dict[int, str]:
    """The open file descriptors and what they are."""
    found = {}
    for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - this runs often
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")  # noqa: PTH115
        except FileNotFoundError:
            pass  # the directory's own, gone by now
    return found


TICKER = """
import os, select, sys, time
os.sched_setaffinity(0, {int(sys.argv[1])})
late = 0.0
while True:
    start = time.monotonic()
    ended = select.select([sys.stdin], [], [], 0.005)[0]
    if ended:
        break
    late = max(late, time.monotonic() - start - 0.005)
print(late)
"""


class Punctuality:
    """Measures, in processes beside this one, how long the machine lets nobody run.

    One for each processor, as a virtual machine may lose any of them for a while; on large
    machines for some. A context manager; `late_s` is there afterwards.
    """

    def __enter__(self) -> Punctuality:
        self._tickers = [
            subprocess.Popen(
                [sys.executable, "-c", TICKER, str(cpu)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            for cpu in sorted(os.sched_getaffinity(0))[:4]
        ]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.late_s = max(float(ticker.communicate()[0]) for ticker in self._tickers)


@asynccontextmanager
async def punctual_loop(limit_s: float) -> AsyncIterator[None]:
    """The running loop may not be blocked for so long, beyond what the machine takes."""
    late = 0.0

    async def tick() -> None:
        nonlocal late
        while True:
            start = time.monotonic()
            await asyncio.sleep(0.005)
            late = max(late, time.monotonic() - start - 0.005)

    task = asyncio.create_task(tick())
    with Punctuality() as machine:
        await asyncio.sleep(0)
        yield
        await asyncio.sleep(0.01)  # the last tick counts, too
    task.cancel()
    assert late < limit_s + machine.late_s, f"the loop was blocked for {late:.2f} s"
