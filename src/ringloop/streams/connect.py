"""open_connection(), start_server() and their kin for Unix sockets."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from ringloop.streams.classes import StreamReader, StreamReaderProtocol, StreamWriter

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from os import PathLike

    Connected = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None] | None]
    Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]

DEFAULT_LIMIT = 2**16


def _client(limit: int) -> tuple[StreamReader, StreamReaderProtocol]:
    loop = asyncio.get_running_loop()
    reader = StreamReader(limit=limit, loop=loop)
    return reader, StreamReaderProtocol(reader, loop=loop)


def _server(connected: Connected, limit: int) -> Callable[[], StreamReaderProtocol]:
    loop = asyncio.get_running_loop()

    def factory() -> StreamReaderProtocol:
        reader = StreamReader(limit=limit, loop=loop)
        return StreamReaderProtocol(reader, connected, loop=loop)

    return factory


async def open_connection(
    host: str | None = None,
    port: int | str | None = None,
    *,
    limit: int = DEFAULT_LIMIT,
    **kwds: Any,
) -> Streams:
    """Connect, and give (reader, writer).

    `limit`, in bytes, is the reader's; other keywords are those of
    loop.create_connection(), whose errors are raised.
    """
    reader, protocol = _client(limit)
    loop: Any = asyncio.get_running_loop()
    transport, _ = await loop.create_connection(lambda: protocol, host, port, **kwds)
    return reader, StreamWriter(transport, protocol, reader, loop)


async def start_server(
    client_connected_cb: Connected,
    host: str | None = None,
    port: int | str | None = None,
    *,
    limit: int = DEFAULT_LIMIT,
    **kwds: Any,
) -> asyncio.Server:
    """Serve: call `client_connected_cb(reader, writer)` for each connection.

    A coroutine function becomes a task. If it fails or is cancelled, the connection is
    closed. `limit`, in bytes, is the readers'; other keywords are those of
    loop.create_server(), whose errors are raised.
    """
    factory = _server(client_connected_cb, limit)
    loop: Any = asyncio.get_running_loop()
    server: asyncio.Server = await loop.create_server(factory, host, port, **kwds)
    return server


async def open_unix_connection(
    path: str | PathLike[str] | None = None, *, limit: int = DEFAULT_LIMIT, **kwds: Any
) -> Streams:
    """As open_connection(), with a Unix socket."""
    reader, protocol = _client(limit)
    loop: Any = asyncio.get_running_loop()
    transport, _ = await loop.create_unix_connection(lambda: protocol, path, **kwds)
    return reader, StreamWriter(transport, protocol, reader, loop)


async def start_unix_server(
    client_connected_cb: Connected,
    path: str | PathLike[str] | None = None,
    *,
    limit: int = DEFAULT_LIMIT,
    **kwds: Any,
) -> asyncio.Server:
    """As start_server(), with a Unix socket."""
    factory = _server(client_connected_cb, limit)
    loop: Any = asyncio.get_running_loop()
    server: asyncio.Server = await loop.create_unix_server(factory, path, **kwds)
    return server
