"""What spooled files and temporary directories are."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from ringloop.compat.aiofiles.base import AsyncBase, attribute, awaited, in_thread

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable


def _spooled(name: str) -> Callable[..., Awaitable[Any]]:
    """A method: at once as long as the file is in memory, and then in a thread."""

    async def method(self: AsyncSpooledTemporaryFile, *args: Any, **kwargs: Any) -> Any:
        if not self._in_memory():
            return await self._in_thread(name, *args, **kwargs)
        return getattr(self._file, name)(*args, **kwargs)

    method.__name__ = name
    return method


class AsyncSpooledTemporaryFile(AsyncBase):
    """As tempfile.SpooledTemporaryFile."""

    _running: asyncio.Future[Any] | None = None

    def _in_memory(self) -> bool:
        """Whether it is, and no thread is at it."""
        running = self._running is not None and not self._running.done()
        return not (self._file._rolled or running)

    async def _in_thread(self, name: str, *args: Any, **kwargs: Any) -> Any:
        # A call that was cancelled goes on in its thread: a close beside a rollover would
        # leave the new file open.
        while self._running is not None and not self._running.done():
            await asyncio.wait([self._running])
        self._running = asyncio.ensure_future(super()._in_thread(name, *args, **kwargs))
        return await asyncio.shield(self._running)

    fileno = awaited("fileno")
    rollover = awaited("rollover")

    close = _spooled("close")
    flush = _spooled("flush")
    isatty = _spooled("isatty")
    read = _spooled("read")
    readline = _spooled("readline")
    readlines = _spooled("readlines")
    seek = _spooled("seek")
    tell = _spooled("tell")

    closed = attribute("closed")
    encoding = attribute("encoding")
    mode = attribute("mode")
    name = attribute("name")
    newlines = attribute("newlines")

    async def write(self, data: Any) -> Any:
        """Write; where that puts the file on the disk, in a thread."""
        # Of text, no more bytes than four a character.
        limit = self._file._max_size
        if not self._in_memory() or (limit and self._file._file.tell() + 4 * len(data) > limit):
            return await self._in_thread("write", data)
        return self._file.write(data)

    async def writelines(self, lines: Iterable[Any]) -> None:
        """Write each of them."""
        for line in lines:
            await self.write(line)

    async def truncate(self, size: int | None = None) -> Any:
        """Cut; may put the file on the disk."""
        return await self._in_thread("truncate", size)

    async def _next(self) -> Any:
        if line := await self.readline():
            return line
        raise StopAsyncIteration


class AsyncTemporaryDirectory:
    """As tempfile.TemporaryDirectory."""

    def __init__(self, file: Any, loop: Any = None, executor: Any = None) -> None:
        self._file = file
        self._executor = executor

    name = attribute("name")

    async def cleanup(self) -> None:
        """Remove it."""
        await in_thread(self._executor, self._file.cleanup)

    async def close(self) -> None:
        """The same."""
        await self.cleanup()

    async def _leave(self, *exc: Any) -> None:
        await self.cleanup()
