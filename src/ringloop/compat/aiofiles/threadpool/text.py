"""Text files."""

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


class _Text:
    close = awaited("close")
    flush = awaited("flush")
    isatty = awaited_fact("isatty")
    read = awaited("read")
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
    encoding = attribute("encoding")
    errors = attribute("errors")
    line_buffering = attribute("line_buffering")
    mode = attribute("mode")
    name = attribute("name")
    newlines = attribute("newlines")
    buffer = attribute("buffer")


class AsyncTextIOWrapper(_Text, AsyncBase):
    """As io.TextIOWrapper. `buffer` of a file opened here is a `ringloop.fs.BinaryFile`."""

    def detach(self) -> Any:
        """The binary file, one of `io`'s; this object cannot be used any more."""
        file, self._file = self._file, Detached()
        if not self._native:
            return file.detach()
        raw = file.buffer.detach()
        if not raw.readable():
            return io.BufferedWriter(raw)
        return io.BufferedRandom(raw) if raw.writable() else io.BufferedReader(raw)


class AsyncTextIndirectIOWrapper(_Text, AsyncIndirectBase):
    """The same, of what is looked up for each call."""

    detach = direct("detach")
