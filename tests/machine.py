"""What this process has of the machine, told apart from what the machine does by itself."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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
import select, sys, time
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
    """Measures, in a process beside this one, how long the machine lets nobody run.

    A context manager; `late_s` is there afterwards.
    """

    def __enter__(self) -> Punctuality:
        self._ticker = subprocess.Popen(
            [sys.executable, "-c", TICKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.late_s = float(self._ticker.communicate()[0])
