"""What must be at rest when nothing runs: fds, operations, tasks, threads, children, memory."""

from __future__ import annotations

import asyncio
import collections
import ctypes
import gc
import statistics
import threading
from typing import TYPE_CHECKING

import psutil

from machine import open_fds
from soak.scene import EXECUTOR_THREADS

if TYPE_CHECKING:
    import ringloop

REST_S = 15.0  # after which what is left is a leak
MIB = 1 << 20
# Before so many looks there is no trend.
LOOKS_MIN = 12
GROWTH_MAX = 4 * MIB  # from the middle third of the looks to the last, in the median
RESOLVER_THREADS = "ringloop-resolver-"  # of a loop, for as long as it lives
OBJECTS_MAX = 10  # more than in the beginning, of one type
# Of these so many: two tables of 256, and what the loop keeps for the next call_soon().
CACHED = {"ringloop._net.peers.Peer": 512, "ringloop._core.handles.Handle": 64 + OBJECTS_MAX}
WATCHED = ("ringloop", "asyncio", "_asyncio", "soak", "socket", "ssl", "_ssl", "_socket")


def count_objects() -> collections.Counter[str]:
    """Objects of the modules that the run is about, by type."""
    gc.collect()
    found: collections.Counter[str] = collections.Counter()
    for thing in gc.get_objects():
        kind = type(thing)
        if str(kind.__module__).partition(".")[0] in WATCHED:
            found[f"{kind.__module__}.{kind.__qualname__}"] += 1
    return found


def suspects() -> list[str]:
    """The transports and sockets there are: the owner of what is left may be among them."""
    words = ("Transport", "Listener", "StreamWriter", "Server", "Channel", "socket")
    return [
        f"perhaps {thing!r}"
        for thing in gc.get_objects()
        if type(thing).__name__.endswith(words) and type(thing).__module__ != "builtins"
    ]


class Health:
    """Made in the running loop, before anything else runs in it."""

    def __init__(self, loop: ringloop.EventLoop) -> None:
        self._loop = loop
        self._process = psutil.Process()
        self._trim = ctypes.CDLL(None).malloc_trim
        self._fds = open_fds()
        self._operations = loop._live_operations()
        self._tasks = asyncio.all_tasks(loop)
        self._threads = set(threading.enumerate())
        self._objects: collections.Counter[str] | None = None
        self.rss: list[int] = []

    def live_rss(self) -> int:
        return int(self._process.memory_info().rss)

    def _left(self) -> list[str]:
        """What is there that was not there in the beginning."""
        left = []
        fds = {fd: what for fd, what in open_fds().items() if self._fds.get(fd) != what}
        if fds:
            left.append(f"file descriptors: {fds}")
        if (operations := self._loop._live_operations()) > self._operations:
            left.append(f"driver slots: {operations}, in the beginning {self._operations}")
        left += [f"task: {task!r}" for task in asyncio.all_tasks(self._loop) - self._tasks]
        left += [
            f"thread: {thread!r}"
            for thread in set(threading.enumerate()) - self._threads
            if not thread.name.startswith((EXECUTOR_THREADS, RESOLVER_THREADS))
        ]
        left += [f"child process: {child!r}" for child in self._process.children()]
        return left

    async def look(self) -> list[str]:
        """Wait until all is at rest, and note the memory; what does not go away, in words."""
        end = self._loop.time() + REST_S
        gc.collect()
        while left := self._left():
            if self._loop.time() > end:
                return [f"left behind: {what}" for what in (*left, *suspects())]
            await asyncio.sleep(0.02)
            gc.collect()
        self._trim(0)
        self.rss.append(self.live_rss())
        if self._objects is None:
            self._objects = count_objects()
        return []

    def trends(self) -> list[str]:
        """What has grown over the whole run."""
        grown = []
        if self._objects is not None:
            more = count_objects() - self._objects
            grown += [
                f"{n} more of {kind}"
                for kind, n in more.items()
                if n > CACHED.get(kind, OBJECTS_MAX)
            ]
        growth = self.growth()
        if growth is not None and growth > GROWTH_MAX:
            grown.append(f"memory at rest: {growth / MIB:.1f} MiB more in the last third")
        return grown

    def growth(self) -> float | None:
        """Bytes from the middle third of the run to the last; None: too short to tell."""
        if len(self.rss) < LOOKS_MIN:
            return None
        third = len(self.rss) // 3
        return statistics.median(self.rss[-third:]) - statistics.median(self.rss[third : 2 * third])
