"""`open()` and the standard streams."""

from __future__ import annotations

import builtins
import sys
from functools import singledispatch
from io import (
    BufferedIOBase,
    BufferedRandom,
    BufferedReader,
    BufferedWriter,
    FileIO,
    TextIOBase,
)
from typing import Any

from ringloop import fs
from ringloop.compat.aiofiles.base import AiofilesContextManager, in_thread
from ringloop.compat.aiofiles.threadpool.binary import (
    AsyncBufferedIOBase,
    AsyncBufferedReader,
    AsyncFileIO,
    AsyncIndirectBufferedIOBase,
)
from ringloop.compat.aiofiles.threadpool.text import (
    AsyncTextIndirectIOWrapper,
    AsyncTextIOWrapper,
)

__all__ = [
    "AsyncBufferedIOBase",
    "AsyncBufferedReader",
    "AsyncFileIO",
    "AsyncIndirectBufferedIOBase",
    "AsyncTextIOWrapper",
    "AsyncTextIndirectIOWrapper",
    "open",
    "stderr",
    "stderr_bytes",
    "stdin",
    "stdin_bytes",
    "stdout",
    "stdout_bytes",
    "wrap",
]

# Tests that replace this get what it gives, wrapped, as aiofiles documents.
sync_open: Any = builtins.open


def open(
    file: Any,
    mode: str = "r",
    buffering: int = -1,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
    closefd: bool = True,
    opener: Any = None,
    *,
    loop: Any = None,
    executor: Any = None,
) -> AiofilesContextManager:
    """Open a file: `await open(...)`, or `async with open(...) as f`; as the builtin."""
    args = (file, mode, buffering, encoding, errors, newline, closefd, opener)
    return AiofilesContextManager(_open(args, executor))


async def _open(args: tuple[Any, ...], executor: Any) -> Any:
    if sync_open is not builtins.open:
        names = ("mode", "buffering", "encoding", "errors", "newline", "closefd", "opener")
        kwargs = dict(zip(names, args[1:], strict=True))
        return wrap(await in_thread(executor, sync_open, args[0], **kwargs), executor=executor)
    f = await fs.open(*args)
    if isinstance(f, fs.TextFile):
        return AsyncTextIOWrapper(f, executor=executor)
    if args[2] == 0:
        return AsyncFileIO(f, executor=executor)
    kind = AsyncBufferedReader if f.readable() else AsyncBufferedIOBase
    return kind(f, executor=executor)


@singledispatch
def wrap(file: Any, *, loop: Any = None, executor: Any = None) -> Any:
    """An open file of `io`'s kind with awaitable methods, each called in a thread."""
    raise TypeError(f"Unsupported io type: {file}.")


@wrap.register(TextIOBase)
def _(file: Any, *, loop: Any = None, executor: Any = None) -> AsyncTextIOWrapper:
    return AsyncTextIOWrapper(file, loop, executor)


@wrap.register(BufferedWriter)
@wrap.register(BufferedIOBase)
def _(file: Any, *, loop: Any = None, executor: Any = None) -> AsyncBufferedIOBase:
    return AsyncBufferedIOBase(file, loop, executor)


@wrap.register(BufferedReader)
@wrap.register(BufferedRandom)
def _(file: Any, *, loop: Any = None, executor: Any = None) -> AsyncBufferedReader:
    return AsyncBufferedReader(file, loop, executor)


@wrap.register(FileIO)
def _(file: Any, *, loop: Any = None, executor: Any = None) -> AsyncFileIO:
    return AsyncFileIO(file, loop, executor)


def _text(name: str) -> AsyncTextIndirectIOWrapper:
    return AsyncTextIndirectIOWrapper(f"sys.{name}", None, None, lambda: getattr(sys, name))


def _bytes(name: str) -> AsyncIndirectBufferedIOBase:
    text = lambda: getattr(sys, name)  # noqa: E731
    made = AsyncIndirectBufferedIOBase(
        f"sys.{name}.buffer", None, None, lambda: getattr(sys, name).buffer
    )
    made._owner = text
    return made


stdin, stdout, stderr = map(_text, ("stdin", "stdout", "stderr"))
stdin_bytes, stdout_bytes, stderr_bytes = map(_bytes, ("stdin", "stdout", "stderr"))
