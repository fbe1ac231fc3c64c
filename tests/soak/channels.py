"""One interface to both ends of a stream, however it is read and written.

`send` takes part in flow control, `recv` gives b"" at the end of the stream. Each
channel checks that the loop keeps to the order in which a protocol is called.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import socket
import struct
from typing import TYPE_CHECKING, Any

from soak.scene import Provoked, Scene, Wrong, settle

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import BinaryIO

QUEUE_MAX = 128 * 1024  # bytes received and not taken, from which on reading is paused
RECV_MAX = 256 * 1024  # bytes asked for at most
LINGER_RESET = struct.pack("ii", 1, 0)


class Channel:
    """An end of a connection."""

    can_half_close = True
    # Not through asyncio's streams: their reader turns on again what sendfile() has paused.
    can_send_files = True

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self._pushed_back = b""

    async def recv(self) -> bytes:
        if self._pushed_back:
            data, self._pushed_back = self._pushed_back, b""
            return data
        return await self._recv()

    async def recv_exactly(self, n: int) -> bytes:
        """n bytes; EOFError if there are fewer."""
        data = b""
        while len(data) < n:
            piece = await self.recv()
            if not piece:
                raise EOFError(f"{len(data)} bytes of {n}")
            data += piece
        self._pushed_back = data[n:]
        return data[:n]

    async def _recv(self) -> bytes:
        raise NotImplementedError

    async def send(self, pieces: list[bytes]) -> None:
        raise NotImplementedError

    async def send_eof(self) -> None:
        raise NotImplementedError

    async def send_file(self, file: BinaryIO, offset: int, count: int) -> int:
        """Send a part of a file; the number of bytes sent."""
        raise NotImplementedError

    async def close(self) -> None:
        """Close in order, and wait until it is."""
        raise NotImplementedError

    async def hang_up(self) -> None:
        """Close while somebody receives."""
        await self.close()

    def abort(self) -> None:
        """Away with it, now. Does nothing if it is closed."""
        raise NotImplementedError

    def dispose(self) -> None:
        """The last call, when nobody uses it any more."""
        self.abort()

    def socket(self) -> Any:
        raise NotImplementedError

    def provoke(self) -> None:
        """Throw an exception in the next callback, where there are callbacks."""
        self.abort()

    def reset(self) -> None:
        """Abort so that the peer gets a reset, where the socket can do that."""
        sock = self.socket()
        if sock is not None and sock.family != socket.AF_UNIX:
            # Closed already: no reset then.
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_RESET)
        self.abort()


class TransportChannel(Channel):
    """Through callbacks. The subclasses are protocols."""

    transport: Any = None

    def __init__(self, scene: Scene, made: Callable[[Channel], None] | None = None) -> None:
        super().__init__(scene)
        self._made = made
        self._queue: collections.deque[bytes] = collections.deque()
        self._queued = 0
        self._eof = False
        self._lost = False
        self._error: BaseException | None = None
        self._writing_paused = False
        self._provoke = False
        self._thrown = False
        self._sending_file = False
        self._changed: asyncio.Future[None] | None = None
        self._writable: asyncio.Future[None] | None = None
        self._is_lost: asyncio.Future[None] = scene.loop.create_future()
        self.keep_open = True

    # -- what the loop calls --

    def connection_made(self, transport: Any) -> None:
        self._must(self.transport is None, "connection_made() came twice")
        self.transport = transport
        self.can_half_close = transport.can_write_eof()
        # Over TLS an EOF may come although sendfile() paused the reading, which it takes ill.
        self.can_send_files = transport.get_extra_info("sslcontext") is None
        if self.scene.chance(0.3):
            high = self.scene.size(300_000)
            transport.set_write_buffer_limits(high, self.scene.random.randint(0, high))
        if self._made is not None:
            self._made(self)
            self._made = None

    def _received(self, data: bytes) -> None:
        self._must(self.transport is not None, "data before connection_made()")
        self._must(not self._eof, "data after eof_received()")
        self._must(not self._lost, "data after connection_lost()")
        self._must(len(data) > 0, "no data")
        if self._thrown:
            return  # what the exception took away leaves a hole
        self._throw_if_told()
        self._queue.append(data)
        self._queued += len(data)
        if self._queued > QUEUE_MAX and self.transport.is_reading():
            self.transport.pause_reading()
        self._wake()

    def eof_received(self) -> bool:
        self._must(not self._eof, "eof_received() came twice")
        self._must(not self._lost, "eof_received() after connection_lost()")
        self._eof = True
        self._wake()
        self._throw_if_told()
        return self.keep_open and self.can_half_close

    def connection_lost(self, exc: Exception | None) -> None:
        self._must(self.transport is not None, "connection_lost() without connection_made()")
        self._must(not self._lost, "connection_lost() came twice")
        self._lost = True
        self._error = exc
        self._wake()
        settle(self._writable)
        settle(self._is_lost)
        self._throw_if_told()

    def pause_writing(self) -> None:
        self._must(not self._writing_paused, "pause_writing() came twice")
        self._must(not self._lost, "pause_writing() after connection_lost()")
        self._writing_paused = True
        self._throw_if_told()

    def resume_writing(self) -> None:
        self._must(self._writing_paused, "resume_writing() without pause_writing()")
        self._must(not self._lost, "resume_writing() after connection_lost()")
        self._writing_paused = False
        settle(self._writable)
        self._throw_if_told()

    def _must(self, truth: bool, otherwise: str) -> None:
        if not truth:
            raise Wrong(f"{self.scene.name}: {otherwise}")

    def _throw_if_told(self) -> None:
        if self._provoke:
            self._provoke = False
            self._thrown = True
            raise Provoked(self.scene.name)

    async def send_file(self, file: BinaryIO, offset: int, count: int) -> int:
        await self.send([])
        if self.transport.is_closing():
            raise ConnectionAbortedError("connection lost")
        # asyncio's fallback takes pause_writing() for itself and passes the resume_writing() on.
        self.transport.set_write_buffer_limits(1 << 24)
        self._sending_file = True
        try:
            return await self.scene.loop.sendfile(self.transport, file, offset, count)
        finally:
            self._sending_file = False
            self._wake()

    def _wake(self) -> None:
        settle(self._changed)

    # -- what scenarios call --

    async def _recv(self) -> bytes:
        while not self._queue:
            if self._eof:
                return b""
            if self._lost:
                if self._error is not None:
                    raise self._error
                return b""
            if not self.transport.is_reading() and not self._sending_file:
                self.transport.resume_reading()
            self._changed = self.scene.loop.create_future()
            await self._changed
        data = self._queue.popleft()
        self._queued -= len(data)
        if self._sending_file:
            pass  # reading is paused by sendfile(), which goes on with it afterwards
        elif not self.transport.is_reading() and self._queued < QUEUE_MAX // 2:
            self.transport.resume_reading()
        elif self.scene.chance(0.02):
            self.transport.pause_reading()
        return data

    async def send(self, pieces: list[bytes]) -> None:
        while self._writing_paused and not self._lost:
            self._writable = self.scene.loop.create_future()
            await self._writable
        if self._lost:
            raise self._error or ConnectionAbortedError("connection lost")
        if len(pieces) == 1:
            self.transport.write(pieces[0])
        elif pieces:
            self.transport.writelines(pieces)

    async def send_eof(self) -> None:
        if not self.transport.is_closing():
            self.transport.write_eof()

    async def close(self) -> None:
        self.transport.resume_reading()
        self.transport.close()
        await self._is_lost
        if self._error is not None and not isinstance(self._error, Provoked):
            raise self._error

    def abort(self) -> None:
        if self.transport is not None and not self._lost:
            self.transport.abort()

    def provoke(self) -> None:
        self._provoke = True
        self.scene.loop.call_later(0.05, self.abort)

    def socket(self) -> Any:
        return self.transport.get_extra_info("socket")


class ProtocolChannel(TransportChannel, asyncio.Protocol):
    def data_received(self, data: bytes) -> None:
        self._must(isinstance(data, bytes | bytearray), f"{type(data)} received")
        self._received(bytes(data))


class BufferedChannel(TransportChannel, asyncio.BufferedProtocol):
    def __init__(self, scene: Scene, made: Callable[[Channel], None] | None = None) -> None:
        super().__init__(scene, made)
        self._buffer = bytearray(scene.read_size(200_000))
        self._offered = 0

    def get_buffer(self, sizehint: int) -> memoryview:
        self._must(not self._lost, "get_buffer() after connection_lost()")
        size = len(self._buffer)
        self._offered = self.scene.random.randint(size // 2, size)
        return memoryview(self._buffer)[: self._offered]

    def buffer_updated(self, nbytes: int) -> None:
        self._must(0 < nbytes <= self._offered, f"{nbytes} bytes in a buffer of {self._offered}")
        self._received(bytes(self._buffer[:nbytes]))


class StreamChannel(Channel):
    """Through asyncio's StreamReader and StreamWriter."""

    can_send_files = False

    def __init__(
        self, scene: Scene, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        super().__init__(scene)
        self.reader = reader
        self.writer = writer
        self.can_half_close = writer.can_write_eof()
        # Who got a connection's error from the reader need not ask for it again. asyncio's
        # protocol sees to that in its finalizer; but the error's traceback leads to both, and
        # the garbage collector may finalize the future first, which then complains.
        closed: asyncio.Future[None] = writer._protocol._get_close_waiter(writer)  # type: ignore[attr-defined]
        closed.add_done_callback(lambda future: future.cancelled() or future.exception())

    async def _recv(self) -> bytes:
        return await self.reader.read(self.scene.read_size(RECV_MAX))

    async def send(self, pieces: list[bytes]) -> None:
        if len(pieces) == 1:
            self.writer.write(pieces[0])
        else:
            self.writer.writelines(pieces)
        await self.writer.drain()

    async def send_eof(self) -> None:
        if not self.writer.transport.is_closing():
            self.writer.write_eof()

    async def close(self) -> None:
        self.writer.close()
        await self.writer.wait_closed()

    def abort(self) -> None:
        self.writer.transport.abort()

    def socket(self) -> Any:
        return self.writer.get_extra_info("socket")


class SocketChannel(Channel):
    """Through loop.sock_*."""

    def __init__(self, scene: Scene, sock: socket.socket) -> None:
        super().__init__(scene)
        self._sock = sock

    async def _recv(self) -> bytes:
        loop = self.scene.loop
        n = self.scene.read_size(RECV_MAX)
        if self.scene.chance(0.3):
            buffer = bytearray(n)
            return bytes(buffer[: await loop.sock_recv_into(self._sock, buffer)])
        while self.scene.chance(0.2):
            # A receive that is given up has taken nothing.
            # (Not wait_for(): Python 3.11's may swallow the cancellation of its caller.)
            try:
                async with asyncio.timeout(self.scene.random.uniform(0, 0.001)):
                    return await loop.sock_recv(self._sock, n)
            except TimeoutError:
                pass
        return await loop.sock_recv(self._sock, n)

    async def send(self, pieces: list[bytes]) -> None:
        for piece in pieces:
            await self.scene.loop.sock_sendall(self._sock, piece)

    async def send_eof(self) -> None:
        self._sock.shutdown(socket.SHUT_WR)

    async def send_file(self, file: BinaryIO, offset: int, count: int) -> int:
        return await self.scene.loop.sock_sendfile(self._sock, file, offset, count)

    async def close(self) -> None:
        self._sock.close()

    async def hang_up(self) -> None:
        self.abort()

    def abort(self) -> None:
        # Whoever waits for this socket is asked to look again first.
        if self._sock.fileno() >= 0:
            with contextlib.suppress(OSError):
                self._sock.shutdown(socket.SHUT_RDWR)

    def dispose(self) -> None:
        self._sock.close()

    def socket(self) -> Any:
        return self._sock if self._sock.fileno() >= 0 else None


class WatchChannel(SocketChannel):
    """Through add_reader and add_writer."""

    async def _wait(self, add: Callable[..., Any], remove: Callable[..., Any]) -> None:
        ready = self.scene.loop.create_future()

        def tell() -> None:
            if not ready.done():
                ready.set_result(None)

        add(self._sock, tell)
        try:
            await ready
        finally:
            remove(self._sock)

    async def _recv(self) -> bytes:
        loop = self.scene.loop
        while True:
            try:
                return self._sock.recv(self.scene.read_size(RECV_MAX))
            except BlockingIOError:
                await self._wait(loop.add_reader, loop.remove_reader)

    async def send(self, pieces: list[bytes]) -> None:
        loop = self.scene.loop
        for piece in pieces:
            rest = memoryview(piece)
            while rest:
                try:
                    rest = rest[self._sock.send(rest) :]
                except BlockingIOError:
                    await self._wait(loop.add_writer, loop.remove_writer)
