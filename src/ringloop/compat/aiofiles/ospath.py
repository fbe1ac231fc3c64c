"""Functions of `os.path`, awaited."""

from __future__ import annotations

import functools
from os import path
from typing import TYPE_CHECKING, Any

from ringloop import fs
from ringloop.compat.aiofiles.base import wrap

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

__all__ = [
    "abspath",
    "exists",
    "getatime",
    "getctime",
    "getmtime",
    "getsize",
    "isdir",
    "isfile",
    "islink",
    "ismount",
    "samefile",
    "sameopenfile",
]


def _ours(
    function: Callable[..., Any], native: Callable[..., Any]
) -> Callable[..., Coroutine[Any, Any, Any]]:
    @functools.wraps(function)
    async def run(*args: Any, loop: Any = None, executor: Any = None, **kwargs: Any) -> Any:
        return await native(*args, **kwargs)

    return run


async def _getatime(filename: Any) -> float:
    return (await fs.stat(filename)).st_atime


async def _getctime(filename: Any) -> float:
    return (await fs.stat(filename)).st_ctime


async def _getmtime(filename: Any) -> float:
    return (await fs.stat(filename)).st_mtime


exists = _ours(path.exists, fs.exists)
getatime = _ours(path.getatime, _getatime)
getctime = _ours(path.getctime, _getctime)
getmtime = _ours(path.getmtime, _getmtime)
getsize = _ours(path.getsize, fs.getsize)
isdir = _ours(path.isdir, fs.isdir)
isfile = _ours(path.isfile, fs.isfile)
islink = _ours(path.islink, fs.islink)

abspath = wrap(path.abspath)
ismount = wrap(path.ismount)
samefile = wrap(path.samefile)
sameopenfile = wrap(path.sameopenfile)
