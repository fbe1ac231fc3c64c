"""Flow control: a slow side makes the other side wait, and nothing is lost by it."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import socket
import sys
from typing import TYPE_CHECKING, Any

import pytest

from machine import own_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Run = Callable[..., Any]

ON_FAULTY_DRIVERS = True
TIMEOUT = 10
BIG = 50 << 20
RST = b"\1\0\0\0\0\0\0\0"  # struct linger: on, 0 seconds


class Sides(asyncio.Protocol):
    """Notes what it is told; `on_data` may do something with each piece."""

    on_data: Callable[[bytes], None] | None = None

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.events: list[str] = []
        self.data = bytearray()
        self.resumed = asyncio.Event()
        self.received = asyncio.Event()
        self.eof: asyncio.Future[None] = loop.create_future()
        self.lost: asyncio.Future[Exception | None] = loop.create_future()

    def pause_writing(self) -> None:
        self.events.append("pause")

    def resume_writing(self) -> None:
        self.events.append("resume")
        self.resumed.set()

    def data_received(self, data: bytes) -> None:
        self.data += data
        self.received.set()
        if self.on_data is not None:
            self.on_data(data)

    def eof_received(self) -> None:
        self.eof.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set_result(exc)


class Peer:
    """The other end, a plain non-blocking socket."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    def fill(self, data: bytes) -> int:
        """Send until the kernel takes no more; how much that was."""
        sent = 0
        try:
            while sent < len(data):
                sent += self.sock.send(data[sent : sent + 65536])
        except BlockingIOError:
            pass
        return sent

    async def send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self.sock, data)

    async def read(self, n: int) -> bytes:
        """Exactly `n` bytes."""
        loop, data = asyncio.get_running_loop(), bytearray()
        while len(data) < n:
            piece = await loop.sock_recv(self.sock, n - len(data))
            assert piece, "the connection ended too soon"
            data += piece
        return bytes(data)


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, Peer]]:
    """Connected TCP sockets whose buffers are small, so that the kernel hides little."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        near = socket.socket()
        near.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        near.connect(listener.getsockname())
        far, _ = listener.accept()
    for sock in (near, far):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
        sock.setblocking(False)
    with far:
        yield near, Peer(far)
    near.close()


Ends = tuple[socket.socket, Peer]
KERNEL = 1 << 20  # more than what those buffers hold in both directions


async def connected(sock: socket.socket) -> tuple[asyncio.Transport, Sides]:
    return await asyncio.get_running_loop().create_connection(Sides, sock=sock)


async def settle() -> None:
    """Let everything happen that is ready to happen without the peer's doing."""
    for _ in range(20):
        await asyncio.sleep(0)


# -- writing ---------------------------------------------------------------------------


def test_default_water_marks(run: Run, ends: Ends) -> None:
    async def main() -> None:
        transport, protocol = await connected(ends[0])
        assert transport.get_write_buffer_limits() == (16 * 1024, 64 * 1024)
        for arguments, limits in (
            ({"high": 1000}, (250, 1000)),
            ({"low": 1000}, (1000, 4000)),
            ({"high": 7, "low": 3}, (3, 7)),
            ({"high": 0}, (0, 0)),
            ({"low": 0}, (0, 0)),
            ({}, (16 * 1024, 64 * 1024)),
        ):
            transport.set_write_buffer_limits(**arguments)
            assert transport.get_write_buffer_limits() == limits
        for high, low in ((1, 2), (-1, None), (5, -1), (None, -1)):
            with pytest.raises(ValueError, match=r"must be >="):
                transport.set_write_buffer_limits(high=high, low=low)
        assert transport.get_write_buffer_limits() == (16 * 1024, 64 * 1024)
        transport.close()
        await protocol.lost

    run(main())


def test_pause_above_the_high_mark_and_resume_at_the_low_mark(run: Run, ends: Ends) -> None:
    async def main() -> None:
        transport, protocol = await connected(ends[0])
        transport.set_write_buffer_limits(high=100_000, low=20_000)
        written = 0
        while not protocol.events:
            transport.write(bytes(10_000))
            written += 10_000
            assert written < KERNEL + 200_000
        assert transport.get_write_buffer_size() > 100_000
        for _ in range(3):
            transport.write(bytes(10_000))  # told once only
            written += 10_000
        await settle()
        assert protocol.events == ["pause"]

        size_at_resume = []
        original = protocol.resume_writing

        def resume_writing() -> None:
            size_at_resume.append(transport.get_write_buffer_size())
            original()

        protocol.resume_writing = resume_writing  # type: ignore[method-assign]
        await ends[1].read(written)
        await protocol.resumed.wait()
        assert protocol.events == ["pause", "resume"]
        assert 0 <= size_at_resume[0] <= 20_000
        assert transport.get_write_buffer_size() == 0
        transport.close()
        await protocol.lost

    run(main())


def test_a_write_that_the_socket_takes_whole_pauses_nobody(run: Run, ends: Ends) -> None:
    async def main() -> None:
        transport, protocol = await connected(ends[0])
        transport.set_write_buffer_limits(high=0)
        for _ in range(20):
            transport.write(b"x" * 1000)
            assert await ends[1].read(1000) == b"x" * 1000
        assert protocol.events == []
        transport.close()
        await protocol.lost

    run(main())


def test_lower_limits_pause_at_once(run: Run, ends: Ends) -> None:
    async def main() -> None:
        transport, protocol = await connected(ends[0])
        transport.set_write_buffer_limits(high=2 * KERNEL)
        transport.write(bytes(2 * KERNEL))
        await settle()
        assert protocol.events == []
        transport.set_write_buffer_limits(high=1000)
        assert protocol.events == ["pause"]
        await ends[1].read(2 * KERNEL)
        await protocol.resumed.wait()
        transport.close()
        await protocol.lost

    run(main())


@pytest.mark.parametrize("size", [1000, 20_000, 70_000])
def test_a_writer_that_ignores_the_pause_is_still_told_to_resume(
    run: Run, ends: Ends, size: int
) -> None:
    async def main() -> None:
        transport, protocol = await connected(ends[0])
        transport.set_write_buffer_limits(high=0)
        count = 6_000_000 // size
        reading = asyncio.create_task(ends[1].read(count * size))
        for _ in range(count):
            transport.write(bytes(size))
            await asyncio.sleep(0)
        await reading
        await settle()
        assert transport.get_write_buffer_size() == 0
        assert protocol.events == ["pause", "resume"] * (len(protocol.events) // 2)
        transport.close()
        await protocol.lost

    run(main())


def test_a_write_that_empties_the_buffer_resumes(run: Run, ends: Ends) -> None:
    async def main() -> None:
        near, peer = ends
        transport, protocol = await connected(near)
        transport.set_write_buffer_limits(high=0)
        while not transport.get_write_buffer_size():  # until the kernel takes no more
            transport.write(bytes(20_000))
        await asyncio.sleep(0)  # the rest is a send in flight
        with contextlib.suppress(BlockingIOError):
            while peer.sock.recv(KERNEL):
                pass
        await asyncio.sleep(0)  # that send completes; before the next...
        transport.write(bytes(20_000))  # ...the socket takes all of this at once
        await asyncio.wait_for(protocol.resumed.wait(), TIMEOUT)
        assert transport.get_write_buffer_size() == 0
        transport.close()
        await protocol.lost

    run(main())


def test_drain_bounds_the_memory_of_a_fast_writer_with_a_slow_reader(run: Run, ends: Ends) -> None:
    piece = random.Random(3).randbytes(65536)
    count = BIG // len(piece)

    async def main() -> None:
        _, writer = await asyncio.open_connection(sock=ends[0])
        sizes = []

        async def write() -> None:
            for _ in range(count):
                writer.write(piece)
                sizes.append(writer.transport.get_write_buffer_size())
                await writer.drain()

        writing = asyncio.create_task(write())
        await settle()
        assert not writing.done()  # it waits, and so it would for ever
        stuck_at = len(sizes)
        await settle()
        assert len(sizes) == stuck_at
        for _ in range(count):
            assert await ends[1].read(len(piece)) == piece
        await writing
        assert max(sizes) <= 64 * 1024 + len(piece)
        writer.close()
        await writer.wait_closed()

    run(main(), timeout=30)


def test_what_was_sent_is_let_go_of_though_something_always_waits(run: Run) -> None:
    piece = bytes(8192)
    near, far = socket.socketpair()
    near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    far.setblocking(False)

    async def main() -> None:
        _, writer = await asyncio.open_connection(sock=near)
        references = []

        async def write() -> None:
            for _ in range(2000):
                writer.write(piece)
                references.append(sys.getrefcount(piece))
                await writer.drain()

        writing = asyncio.create_task(write())
        for _ in range(4000):
            await Peer(far).read(4096)
        await writing
        assert max(references) < 100
        writer.close()
        await writer.wait_closed()

    with near, far:
        run(main())


def test_drain_fails_when_the_peer_resets(run: Run, ends: Ends) -> None:
    async def main() -> None:
        _, writer = await asyncio.open_connection(sock=ends[0])
        writer.write(bytes(4 * KERNEL))
        draining = asyncio.create_task(writer.drain())
        await settle()
        assert not draining.done()
        ends[1].sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RST)
        ends[1].sock.close()
        with pytest.raises(ConnectionError):
            await draining
        writer.close()
        with pytest.raises(ConnectionError):
            await writer.wait_closed()

    run(main())


# -- reading ---------------------------------------------------------------------------


async def into_bulk_mode(transport: asyncio.Transport, protocol: Sides, peer: Peer) -> None:
    """Let so much arrive that large receives have begun."""
    for _ in range(3):
        await asyncio.wait_for(peer.send(bytes(1 << 20)), TIMEOUT)
    while len(protocol.data) < 3 << 20:
        protocol.received.clear()
        await protocol.received.wait()
    protocol.data.clear()
    protocol.received.clear()


@pytest.mark.parametrize("bulk", [False, True], ids=["small", "bulk"])
def test_nothing_is_told_while_paused_and_nothing_is_lost(run: Run, ends: Ends, bulk: bool) -> None:
    async def main() -> None:
        near, peer = ends
        transport, protocol = await connected(near)
        if bulk:
            await into_bulk_mode(transport, protocol, peer)
        for i in range(30):
            piece = b"%d" % i * 1000
            transport.pause_reading()
            transport.pause_reading()  # twice is no error
            assert not transport.is_reading()
            await peer.send(piece)
            await settle()
            assert not protocol.received.is_set()
            transport.resume_reading()
            transport.resume_reading()
            assert transport.is_reading()
            assert not protocol.received.is_set(), "told inside resume_reading()"
            while protocol.data != piece:
                protocol.received.clear()
                await protocol.received.wait()
            protocol.data.clear()
            protocol.received.clear()
        transport.close()
        await protocol.lost

    run(main())


@pytest.mark.parametrize("bulk", [False, True], ids=["small", "bulk"])
def test_a_pause_in_data_received_holds_back_the_rest(run: Run, ends: Ends, bulk: bool) -> None:
    data = random.Random(4).randbytes(1 << 20)

    async def main() -> None:
        near, peer = ends
        transport, protocol = await connected(near)
        if bulk:
            await into_bulk_mode(transport, protocol, peer)
        told = []

        def on_data(piece: bytes) -> None:
            assert transport.is_reading()
            told.append(len(piece))
            transport.pause_reading()

        protocol.on_data = on_data
        sending = asyncio.create_task(peer.send(data))
        while len(protocol.data) < len(data):
            await protocol.received.wait()
            protocol.received.clear()
            count = len(told)
            await settle()
            assert len(told) == count
            transport.resume_reading()
        await sending
        assert len(told) > 1
        assert protocol.data == data
        transport.close()
        await protocol.lost

    run(main())


@pytest.mark.parametrize("bulk", [False, True], ids=["small", "bulk"])
def test_the_end_of_the_stream_waits_for_resume(run: Run, ends: Ends, bulk: bool) -> None:
    async def main() -> None:
        near, peer = ends
        transport, protocol = await connected(near)
        if bulk:
            await into_bulk_mode(transport, protocol, peer)
        protocol.on_data = lambda _: transport.pause_reading()
        await peer.send(b"last words")  # data and end may come in one batch
        peer.sock.shutdown(socket.SHUT_WR)
        await protocol.received.wait()
        await settle()
        assert not protocol.eof.done()
        transport.resume_reading()
        assert await protocol.lost is None
        assert protocol.eof.done()
        assert protocol.data == b"last words"

    run(main())


def test_a_reset_waits_for_resume(run: Run, ends: Ends) -> None:
    async def main() -> None:
        near, peer = ends
        transport, protocol = await connected(near)
        transport.pause_reading()
        peer.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RST)
        peer.sock.close()
        await settle()
        assert not protocol.lost.done()
        transport.resume_reading()
        assert isinstance(await protocol.lost, ConnectionResetError)
        assert not protocol.eof.done()

    run(main())


def test_a_pause_before_reading_began(run: Run, ends: Ends) -> None:
    async def main() -> None:
        class Paused(Sides):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                assert isinstance(transport, asyncio.Transport)
                transport.pause_reading()

        near, peer = ends
        await peer.send(b"early")
        transport, protocol = await asyncio.get_running_loop().create_connection(Paused, sock=near)
        await settle()
        assert not transport.is_reading()
        assert not protocol.data
        transport.resume_reading()
        await protocol.received.wait()
        assert protocol.data == b"early"
        transport.close()
        await protocol.lost

    run(main())


@pytest.mark.measures_memory
@pytest.mark.parametrize("bulk", [False, True], ids=["small", "bulk"])
def test_a_long_pause_throttles_the_peer_and_bounds_the_memory(
    run: Run, ends: Ends, bulk: bool
) -> None:
    data = random.Random(5).randbytes(1 << 20) * (BIG >> 20)

    async def main() -> None:
        near, peer = ends
        transport, protocol = await connected(near)
        if bulk:
            await into_bulk_mode(transport, protocol, peer)
        transport.pause_reading()
        gc.collect()
        before = own_bytes()
        sent = 0
        for _ in range(50):
            sent += peer.fill(data[sent : sent + KERNEL])
            await settle()
        assert 0 < sent < 4 * KERNEL, "the peer was not made to wait"
        assert own_bytes() - before < 4 << 20
        transport.resume_reading()
        await peer.send(data[sent:])
        while len(protocol.data) < len(data):
            protocol.received.clear()
            await protocol.received.wait()
        assert protocol.data == data
        transport.close()
        await protocol.lost

    run(main(), timeout=30)


def test_a_stream_reader_that_nobody_reads_throttles_the_peer(run: Run, ends: Ends) -> None:
    async def main() -> None:
        near, peer = ends
        reader, writer = await asyncio.open_connection(sock=near, limit=10_000)
        sent = 0
        for _ in range(50):
            sent += peer.fill(bytes(KERNEL))
            await settle()
        assert sent < 4 * KERNEL
        peer.sock.shutdown(socket.SHUT_WR)
        assert len(await reader.read()) == sent
        writer.close()
        await writer.wait_closed()

    run(main())
