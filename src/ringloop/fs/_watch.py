"""`watch()`: what happens to files and directories, by inotify."""

from __future__ import annotations

import asyncio
import os
import struct
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ringloop.fs import _inotify as inotify
from ringloop.fs._threads import run

if TYPE_CHECKING:
    from typing import Self

HEADER = struct.Struct("iIII")
READ_BYTES = 65536
MASK = (
    inotify.CREATE
    | inotify.MODIFY
    | inotify.DELETE
    | inotify.DELETE_SELF
    | inotify.MOVE_SELF
    | inotify.MOVED_FROM
    | inotify.MOVED_TO
)


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened.

    `kind` is "created", "modified", "deleted", "moved" or "overflow". After "overflow"
    the kernel has dropped events: look at the files themselves. What moved has `path`,
    its new one, and `old_path`; of these one is None if it is outside of what is watched.
    """

    kind: str
    path: str | None = None
    old_path: str | None = None
    is_dir: bool = False


def _begin(path: bytes) -> int:
    fd = inotify.init()
    try:
        inotify.add_watch(fd, path, MASK)
    except BaseException:
        os.close(fd)
        raise
    return fd


class Watch:
    """The events of a directory (of what is directly in it) or of a file.

    An async iterator and context manager. It watches from the moment it is entered, or first
    asked for an event. Of several tasks that iterate it each event goes to one. When what is
    watched is removed, it ends.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = os.fspath(path)
        self._events: deque[Event] = deque()
        self._news = asyncio.Event()  # several tasks may wait for the next event
        self._loop = asyncio.get_running_loop()
        self._starting = asyncio.Lock()
        self._over = False
        self._fd = -1

    async def _start(self) -> None:
        async with self._starting:
            if self._fd >= 0 or self._over:
                return
            # In a thread: looking the path up may wait for a disk or a server.
            fd = await run(_begin, os.fsencode(self._path), dropped=os.close)
            if self._over:
                os.close(fd)
            else:
                self._fd = fd
                self._loop.add_reader(fd, self._ready)

    def _ready(self) -> None:
        try:
            data = os.read(self._fd, READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        self._decode(data)
        self._news.set()

    def _decode(self, data: bytes) -> None:
        left: dict[int, tuple[str, bool]] = {}  # moved from here, the other half not seen yet
        at = 0
        while at < len(data):
            _, mask, cookie, length = HEADER.unpack_from(data, at)
            at += HEADER.size
            name = os.fsdecode(data[at : at + length].rstrip(b"\0"))
            at += length
            path = os.path.join(self._path, name) if name else self._path
            is_dir = bool(mask & inotify.ISDIR)
            if mask & inotify.OVERFLOW:
                self._events.append(Event("overflow"))
            elif mask & inotify.MOVED_FROM:
                left[cookie] = path, is_dir
            elif mask & inotify.MOVED_TO:
                old, _ = left.pop(cookie, (None, False))
                self._events.append(Event("moved", path, old, is_dir))
            elif mask & inotify.MOVE_SELF:
                self._events.append(Event("moved", None, path, is_dir))
            elif mask & inotify.CREATE:
                self._events.append(Event("created", path, None, is_dir))
            elif mask & inotify.MODIFY:
                self._events.append(Event("modified", path, None, is_dir))
            elif mask & (inotify.DELETE | inotify.DELETE_SELF):
                self._events.append(Event("deleted", path, None, is_dir))
            elif mask & inotify.IGNORED:
                self._end()  # it is gone, and nothing will come any more
        # The two halves of a move are written together, but a read may part them: then
        # the second one comes as a move from outside.
        for path, is_dir in left.values():
            self._events.append(Event("moved", None, path, is_dir))

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        if self._fd < 0:
            await self._start()
        while not self._events:
            if self._over:
                raise StopAsyncIteration
            self._news.clear()
            await self._news.wait()
        return self._events.popleft()

    def _end(self) -> None:
        self._over = True
        self._news.set()
        if self._fd >= 0:
            self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1

    async def aclose(self) -> None:
        """Stop watching; whoever iterates gets what is left, and then the end."""
        self._end()

    async def __aenter__(self) -> Self:
        await self._start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()


def watch(path: str | os.PathLike[str]) -> Watch:
    """Watch a directory or a file: `async with fs.watch(path) as w: async for event in w`."""
    return Watch(path)
