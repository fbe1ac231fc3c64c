"""Directories, and what is rare enough to be done in a thread: as `os` and `shutil` name it."""

from __future__ import annotations

import asyncio
import errno
import functools
import glob as _glob
import os
import shutil
import stat as _stat
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from ringloop.fs._meta import stat
from ringloop.fs._threads import run

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from typing import Self

T = TypeVar("T")
StrPath = str | os.PathLike[str]
AnyPath = StrPath | bytes | os.PathLike[bytes]

BATCH = 256
COPY_BYTES = 16 << 20
"""What is copied between two looks at whether the caller was cancelled."""


async def exists(path: AnyPath | int) -> bool:
    """True if the path leads to something; as os.path.exists."""
    return await _mode(path) is not None


async def isfile(path: AnyPath | int) -> bool:
    """True if the path leads to a regular file."""
    mode = await _mode(path)
    return mode is not None and _stat.S_ISREG(mode)


async def isdir(path: AnyPath | int) -> bool:
    """True if the path leads to a directory."""
    mode = await _mode(path)
    return mode is not None and _stat.S_ISDIR(mode)


async def islink(path: AnyPath) -> bool:
    """True if the path is a symbolic link."""
    mode = await _mode(path, follow_symlinks=False)
    return mode is not None and _stat.S_ISLNK(mode)


async def _mode(path: AnyPath | int, *, follow_symlinks: bool = True) -> int | None:
    try:
        return (await stat(path, follow_symlinks=follow_symlinks)).st_mode
    except (OSError, ValueError):
        return None


async def getsize(path: AnyPath | int) -> int:
    """The size of a file in bytes."""
    return (await stat(path)).st_size


async def statvfs(path: AnyPath | int) -> os.statvfs_result:
    """What is known of the file system that has `path`."""
    return await run(os.statvfs, path)


async def access(path: AnyPath, mode: int) -> bool:
    """Whether this process may do `mode` (os.R_OK and so on) with `path`."""
    return await run(os.access, path, mode)


async def chmod(path: AnyPath | int, mode: int, *, follow_symlinks: bool = True) -> None:
    """Change the permissions."""
    await run(functools.partial(os.chmod, path, mode, follow_symlinks=follow_symlinks))


async def utime(
    path: AnyPath | int,
    times: tuple[float, float] | None = None,
    *,
    ns: tuple[int, int] | None = None,
) -> None:
    """Set the times of access and change, in seconds or nanoseconds; default: now."""

    def call() -> None:
        if ns is None:
            os.utime(path, times)
        else:
            os.utime(path, ns=ns)

    await run(call)


async def readlink(path: StrPath) -> str:
    """Where a symbolic link points to."""
    return await run(os.readlink, path)


async def listdir(path: StrPath = ".") -> list[str]:
    """The names in a directory, in no order."""
    return await run(os.listdir, path)


async def makedirs(path: AnyPath, mode: int = 0o777, exist_ok: bool = False) -> None:
    """Create a directory and those above it."""
    await run(os.makedirs, path, mode, exist_ok)


async def removedirs(path: StrPath) -> None:
    """Remove an empty directory, and those above it that are empty then."""
    await run(os.removedirs, path)


async def renames(old: StrPath, new: StrPath) -> None:
    """Rename; directories above `new` are made, those above `old` that are empty removed."""
    await run(os.renames, old, new)


async def rmtree(path: AnyPath, ignore_errors: bool = False) -> None:
    """Remove a directory and all that is in it. Cancelling does not stop it."""
    await run(shutil.rmtree, path, ignore_errors)


async def sendfile(out_fd: int, in_fd: int, offset: int | None, count: int) -> int:
    """os.sendfile in a thread; gives the number of bytes, which may be fewer."""
    return await run(os.sendfile, out_fd, in_fd, offset, count)


# -- copying -------------------------------------------------------------------------


def _check_copy(src: AnyPath, dst: AnyPath) -> None:
    """Refuse what shutil.copyfile() does, with its words."""
    found = os.stat(src)
    with suppress(FileNotFoundError):
        there = os.stat(dst)
        if os.path.samestat(found, there):
            raise shutil.SameFileError(f"{src!r} and {dst!r} are the same file")
        if _stat.S_ISFIFO(there.st_mode):
            raise shutil.SpecialFileError(f"`{os.fsdecode(dst)}` is a named pipe")
    if _stat.S_ISFIFO(found.st_mode):
        raise shutil.SpecialFileError(f"`{os.fsdecode(src)}` is a named pipe")


def _copy(src: AnyPath, dst: AnyPath, stop: threading.Event) -> None:
    _check_copy(src, dst)
    with open(src, "rb", 0) as a, open(dst, "wb", 0) as b:
        in_kernel = True
        while not stop.is_set():
            if in_kernel:
                try:
                    if not os.copy_file_range(a.fileno(), b.fileno(), COPY_BYTES):
                        # Files of /proc say so although they have something.
                        in_kernel = a.tell() > 0
                        if in_kernel:
                            return
                    continue
                except OSError as exc:
                    if exc.errno not in (
                        errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM,
                    ):  # fmt: skip
                        raise
                    in_kernel = False
            data = memoryview(a.read(1 << 20))
            if not data:
                return
            while data:
                data = data[b.write(data) :]
        if _stat.S_ISREG(os.fstat(b.fileno()).st_mode):
            os.unlink(os.path.realpath(dst))  # the half of a file


async def _until_stopped(stop: threading.Event, call: Callable[[], None]) -> None:
    """Run `call`; when cancelled, set `stop` and come back when it has heeded it.

    Cancelled once more, it comes back at once.
    """
    task = asyncio.ensure_future(run(call))
    try:
        await asyncio.shield(task)
    except asyncio.CancelledError:
        stop.set()
        await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # is not told any more
        raise


async def copyfile(src: AnyPath, dst: AnyPath) -> AnyPath:
    """Copy the contents of a file, in the kernel where it can; gives `dst`.

    If the call is cancelled the copy stops, and the half that was written is removed.
    """
    stop = threading.Event()
    await _until_stopped(stop, lambda: _copy(src, dst, stop))
    return dst


async def copytree(
    src: StrPath,
    dst: StrPath,
    *,
    symlinks: bool = False,
    ignore: Callable[[Any, list[str]], Any] | None = None,
    dirs_exist_ok: bool = False,
) -> StrPath:
    """Copy a directory and all that is in it, with times and permissions; gives `dst`.

    If the call is cancelled, the copy stops with the file that it is at.
    """
    stop = threading.Event()

    def copy(a: str, b: str) -> str:
        if not stop.is_set():
            _copy(a, b, stop)
            if not stop.is_set():
                shutil.copystat(a, b)
        return b

    def call() -> None:
        shutil.copytree(src, dst, symlinks, ignore, copy, dirs_exist_ok=dirs_exist_ok)

    await _until_stopped(stop, call)
    return dst


# -- iterators -----------------------------------------------------------------------


def _take(iterator: Iterator[T], n: int) -> list[T]:
    found = []
    for item in iterator:
        found.append(item)
        if len(found) == n:
            break
    return found


async def each(make: Callable[[], Iterator[T]], batch: int = BATCH) -> AsyncIterator[T]:
    """The items of a blocking iterator, fetched in a thread, `batch` at a time."""
    iterator = await run(make)
    while found := await run(_take, iterator, batch):
        for item in found:
            yield item


class Scandir:
    """The entries of a directory: an async iterator and context manager.

    They are os.DirEntry objects. Their is_dir(), is_file() and is_symlink() do not block;
    instead of their stat() await `fs.stat(entry.path)`.
    """

    def __init__(self, path: StrPath) -> None:
        self._path = path
        self._iterator: Any = None
        self._found: list[os.DirEntry[str]] = []
        self._over = False
        # Held while a thread reads: closing the directory meanwhile frees what it reads from.
        self._reading = threading.Lock()

    def _fetch(self) -> list[os.DirEntry[str]]:
        found: list[os.DirEntry[str]] = []
        try:
            with self._reading:
                if self._over:
                    return found
                if self._iterator is None:
                    self._iterator = os.scandir(self._path)
                found = _take(self._iterator, BATCH)
                for entry in found:
                    if entry.is_symlink():
                        with suppress(OSError):
                            entry.is_dir()  # asks the file system once, here
        finally:
            if self._over or not found:
                self._close()
        found.reverse()
        return found

    def _close(self) -> None:
        """Close the directory; if a thread reads it, that thread does so afterwards."""
        if self._reading.acquire(blocking=False):
            try:
                if self._iterator is not None:
                    self._iterator.close()
            finally:
                self._reading.release()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> os.DirEntry[str]:
        if not self._found and not self._over:
            try:
                found = await run(self._fetch)
            except BaseException:
                self._over = True  # a thread that is at it yet closes it
                raise
            self._over = not found
            self._found[:0] = found  # another task may have brought some meanwhile
        if not self._found:
            raise StopAsyncIteration
        return self._found.pop()

    async def aclose(self) -> None:
        """Close the directory."""
        self._found = []
        self._over = True
        self._close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()


def scandir(path: StrPath = ".") -> Scandir:
    """The entries of a directory; see `Scandir`."""
    return Scandir(path)


def walk(
    top: StrPath,
    topdown: bool = True,
    onerror: Callable[[OSError], object] | None = None,
    followlinks: bool = False,
) -> AsyncIterator[tuple[str, list[str], list[str]]]:
    """As os.walk: (directory, its directories, its files), from the top down or up.

    Top down, what is taken out of the list of directories is not entered. `onerror` is
    called in a thread.
    """
    return each(lambda: os.walk(os.fspath(top), topdown, onerror, followlinks), 1)


def glob(
    pattern: str, *, root_dir: StrPath | None = None, recursive: bool = False
) -> AsyncIterator[str]:
    """The paths that match `pattern`, as glob.iglob gives them."""
    return each(lambda: _glob.iglob(pattern, root_dir=root_dir, recursive=recursive))
