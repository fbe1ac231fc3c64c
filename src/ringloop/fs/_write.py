"""Whole files written at once, and read as text."""

from __future__ import annotations

import asyncio
import io
import os
import secrets
import stat as _stat
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from ringloop.fs._meta import rename, unlink
from ringloop.fs._open import open as open_file
from ringloop.fs._threads import run
from ringloop.fs._whole import read_bytes

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer


async def read_text(
    path: Any, encoding: str | None = None, errors: str | None = None, newline: str | None = None
) -> str:
    """The contents of a file as text; the arguments are those of `open()`."""
    data = await read_bytes(path)
    encoding = io.text_encoding(encoding)
    with io.TextIOWrapper(io.BytesIO(data), encoding, errors, newline) as text:
        return text.read()


async def write_bytes(path: Any, data: Buffer, *, atomic: bool = False) -> int:
    """Make `data` the contents of a file; gives its length.

    With `atomic=True` it is written to a new file beside, synced, and renamed: whoever
    looks, also after a crash or a cancelled call, finds all of the old or all of the new.
    The permissions stay; the owner does not, and a symbolic link is replaced.
    """
    # Before the file is opened, which empties it.
    view: Buffer = data if isinstance(data, bytes) else _as_bytes(data)
    if not atomic:
        async with open_file(path, "wb", buffering=0) as f:
            return await _write_all(f, view)
    fd, beside, mode = await run(_create_beside, path, dropped=_forget)
    try:
        f = await open_file(fd, "wb", buffering=0)
    except BaseException:
        _forget((fd, beside, mode))
        raise
    try:
        async with f:
            size = await _write_all(f, view)
            if mode is not None:
                await run(_set_mode, os.dup(f.fileno()), mode)
            await f.fsync()
        await rename(beside, path)
    except BaseException:
        await asyncio.shield(_discard(beside))
        raise
    return size


def _as_bytes(data: Buffer) -> memoryview:
    view = memoryview(data)
    return view.cast("B") if view.nbytes else memoryview(b"")


def _create_beside(path: Any) -> tuple[int, Any, int | None]:
    """A new file in the same directory, its path, and the permissions that it is to have.

    Where it is to replace a file, only the owner has access to it until it is complete.
    """
    mode = None
    with suppress(FileNotFoundError):
        mode = _stat.S_IMODE(os.stat(path).st_mode)
    folder = os.path.dirname(os.fspath(path))
    name = f".{secrets.token_hex(6)}.tmp"
    beside = os.path.join(folder, name.encode() if isinstance(folder, bytes) else name)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    return os.open(beside, flags, 0o666 if mode is None else 0o600), beside, mode


def _forget(made: tuple[int, Any, int | None]) -> None:
    os.close(made[0])
    with suppress(OSError):
        os.unlink(made[1])


def _set_mode(fd: int, mode: int) -> None:
    """Of a descriptor of its own: a cancelled call closes the file and does not wait for this."""
    try:
        os.fchmod(fd, mode)
    finally:
        os.close(fd)


async def _write_all(f: Any, data: Any) -> int:
    size = len(data)
    done = 0
    while done < size:
        done += await f.write(memoryview(data)[done:] if done else data)
    return size


async def _discard(path: Any) -> None:
    with suppress(OSError):  # it was renamed
        await unlink(path)


async def write_text(
    path: Any,
    text: str,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
    *,
    atomic: bool = False,
) -> int:
    """Make `text` the contents of a file; gives its length. `atomic` as in `write_bytes`."""
    if not isinstance(text, str):
        raise TypeError(f"data must be str, not {type(text).__name__}")
    data = io.BytesIO()
    encoding = io.text_encoding(encoding)
    with io.TextIOWrapper(data, encoding, errors, newline) as encoder:
        encoder.write(text)
        encoder.flush()
        await write_bytes(path, data.getvalue(), atomic=atomic)
    return len(text)
