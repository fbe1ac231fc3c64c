"""Whole files written at once, and read as text."""

from __future__ import annotations

import asyncio
import io
import os
import secrets
import stat as _stat
from typing import TYPE_CHECKING, Any

from ringloop.fs._meta import rename, stat, unlink
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
    if not atomic:
        async with open_file(path, "wb", buffering=0) as f:
            return await _write_all(f, data)
    folder, name = os.path.split(os.fspath(path))
    mark = secrets.token_hex(6)
    beside: Any = os.path.join(
        folder, b"." + name[:200] + b"." + mark.encode() if isinstance(name, bytes) else
        f".{name[:200]}.{mark}",
    )  # fmt: skip
    opening = asyncio.ensure_future(open_file(beside, "xb", buffering=0))
    try:
        # Whatever comes, wait for the open: else it might make the file after we removed it.
        await asyncio.wait([opening])
    except asyncio.CancelledError:
        await asyncio.wait([opening])
        if opening.exception() is None:
            await opening.result().close()
            await _discard(beside)
        raise
    made = opening.exception() is None
    try:
        async with await opening as f:
            size = await _write_all(f, data)
            try:
                mode = _stat.S_IMODE((await stat(path)).st_mode)
            except FileNotFoundError:
                pass
            else:
                await run(os.fchmod, f.fileno(), mode)
            await f.fsync()
        await rename(beside, path)
        made = False
    finally:
        if made:
            await asyncio.shield(_discard(beside))
    return size


async def _write_all(f: Any, data: Buffer) -> int:
    view = memoryview(data).cast("B") if not isinstance(data, bytes) else data
    size = len(view)
    done = 0
    while done < size:
        done += await f.write(view[done:] if done else view)
    return size


async def _discard(path: Any) -> None:
    try:
        await unlink(path)
    except OSError:
        pass  # it was renamed, or never made


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
