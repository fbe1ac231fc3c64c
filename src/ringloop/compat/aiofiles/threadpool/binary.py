"""Binary files."""

from __future__ import annotations

import io
from typing import Any

from ringloop.compat.aiofiles.base import (
    AsyncBase,
    AsyncIndirectBase,
    Detached,
    attribute,
    awaited,
    awaited_fact,
    direct,
)


class _Common:
    close = awaited("close")
    flush = awaited("flush")
    isatty = awaited_fact("isatty")
    read = awaited("read")
    readinto = awaited("readinto")
    readline = awaited("readline")
    readlines = awaited("readlines")
    seek = awaited("seek")
    seekable = awaited_fact("seekable")
    tell = awaited("tell")
    truncate = awaited("truncate")
    writable = awaited_fact("writable")
    write = awaited("write")
    writelines = awaited("writelines")

    fileno = direct("fileno")
    readable = direct("readable")

    closed = attribute("closed")
    name = attribute("name")
    mode = attribute("mode")


class _Buffered(_Common):
    read1 = awaited("read1")


class _File(_Common):
    readall = awaited("readall")


class AsyncBufferedIOBase(_Buffered, AsyncBase):
    """As io.BufferedWriter."""

    def detach(self) -> Any:
        """The raw file, an io.FileIO; this object cannot be used any more."""
        file, self._file = self._file, Detached()
        return file.detach()

    @property
    def raw(self) -> Any:
        """The raw file, an io.FileIO; of a file opened here one of the same descriptor."""
        if not self._native:
            return self._file.raw
        return io.FileIO(self._file.fileno(), self._file.mode, closefd=False)


class AsyncBufferedReader(AsyncBufferedIOBase):
    """As io.BufferedReader and io.BufferedRandom."""

    peek = awaited("peek")


class AsyncFileIO(_File, AsyncBase):
    """As io.FileIO."""


class AsyncIndirectBufferedIOBase(_Buffered, AsyncIndirectBase):
    """The same, of what is looked up for each call."""

    detach = direct("detach")
    raw = attribute("raw")


class AsyncIndirectBufferedReader(AsyncIndirectBufferedIOBase):
    """The same, with `peek`."""

    peek = awaited("peek")


class AsyncIndirectFileIO(_File, AsyncIndirectBase):
    """The same, of a raw file."""
