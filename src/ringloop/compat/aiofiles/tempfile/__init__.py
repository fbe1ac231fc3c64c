"""Temporary files and directories."""

from __future__ import annotations

import tempfile
from typing import TYPE_CHECKING, Any

from ringloop import fs
from ringloop.compat.aiofiles.base import AiofilesContextManager
from ringloop.compat.aiofiles.tempfile.temptypes import (
    AsyncSpooledTemporaryFile,
    AsyncTemporaryDirectory,
)
from ringloop.compat.aiofiles.threadpool.binary import (
    AsyncBufferedIOBase,
    AsyncBufferedReader,
    AsyncFileIO,
)
from ringloop.compat.aiofiles.threadpool.text import AsyncTextIOWrapper
from ringloop.fs._threads import run

if TYPE_CHECKING:
    import os

__all__ = ["NamedTemporaryFile", "SpooledTemporaryFile", "TemporaryDirectory", "TemporaryFile"]


async def _made(temporary: Any, buffering: int, executor: Any) -> Any:
    f = await temporary
    if isinstance(getattr(f, "file", f), fs.TextFile):
        return AsyncTextIOWrapper(f, executor=executor)
    if buffering == 0:
        return AsyncFileIO(f, executor=executor)
    kind = AsyncBufferedReader if f.readable() else AsyncBufferedIOBase
    return kind(f, executor=executor)


def NamedTemporaryFile(  # noqa: N802 - a class in the standard library
    mode: str = "w+b",
    buffering: int = -1,
    encoding: str | None = None,
    newline: str | None = None,
    suffix: str | None = None,
    prefix: str | None = None,
    dir: str | os.PathLike[str] | None = None,
    delete: bool = True,
    delete_on_close: bool = True,
    loop: Any = None,
    executor: Any = None,
) -> AiofilesContextManager:
    """A file with a name, which is removed when it is closed."""
    where = (suffix, prefix, dir)
    temporary = fs.tempfile.NamedTemporaryFile(
        mode, buffering, encoding, newline, *where, delete, delete_on_close=delete_on_close
    )
    return AiofilesContextManager(_made(temporary, buffering, executor))


def TemporaryFile(  # noqa: N802
    mode: str = "w+b",
    buffering: int = -1,
    encoding: str | None = None,
    newline: str | None = None,
    suffix: str | None = None,
    prefix: str | None = None,
    dir: str | os.PathLike[str] | None = None,
    loop: Any = None,
    executor: Any = None,
) -> AiofilesContextManager:
    """A file without a name."""
    where = (suffix, prefix, dir)
    temporary = fs.tempfile.TemporaryFile(mode, buffering, encoding, newline, *where)
    return AiofilesContextManager(_made(temporary, buffering, executor))


def SpooledTemporaryFile(  # noqa: N802
    max_size: int = 0,
    mode: str = "w+b",
    buffering: int = -1,
    encoding: str | None = None,
    newline: str | None = None,
    suffix: str | None = None,
    prefix: str | None = None,
    dir: str | os.PathLike[str] | None = None,
    loop: Any = None,
    executor: Any = None,
) -> AiofilesContextManager:
    """A file in memory, until it has more than `max_size` bytes."""
    args: Any = (max_size, mode, buffering, encoding, newline, suffix, prefix, dir)

    async def make() -> AsyncSpooledTemporaryFile:
        # In memory yet, so that it does not block.
        return AsyncSpooledTemporaryFile(tempfile.SpooledTemporaryFile(*args), loop, executor)

    return AiofilesContextManager(make())


class AiofilesContextManagerTempDir(AiofilesContextManager):
    """Entered, it gives the directory's path; awaited, an object that has it as `name`."""

    __slots__ = ()

    async def __aenter__(self) -> Any:
        return (await self).name


def TemporaryDirectory(  # noqa: N802
    suffix: str | None = None,
    prefix: str | None = None,
    dir: str | os.PathLike[str] | None = None,
    loop: Any = None,
    executor: Any = None,
) -> AiofilesContextManagerTempDir:
    """A directory, which is removed with all that is in it."""

    async def make() -> AsyncTemporaryDirectory:
        folder = await run(
            tempfile.TemporaryDirectory, suffix, prefix, dir, dropped=lambda made: made.cleanup()
        )
        return AsyncTemporaryDirectory(folder, loop, executor)

    return AiofilesContextManagerTempDir(make())
