"""Functions of `os`, awaited."""

from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING, Any

from ringloop import fs
from ringloop.compat.aiofiles import ospath as path
from ringloop.compat.aiofiles.base import in_thread, wrap

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

__all__ = [
    "access",
    "getcwd",
    "link",
    "listdir",
    "makedirs",
    "mkdir",
    "path",
    "readlink",
    "remove",
    "removedirs",
    "rename",
    "renames",
    "replace",
    "rmdir",
    "scandir",
    "sendfile",
    "stat",
    "statvfs",
    "symlink",
    "unlink",
    "wrap",
]

DIRECTORIES = {"dir_fd", "src_dir_fd", "dst_dir_fd"}


def _ours(
    function: Callable[..., Any], native: Callable[..., Any]
) -> Callable[..., Coroutine[Any, Any, Any]]:
    """`native`, unless a path is relative to a descriptor: then the function, in a thread."""

    @functools.wraps(function)
    async def run(*args: Any, loop: Any = None, executor: Any = None, **kwargs: Any) -> Any:
        if DIRECTORIES.isdisjoint(kwargs):
            return await native(*args, **kwargs)
        return await in_thread(executor, function, *args, **kwargs)

    return run


def _link(src: Any, dst: Any, *, follow_symlinks: bool = True) -> Any:
    return fs.link(src, dst)  # Linux's link(2) follows none


def _symlink(src: Any, dst: Any, target_is_directory: bool = False) -> Any:
    return fs.symlink(src, dst)


link = _ours(os.link, _link)
mkdir = _ours(os.mkdir, fs.mkdir)
remove = _ours(os.remove, fs.remove)
rename = _ours(os.rename, fs.rename)
replace = _ours(os.replace, fs.replace)
rmdir = _ours(os.rmdir, fs.rmdir)
stat = _ours(os.stat, fs.stat)
symlink = _ours(os.symlink, _symlink)
unlink = _ours(os.unlink, fs.unlink)

access = wrap(os.access)
getcwd = wrap(os.getcwd)
listdir = wrap(os.listdir)
makedirs = wrap(os.makedirs)
readlink = wrap(os.readlink)
removedirs = wrap(os.removedirs)
renames = wrap(os.renames)
scandir = wrap(os.scandir)
sendfile = wrap(os.sendfile)
statvfs = wrap(os.statvfs)
