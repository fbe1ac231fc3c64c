"""Make asyncio.open_connection() and its kin create ringloop's streams.

Programs have these functions by name from the time they were imported (`from asyncio
import open_connection`), so it is their code that is exchanged, not their names: the
four functions of asyncio.streams stay the objects that they are, and get their own code
back in the end. Which streams they create is decided at each call by the loop that runs
it: a loop that is marked (`_own_streams`) gets ringloop's, every other asyncio's own.
"""

from __future__ import annotations

import asyncio
import os
import threading
from asyncio import streams as stdlib
from contextlib import contextmanager
from types import FunctionType
from typing import TYPE_CHECKING, Any

from ringloop.streams import connect

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

VARIABLE = "RINGLOOP_STREAMS"


def wanted() -> bool:
    """What the environment says. Raises ValueError if that is no known value."""
    value = os.environ.get(VARIABLE) or "ringloop"
    if value not in ("ringloop", "stdlib"):
        raise ValueError(f"{VARIABLE} must be ringloop or stdlib, not {value!r}")
    return value == "ringloop"


def chosen(name: str) -> Callable[..., Any]:
    """The function of that name for the loop that runs now."""
    loop = asyncio.get_running_loop()
    module: Any = connect if getattr(loop, "_own_streams", False) else _Stock
    function: Callable[..., Any] = getattr(module, name)
    return function


class _Code:
    """Whose code takes the place of the stdlib's; it runs with the stdlib's globals."""

    @staticmethod
    async def open_connection(host=None, port=None, *, limit, **kwds):  # type: ignore[no-untyped-def]
        from ringloop.streams.default import chosen  # noqa: PLC0415

        return await chosen("open_connection")(host, port, limit=limit, **kwds)

    @staticmethod
    async def start_server(  # type: ignore[no-untyped-def]
        client_connected_cb, host=None, port=None, *, limit, **kwds
    ):
        from ringloop.streams.default import chosen  # noqa: PLC0415

        start = chosen("start_server")
        return await start(client_connected_cb, host, port, limit=limit, **kwds)

    @staticmethod
    async def open_unix_connection(path=None, *, limit, **kwds):  # type: ignore[no-untyped-def]
        from ringloop.streams.default import chosen  # noqa: PLC0415

        return await chosen("open_unix_connection")(path, limit=limit, **kwds)

    @staticmethod
    async def start_unix_server(  # type: ignore[no-untyped-def]
        client_connected_cb, path=None, *, limit, **kwds
    ):
        from ringloop.streams.default import chosen  # noqa: PLC0415

        start = chosen("start_unix_server")
        return await start(client_connected_cb, path, limit=limit, **kwds)


_FUNCTIONS: dict[str, Any] = {
    name: getattr(stdlib, name)
    for name in ("open_connection", "start_server", "open_unix_connection", "start_unix_server")
}


class _Stock:
    """The stdlib's functions once more, with the code that is theirs."""


for _name, _function in _FUNCTIONS.items():
    _copy = FunctionType(_function.__code__, vars(stdlib), _name, _function.__defaults__)
    _copy.__kwdefaults__ = _function.__kwdefaults__
    setattr(_Stock, _name, staticmethod(_copy))

_lock = threading.Lock()
_users: list[object] = []


def install() -> None:
    """Exchange the code, unless that is done already."""
    with _lock:
        _users.append(None)
        if len(_users) == 1:
            for name, function in _FUNCTIONS.items():
                function.__code__ = getattr(_Code, name).__code__


def uninstall() -> None:
    """Undo one install(); the last one gives the functions their code back."""
    with _lock:
        _users.pop()
        if not _users:
            for name, function in _FUNCTIONS.items():
                function.__code__ = getattr(_Stock, name).__code__


@contextmanager
def installed() -> Iterator[None]:
    """install() for the time of a `with` block."""
    install()
    try:
        yield
    finally:
        uninstall()
