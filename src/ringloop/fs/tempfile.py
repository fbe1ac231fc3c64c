"""Temporary files and directories: the names of the module `tempfile`."""

from __future__ import annotations

import asyncio
import os
import tempfile
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from ringloop.fs._meta import unlink
from ringloop.fs._open import open as open_file
from ringloop.fs._threads import run

if TYPE_CHECKING:
    from collections.abc import Generator
    from typing import Self

__all__ = ["NamedTemporaryFile", "TemporaryDirectory", "TemporaryFile"]


def _forget_file(made: tuple[int, str]) -> None:
    os.close(made[0])
    with suppress(FileNotFoundError):
        os.unlink(made[1])


class _Made:
    """Awaited or entered, it makes something; left, it takes that away."""

    async def _make(self) -> Any:
        raise NotImplementedError

    async def aclose(self) -> None:
        """Take it away."""
        raise NotImplementedError

    def __await__(self) -> Generator[Any, Any, Any]:
        return self._make().__await__()

    async def __aenter__(self) -> Any:
        return await self._make()

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()


class NamedTemporaryFile(_Made):
    """A file with a name, which is removed when it is closed, unless `delete` is False.

    What it gives has the methods of the file that `fs.open()` gives. The arguments are
    those of tempfile.NamedTemporaryFile; with delete_on_close=False the file outlives
    `close()`, and is removed at the end of the `async with`, or by `aclose()`.
    """

    _named = True
    _file: Any = None
    _closer: asyncio.Future[None] | None = None

    def __init__(
        self,
        mode: str = "w+b",
        buffering: int = -1,
        encoding: str | None = None,
        newline: str | None = None,
        suffix: str | None = None,
        prefix: str | None = None,
        dir: str | os.PathLike[str] | None = None,
        delete: bool = True,
        *,
        errors: str | None = None,
        delete_on_close: bool = True,
    ) -> None:
        self._open = (mode, buffering, encoding, errors, newline)
        self._where = (suffix, prefix, dir)
        self.delete = delete
        self._delete_on_close = delete_on_close
        self.name = ""

    async def _make(self) -> Any:
        fd, self.name = await run(self._create, dropped=_forget_file)
        try:
            self._file = await open_file(fd, *self._open)
        except BaseException:
            _forget_file((fd, self.name))
            raise
        return self if self._named else self._file

    def _create(self) -> tuple[int, str]:
        fd, path = tempfile.mkstemp(*self._where)
        if not self._named:
            os.unlink(path)
        return fd, path

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def __aiter__(self) -> Any:
        return self._file

    def __anext__(self) -> Any:
        return self._file.__anext__()

    @property
    def file(self) -> Any:
        """The file under it, as `fs.open()` gives it."""
        return self._file

    async def close(self) -> None:
        """Close and remove it. Both are done even if the caller is cancelled."""
        if self._delete_on_close:
            await self.aclose()
        else:
            await self._file.close()

    async def _close(self) -> None:
        try:
            await self._file.close()
        finally:
            if self.delete and self._named:
                with suppress(FileNotFoundError):  # it was renamed
                    await unlink(self.name)

    async def aclose(self) -> None:
        """Close and remove it, whatever `delete_on_close` says."""
        if self._closer is None:
            self._closer = asyncio.ensure_future(self._close())
        await asyncio.shield(self._closer)

    def __del__(self) -> None:
        """Nobody closed it: its file warns, and closes itself."""
        if self._file is not None and self._closer is None and self.delete and self._named:
            with suppress(FileNotFoundError):
                os.unlink(self.name)


class TemporaryFile(NamedTemporaryFile):
    """A file without a name. The arguments are those of tempfile.TemporaryFile."""

    _named = False


class TemporaryDirectory(_Made):
    """A directory, which is removed with all that is in it.

    Entered, it gives its path; awaited, an object that has it as `name`.
    """

    def __init__(
        self,
        suffix: str | None = None,
        prefix: str | None = None,
        dir: str | os.PathLike[str] | None = None,
    ) -> None:
        self._where = (suffix, prefix, dir)
        self._made: Any = None
        self.name = ""

    async def _make(self) -> Self:
        self._made = await run(
            tempfile.TemporaryDirectory, *self._where, dropped=lambda made: made.cleanup()
        )
        self.name = self._made.name
        return self

    async def cleanup(self) -> None:
        """Remove it."""
        await run(self._made.cleanup)

    async def aclose(self) -> None:
        """The same."""
        await self.cleanup()

    async def __aenter__(self) -> str:
        return (await self._make()).name

    def __aiter__(self) -> Self:
        raise TypeError("a directory is not iterated over: use fs.scandir()")
