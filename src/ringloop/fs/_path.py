"""`Path`: pathlib's names, awaited where they may block."""

from __future__ import annotations

import errno
import functools
import os
import pathlib
import stat as _stat
from typing import TYPE_CHECKING, Any

from ringloop.fs import _dirs, _meta, _write
from ringloop.fs._open import open as open_file
from ringloop.fs._threads import run
from ringloop.fs._whole import read_bytes

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from typing import Self

    from _typeshed import ReadableBuffer as Buffer


class Path(pathlib.PurePosixPath):
    """A pathlib.PurePath whose methods that ask the file system are awaited."""

    __slots__ = ()

    @classmethod
    async def cwd(cls) -> Self:
        """The current directory."""
        return cls(os.getcwd())

    @classmethod
    async def home(cls) -> Self:
        """The user's home directory."""
        return cls(await run(pathlib.Path.home))

    def _there(self) -> pathlib.Path:
        return pathlib.Path(self)

    def _same(self, path: os.PathLike[str]) -> Self:
        return type(self)(path)

    def _asked(self, name: str, *args: Any, **kwargs: tuple[Any, Any]) -> Callable[[], Any]:
        """A call of pathlib's; (value, default) of arguments that not every Python has."""
        given = {key: value for key, (value, default) in kwargs.items() if value != default}
        return functools.partial(getattr(self._there(), name), *args, **given)

    # -- what it is ------------------------------------------------------------------

    def stat(self, *, follow_symlinks: bool = True) -> Awaitable[os.stat_result]:
        """As os.stat."""
        return _meta.stat(self, follow_symlinks=follow_symlinks)

    def lstat(self) -> Awaitable[os.stat_result]:
        """As os.lstat."""
        return _meta.lstat(self)

    async def exists(self, *, follow_symlinks: bool = True) -> bool:
        """True if there is such a path."""
        return await self._is(lambda mode: True, follow_symlinks=follow_symlinks)

    async def _is(self, kind: Callable[[int], bool], *, follow_symlinks: bool = True) -> bool:
        try:
            return kind((await self.stat(follow_symlinks=follow_symlinks)).st_mode)
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return False
        except OSError as exc:
            if exc.errno in (errno.ELOOP, errno.EBADF):
                return False
            raise

    async def is_file(self, *, follow_symlinks: bool = True) -> bool:
        """True if it leads to a regular file."""
        return await self._is(_stat.S_ISREG, follow_symlinks=follow_symlinks)

    async def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        """True if it leads to a directory."""
        return await self._is(_stat.S_ISDIR, follow_symlinks=follow_symlinks)

    async def is_symlink(self) -> bool:
        """True if it is a symbolic link."""
        return await self._is(_stat.S_ISLNK, follow_symlinks=False)

    async def is_fifo(self) -> bool:
        """True if it leads to a FIFO."""
        return await self._is(_stat.S_ISFIFO)

    async def is_socket(self) -> bool:
        """True if it leads to a socket."""
        return await self._is(_stat.S_ISSOCK)

    async def is_block_device(self) -> bool:
        """True if it leads to a block device."""
        return await self._is(_stat.S_ISBLK)

    async def is_char_device(self) -> bool:
        """True if it leads to a character device."""
        return await self._is(_stat.S_ISCHR)

    async def is_mount(self) -> bool:
        """True if it is a mount point."""
        return await run(self._there().is_mount)

    async def samefile(self, other_path: str | os.PathLike[str]) -> bool:
        """True if both lead to the same file."""
        return os.path.samestat(await self.stat(), await _meta.stat(other_path))

    async def owner(self, *, follow_symlinks: bool = True) -> str:
        """The name of the owner."""
        return await run(self._asked("owner", follow_symlinks=(follow_symlinks, True)))

    async def group(self, *, follow_symlinks: bool = True) -> str:
        """The name of the group."""
        return await run(self._asked("group", follow_symlinks=(follow_symlinks, True)))

    async def absolute(self) -> Self:
        """The path from the root on, without resolving anything."""
        return self._same(self._there().absolute())

    async def resolve(self, strict: bool = False) -> Self:
        """The path from the root on without symbolic links."""
        return self._same(await run(self._there().resolve, strict))

    async def expanduser(self) -> Self:
        """With ~ replaced by a home directory."""
        return self._same(await run(self._there().expanduser))

    async def readlink(self) -> Self:
        """Where the symbolic link points to."""
        return self._same(pathlib.Path(await _dirs.readlink(self)))

    # -- what is in it ---------------------------------------------------------------

    def open(
        self,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
    ) -> Any:
        """`fs.open()` of this path."""
        return open_file(self, mode, buffering, encoding, errors, newline)

    def read_bytes(self) -> Awaitable[bytes]:
        """The contents."""
        return read_bytes(self)

    async def read_text(
        self, encoding: str | None = None, errors: str | None = None, newline: str | None = None
    ) -> str:
        """The contents as text."""
        return await _write.read_text(self, encoding, errors, newline)

    async def write_bytes(self, data: Buffer, *, atomic: bool = False) -> int:
        """`fs.write_bytes()` of this path."""
        return await _write.write_bytes(self, data, atomic=atomic)

    async def write_text(
        self,
        data: str,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
        *,
        atomic: bool = False,
    ) -> int:
        """`fs.write_text()` of this path."""
        return await _write.write_text(self, data, encoding, errors, newline, atomic=atomic)

    async def iterdir(self) -> AsyncIterator[Self]:
        """The paths in the directory."""
        for name in await _dirs.listdir(self):
            yield self / name

    async def glob(
        self, pattern: str, *, case_sensitive: bool | None = None, recurse_symlinks: bool = False
    ) -> AsyncIterator[Self]:
        """The paths below that match `pattern`."""
        async for path in self._matching("glob", pattern, case_sensitive, recurse_symlinks):
            yield path

    async def rglob(
        self, pattern: str, *, case_sensitive: bool | None = None, recurse_symlinks: bool = False
    ) -> AsyncIterator[Self]:
        """The same with `**/` in front."""
        async for path in self._matching("rglob", pattern, case_sensitive, recurse_symlinks):
            yield path

    async def _matching(
        self, how: str, pattern: str, case_sensitive: bool | None, recurse_symlinks: bool
    ) -> AsyncIterator[Self]:
        call = self._asked(
            how,
            pattern,
            case_sensitive=(case_sensitive, None),
            recurse_symlinks=(recurse_symlinks, False),
        )
        async for path in _dirs.each(lambda: iter(call())):
            yield self._same(path)

    async def walk(
        self,
        top_down: bool = True,
        on_error: Callable[[OSError], object] | None = None,
        follow_symlinks: bool = False,
    ) -> AsyncIterator[tuple[Self, list[str], list[str]]]:
        """As pathlib.Path.walk."""
        async for folder, dirs, files in _dirs.walk(self, top_down, on_error, follow_symlinks):
            yield type(self)(folder), dirs, files

    # -- changes ---------------------------------------------------------------------

    async def mkdir(self, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        """Create the directory."""
        await run(self._there().mkdir, mode, parents, exist_ok)

    async def touch(self, mode: int = 0o666, exist_ok: bool = True) -> None:
        """Create the file, or set its time."""
        await run(self._there().touch, mode, exist_ok)

    async def unlink(self, missing_ok: bool = False) -> None:
        """Remove the file or symbolic link."""
        try:
            await _meta.unlink(self)
        except FileNotFoundError:
            if not missing_ok:
                raise

    async def rmdir(self) -> None:
        """Remove the empty directory."""
        await _meta.rmdir(self)

    async def rename(self, target: str | os.PathLike[str]) -> Self:
        """Rename it; gives the new path."""
        await _meta.rename(self, target)
        return self._same(pathlib.Path(target))

    async def replace(self, target: str | os.PathLike[str]) -> Self:
        """The same."""
        return await self.rename(target)

    async def symlink_to(
        self, target: str | os.PathLike[str], target_is_directory: bool = False
    ) -> None:
        """Make it a symbolic link to `target`; what that is matters on Windows only."""
        await _meta.symlink(target, self)

    async def hardlink_to(self, target: str | os.PathLike[str]) -> None:
        """Make it a hard link to the file `target`."""
        await _meta.link(target, self)

    async def chmod(self, mode: int, *, follow_symlinks: bool = True) -> None:
        """Change the permissions."""
        await _dirs.chmod(self, mode, follow_symlinks=follow_symlinks)
