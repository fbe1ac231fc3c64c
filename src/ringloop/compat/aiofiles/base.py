"""What files have in common: calls go to a `ringloop.fs` file, or to an object in a thread."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING, Any

from ringloop.fs import BinaryFile, TextFile, _threads, tempfile

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Generator

NATIVE = (BinaryFile, TextFile, tempfile.NamedTemporaryFile)


async def in_thread(
    executor: Any, function: Callable[..., Any], *args: Any, pool: Any = None, **kwargs: Any
) -> Any:
    """Call it in a thread of `executor`, or if that is None of `pool`, or of `fs`."""
    call = functools.partial(function, *args, **kwargs)
    if executor is None:
        return await _threads.run(call, pool=pool)
    return await asyncio.get_running_loop().run_in_executor(executor, call)


def wrap(func: Callable[..., Any]) -> Callable[..., Coroutine[Any, Any, Any]]:
    """The function as a coroutine function that calls it in a thread."""

    @functools.wraps(func)
    async def run(*args: Any, loop: Any = None, executor: Any = None, **kwargs: Any) -> Any:
        return await in_thread(executor, func, *args, **kwargs)

    return run


def awaited(name: str) -> Callable[..., Awaitable[Any]]:
    """A method: the file's own, which is awaited, or the object's, called in a thread."""

    def method(self: AsyncBase, *args: Any, **kwargs: Any) -> Any:
        if self._native:
            return getattr(self._file, name)(*args, **kwargs)
        return self._in_thread(name, *args, **kwargs)

    method.__name__ = name
    return method


def awaited_fact(name: str) -> Callable[..., Awaitable[bool]]:
    """The same for what a `ringloop.fs` file answers without being awaited."""

    async def method(self: AsyncBase) -> Any:
        if self._native:
            return getattr(self._file, name)()
        return await self._in_thread(name)

    method.__name__ = name
    return method


def direct(name: str) -> Callable[..., Any]:
    """A method that is not awaited."""

    def method(self: AsyncBase, *args: Any, **kwargs: Any) -> Any:
        return getattr(self._file, name)(*args, **kwargs)

    method.__name__ = name
    return method


def attribute(name: str) -> Any:
    """An attribute of the file's."""
    return property(lambda self: getattr(self._file, name))


class Detached:
    """In the place of a file that was detached."""

    def __getattr__(self, name: str) -> Any:
        raise ValueError("the file has been detached")


class AsyncBase:
    """A file with awaitable methods; `file` is one of `ringloop.fs`, or one of `io`'s kind."""

    def __init__(self, file: Any, loop: Any = None, executor: Any = None) -> None:
        self._file = file
        self._native = isinstance(file, NATIVE)
        self._executor = executor
        self._pool: Any = None

    def _in_thread(self, name: str, *args: Any, **kwargs: Any) -> Awaitable[Any]:
        call = getattr(self._file, name)
        return in_thread(self._executor, call, *args, pool=self._pool, **kwargs)

    async def _leave(self, *exc: Any) -> None:
        if not self._native:
            await self._in_thread("__exit__", *exc)
        elif isinstance(self._file, tempfile.NamedTemporaryFile):
            await self._file.aclose()
        else:
            await self._file.close()

    def __aiter__(self) -> Any:
        return self._file.__aiter__() if self._native else self

    def __anext__(self) -> Any:
        return anext(self._file) if self._native else self._next()

    async def _next(self) -> Any:
        if line := await self._in_thread("readline"):
            return line
        raise StopAsyncIteration

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._file!r}>"


def _call(owner: object, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return function(*args, **kwargs)


class AsyncIndirectBase(AsyncBase):
    """A file that is looked up for each call, as sys.stdin may be replaced.

    It has one thread of its own: its calls stay in order, and one that waits for ever for
    input keeps nobody else's from running.
    """

    def __init__(self, name: str, loop: Any, executor: Any, indirect: Callable[[], Any]) -> None:
        super().__init__(None, loop, executor)
        self._name = name
        self._indirect = indirect
        self._owner = indirect
        self._pool = _threads.Pool(1)

    def _in_thread(self, name: str, *args: Any, **kwargs: Any) -> Awaitable[Any]:
        # Python ends with a fatal error if sys.stdin, going away, closes a buffer that a
        # thread reads; a thread that never returns keeps what its call refers to.
        call = functools.partial(_call, self._owner(), getattr(self._file, name))
        return in_thread(self._executor, call, *args, pool=self._pool, **kwargs)

    @property
    def _file(self) -> Any:
        return self._indirect()

    @_file.setter
    def _file(self, value: Any) -> None:
        pass

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._name}>"


class AiofilesContextManager(Awaitable[Any], AbstractAsyncContextManager[Any]):
    """What `open()` gives: awaited or entered, it gives the file; left, it closes that."""

    __slots__ = ("_coro", "_obj")

    def __init__(self, coro: Coroutine[Any, Any, Any]) -> None:
        self._coro = coro
        self._obj: Any = None

    def __await__(self) -> Generator[Any, Any, Any]:
        if self._obj is None:
            self._obj = yield from self._coro.__await__()
        return self._obj

    async def __aenter__(self) -> Any:
        return await self

    async def __aexit__(self, *exc: object) -> None:
        file, self._obj = self._obj, None
        await file._leave(*exc)
