"""StreamReader, StreamReaderProtocol, StreamWriter: asyncio's, with compiled halves."""

from __future__ import annotations

import asyncio
from asyncio import coroutines
from functools import partial
from typing import TYPE_CHECKING, Any

from ringloop.streams.protocol import ProtocolCore, WriterCore
from ringloop.streams.reader import ReaderCore

if TYPE_CHECKING:
    import ssl

# Until some 3.12 the protocol of a server's connection keeps its writer alive.
_KEEPS_WRITER = hasattr(asyncio.StreamReaderProtocol, "_replace_writer")


class StreamReader(ReaderCore, asyncio.StreamReader):
    """An asyncio.StreamReader; what differs is in docs/streams.md.

    `limit`, in bytes, is the longest that a line or a chunk of readuntil() may be; the
    transport is paused when more than twice that waits to be read. Raises ValueError
    if it is not positive.
    """

    async def _wait_for_data(self, func_name: str) -> None:
        try:
            await self._wait_step(func_name)
        finally:
            self._waiter = None

    async def read(self, n: int = -1) -> bytes:
        """Read up to `n` bytes, as soon as there are any; b"" at EOF.

        With `n` of -1, read all until EOF. A read that is cancelled takes nothing.
        """
        data = self._read(n)
        while type(data) is not bytes:
            try:
                await data
            except BaseException:
                self._waiter = None
                raise
            data = self._read(n, True)
        return data

    async def readexactly(self, n: int) -> bytes:
        """Read exactly `n` bytes; the limit does not matter.

        Raises asyncio.IncompleteReadError, with what there was, if EOF comes before,
        and ValueError if `n` is negative.
        """
        data = self._exactly(n)
        while type(data) is not bytes:
            try:
                await data
            except BaseException:
                self._waiter = None
                raise
            data = self._exactly(n, True)
        return data

    async def readuntil(self, separator: Any = b"\n") -> bytes:
        """Read up to and including `separator`, or the first of several.

        Raises asyncio.IncompleteReadError, with what there was, if EOF comes before;
        asyncio.LimitOverrunError if there are more bytes than the limit before it:
        they stay in the buffer, and `consumed` of the exception says how many may be
        read without cutting a separator. ValueError if a separator is empty.
        """
        if isinstance(separator, tuple):
            separators = tuple(sorted(separator, key=len))
        else:
            separators = (separator,)
        if not separators:
            raise ValueError("Separator should contain at least one element")
        if len(separators[0]) == 0:
            raise ValueError("Separator should be at least one-byte string")
        data = self._until(separators)
        while type(data) is not bytes:
            try:
                await data
            except BaseException:
                self._waiter = None
                raise
            data = self._until(separators, True)
        return data

    async def readline(self) -> bytes:
        r"""Read up to and including b"\n"; at EOF what there is, b"" if nothing.

        Raises ValueError if the line is longer than the limit. All of that line is
        thrown away, also what has yet to come: the next readline() gives the next line.
        """
        data = self._line()
        while type(data) is not bytes:
            try:
                await data
            except BaseException:
                self._waiter = None
                raise
            data = self._line(True)
        return data

    async def __anext__(self) -> bytes:
        line = await self.readline()
        if line == b"":
            raise StopAsyncIteration
        return line


class StreamReaderProtocol(ProtocolCore, asyncio.StreamReaderProtocol):
    """The protocol between a transport and its StreamReader."""

    _loop: asyncio.AbstractEventLoop
    _stream_reader: StreamReader | None
    _client_connected_cb: Any
    _reject_connection: bool
    _closed: asyncio.Future[None]

    def connection_made(self, transport: Any) -> None:
        """Give the reader its transport; on a server call `client_connected_cb`.

        If that fails, at once or in its task, the connection is closed.
        """
        connected = self._client_connected_cb
        if connected is None or self._reject_connection:
            super().connection_made(transport)
            return
        self._client_connected_cb = None
        try:
            super().connection_made(transport)
        finally:
            self._client_connected_cb = connected
        reader = self._stream_reader
        self._strong_reader = None
        writer = StreamWriter(transport, self, reader, self._loop)
        if _KEEPS_WRITER:
            self._stream_writer = writer
        try:
            result = connected(reader, writer)
            if coroutines.iscoroutine(result):
                self._task = self._loop.create_task(result)
                self._task.add_done_callback(partial(self._handler_done, transport))
        except BaseException:
            transport.close()
            raise

    def _handler_done(self, transport: asyncio.BaseTransport, task: asyncio.Task[None]) -> None:
        exc = None if task.cancelled() else task.exception()
        if exc is not None:
            self._loop.call_exception_handler(
                {
                    "message": "Unhandled exception in client_connected_cb",
                    "exception": exc,
                    "transport": transport,
                }
            )
        if exc is not None or task.cancelled():
            transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the reader, then wait_closed() and drain(), whatever the reader raises."""
        reader = self._stream_reader
        self._stream_reader_wr = None  # asyncio's would tell it, and stop there if that raises
        try:
            if reader is not None:
                if exc is None:
                    reader.feed_eof()
                else:
                    reader.set_exception(exc)
        finally:
            super().connection_lost(exc)


class StreamWriter(WriterCore, asyncio.StreamWriter):
    """An asyncio.StreamWriter; what differs is in docs/streams.md."""

    def __init__(
        self,
        transport: asyncio.WriteTransport,
        protocol: asyncio.BaseProtocol,
        reader: asyncio.StreamReader | None,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        assert reader is None or isinstance(reader, asyncio.StreamReader)
        self._transport = transport
        self._protocol = protocol
        self._reader = reader
        self._loop = loop

    _drain = asyncio.StreamWriter.drain  # for drain(), when there is something to wait for

    async def wait_closed(self) -> None:
        """Wait, after close(), until the connection is gone.

        Raises the exception with which it was lost. One who gives up waiting does not
        disturb others who wait.
        """
        await asyncio.shield(self._protocol._get_close_waiter(self))

    async def start_tls(self, sslcontext: ssl.SSLContext, **options: Any) -> None:
        """Upgrade the connection to TLS; arguments as of asyncio.StreamWriter.start_tls()."""
        await super().start_tls(sslcontext, **options)
        if self._reader is not None:
            # What pauses reading from now on is the TLS transport.
            self._reader._transport = self._transport
