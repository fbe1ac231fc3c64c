import os
from collections.abc import Awaitable, Callable
from typing import Any, Generic, Literal, TypeVar, overload

from ringloop.fs._call import Call
from ringloop.fs._file import BinaryFile
from ringloop.fs._text import TextFile

_F = TypeVar("_F")
_Name = str | bytes | int | os.PathLike[str] | os.PathLike[bytes]
_Opener = Callable[[Any, int], int]
_Binary = Literal[
    "rb", "wb", "ab", "xb", "br", "bw", "ba", "bx", "r+b", "w+b", "a+b", "x+b",
    "rb+", "wb+", "ab+", "xb+",
]  # fmt: skip
_Text = Literal[
    "r", "w", "a", "x", "rt", "wt", "at", "xt", "r+", "w+", "a+", "x+", "r+t", "w+t", "a+t", "x+t",
]  # fmt: skip

class OpenCall(Call[_F], Generic[_F]):
    async def from_path(self) -> _F: ...
    async def open_path(self, more_flags: int) -> int: ...
    async def open_fifo(self) -> int: ...
    async def from_opener(self) -> _F: ...
    def __aenter__(self) -> Awaitable[_F]: ...
    def __aexit__(self, *exc: object) -> Call[None]: ...

@overload
def open(
    file: _Name,
    mode: _Text = "r",
    buffering: int = -1,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
    closefd: bool = True,
    opener: _Opener | None = None,
) -> OpenCall[TextFile]: ...
@overload
def open(
    file: _Name,
    mode: _Binary,
    buffering: int = -1,
    encoding: None = None,
    errors: None = None,
    newline: None = None,
    closefd: bool = True,
    opener: _Opener | None = None,
) -> OpenCall[BinaryFile]: ...
@overload
def open(
    file: _Name,
    mode: str,
    buffering: int = -1,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
    closefd: bool = True,
    opener: _Opener | None = None,
) -> OpenCall[Any]: ...
def _close_dropped(fd: object) -> None: ...
def _parse(mode: str) -> tuple[int, str, bool]: ...
