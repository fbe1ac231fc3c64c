"""asyncio.BufferedProtocol: the protocol's own buffers, filled and told in order."""

from __future__ import annotations

import array
import asyncio
import random
import socket
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Run = Callable[..., Any]

ON_FAULTY_DRIVERS = True
TIMEOUT = 10


class Filling(asyncio.BufferedProtocol):
    """Offers one buffer again and again; `on_update` may do something after each filling."""

    on_update: Callable[[int], None] | None = None

    def __init__(self, buffer: Any) -> None:
        loop = asyncio.get_running_loop()
        self.buffer = buffer
        self.hints: list[int] = []
        self.counts: list[int] = []
        self.data = bytearray()
        self.received = asyncio.Event()
        self.transport: asyncio.Transport
        self.eof: asyncio.Future[None] = loop.create_future()
        self.lost: asyncio.Future[Exception | None] = loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def get_buffer(self, sizehint: int) -> Any:
        self.hints.append(sizehint)
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.counts.append(nbytes)
        self.data += memoryview(self.buffer).cast("B")[:nbytes]
        self.received.set()
        if self.on_update is not None:
            self.on_update(nbytes)

    def eof_received(self) -> None:
        self.eof.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set_result(exc)


class Plain(asyncio.Protocol):
    """An ordinary protocol to switch from or to."""

    on_data: Callable[[bytes], None] | None = None

    def __init__(self) -> None:
        self.data = bytearray()
        self.received = asyncio.Event()
        self.lost: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        self.data += data
        self.received.set()
        if self.on_data is not None:
            self.on_data(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set_result(exc)


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Connected TCP sockets, both non-blocking; the second is the test's own."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        far, _ = listener.accept()
    near.setblocking(False)
    far.setblocking(False)
    with far:
        yield near, far
    near.close()


Ends = tuple[socket.socket, socket.socket]


async def connected(sock: socket.socket, buffer: Any) -> tuple[asyncio.Transport, Filling]:
    return await asyncio.get_running_loop().create_connection(lambda: Filling(buffer), sock=sock)


async def send(sock: socket.socket, data: bytes, end: bool = False) -> None:
    await asyncio.get_running_loop().sock_sendall(sock, data)
    if end:
        sock.shutdown(socket.SHUT_WR)


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


@pytest.mark.parametrize("size", [1, 7, 2048, 4097, 65536, 1 << 20])
def test_every_byte_is_told_once_and_in_order(run: Run, ends: Ends, size: int) -> None:
    # Small and large, so that both ways of receiving are met; one byte at a time is slow.
    rng = random.Random(size)
    total = 100_000 if size < 1000 else 4_000_000
    pieces = [rng.randbytes(n) for n in (1, 2000, total, 10, total, 1, 5000)]

    async def main() -> None:
        _, protocol = await connected(ends[0], bytearray(size))
        for piece in pieces:
            await send(ends[1], piece)
        ends[1].shutdown(socket.SHUT_WR)
        assert await protocol.lost is None
        assert protocol.eof.done()
        assert protocol.data == b"".join(pieces)
        assert 1 <= min(protocol.counts) <= max(protocol.counts) <= size
        assert all(hint == -1 or hint > 0 for hint in protocol.hints)

    run(main())


@pytest.mark.parametrize(
    "buffer",
    [
        bytearray(4096),
        array.array("d", [0.0] * 512),
        memoryview(bytearray(4096)).cast("I"),
        memoryview(bytearray(4096)).cast("B", (64, 64)),
        memoryview(bytearray(8192))[100:4196],
        memoryview(bytearray(16)).cast("q"),
    ],
    ids=["bytearray", "doubles", "ints", "rows", "slice", "two items"],
)
@pytest.mark.parametrize("bulk", [False, True], ids=["small", "bulk"])
def test_buffers_of_any_format_are_counted_in_bytes(
    run: Run, ends: Ends, buffer: Any, bulk: bool
) -> None:
    data = random.Random(6).randbytes(300_000 if bulk else 1000)

    async def main() -> None:
        _, protocol = await connected(ends[0], buffer)
        await send(ends[1], data, end=True)
        assert await protocol.lost is None
        assert protocol.data == data

    run(main())


# -- what may go wrong: as in asyncio ---------------------------------------------------


class Broken(Filling):
    """Fails in the way it is named after."""

    def __init__(self, how: str) -> None:
        super().__init__(bytearray(10))
        self.how = how

    def get_buffer(self, sizehint: int) -> Any:
        super().get_buffer(sizehint)
        if self.how == "raises in get_buffer":
            raise ValueError("no buffer today")
        return {
            "empty buffer": bytearray(),
            "read-only buffer": b"read-only",
            "no buffer": 42,
            "scattered buffer": memoryview(bytearray(10))[::2],
        }.get(self.how, self.buffer)

    def buffer_updated(self, nbytes: int) -> None:
        super().buffer_updated(nbytes)
        if self.how == "raises in buffer_updated":
            raise ValueError("not that")


async def how_it_fails(how: str, data: bytes) -> tuple[list[str], str, bool]:
    """What the exception handler and connection_lost() got; whether the peer saw an end."""
    loop = asyncio.get_running_loop()
    near, far = socket.socketpair()
    near.setblocking(False)
    far.setblocking(False)
    messages: list[str] = []

    def handler(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        assert isinstance(context["transport"], asyncio.Transport)
        assert context["protocol"] is protocol
        messages.append(f"{context['message']} {type(context['exception']).__name__}")

    loop.set_exception_handler(handler)
    with far:
        _, protocol = await loop.create_connection(lambda: Broken(how), sock=near)
        await send(far, data)
        exc = await asyncio.wait_for(protocol.lost, TIMEOUT)
        try:
            ended = await asyncio.wait_for(loop.sock_recv(far, 10), TIMEOUT) == b""
        except ConnectionResetError:
            ended = True  # there were bytes that nobody will read
    assert not protocol.eof.done()
    return messages, type(exc).__name__, ended


@pytest.mark.parametrize(
    "how",
    [
        "raises in get_buffer",
        "raises in buffer_updated",
        "empty buffer",
    ],
)
def test_failures_end_the_connection_as_in_asyncio(run: Run, how: str) -> None:
    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        expected = runner.run(how_it_fails(how, b"x" * 5))
    assert run(how_it_fails(how, b"x" * 5)) == expected
    messages, _, ended = expected
    assert len(messages) == 1
    assert ended


@pytest.mark.parametrize("how", ["read-only buffer", "no buffer", "scattered buffer"])
def test_what_is_no_writable_buffer_ends_the_connection(run: Run, how: str) -> None:
    messages, exc, ended = run(how_it_fails(how, b"x" * 5))
    assert len(messages) == 1
    assert messages[0].startswith("Fatal ")
    assert exc in ("TypeError", "BufferError", "ValueError")
    assert ended


def test_a_failure_in_bulk_mode_ends_the_connection(run: Run, ends: Ends) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        errors = []
        loop.set_exception_handler(lambda _, context: errors.append(context["message"]))
        _, protocol = await connected(ends[0], bytearray(1 << 18))
        sending = asyncio.create_task(send(ends[1], bytes(64 << 20)))

        def fail(_: int) -> None:
            if len(protocol.data) > 4 << 20:
                raise ValueError("enough")

        protocol.on_update = fail
        assert isinstance(await protocol.lost, ValueError)
        assert errors == ["Fatal error: protocol.buffer_updated() call failed."]
        with pytest.raises(ConnectionError):
            await sending

    run(main())


# -- what a protocol may do in buffer_updated() ------------------------------------------


@pytest.mark.parametrize("size", [3, 1 << 18])
def test_a_pause_in_buffer_updated_holds_back_the_rest(run: Run, ends: Ends, size: int) -> None:
    data = random.Random(7).randbytes(size * 20 + 1)

    async def main() -> None:
        transport, protocol = await connected(ends[0], bytearray(size))
        protocol.on_update = lambda _: transport.pause_reading()
        sending = asyncio.create_task(send(ends[1], data, end=True))
        while len(protocol.data) < len(data):
            await protocol.received.wait()
            protocol.received.clear()
            count = len(protocol.counts)
            await settle()
            assert len(protocol.counts) == count
            assert not protocol.eof.done()
            transport.resume_reading()
        await sending
        assert protocol.data == data
        assert await protocol.lost is None

    run(main())


@pytest.mark.parametrize("how", ["close", "abort"])
@pytest.mark.parametrize("unsent", [0, 100])
def test_nothing_is_told_after_close_or_abort(run: Run, ends: Ends, how: str, unsent: int) -> None:
    async def main() -> None:
        transport, protocol = await connected(ends[0], bytearray(2))

        def end(_: int) -> None:
            transport.write(bytes(unsent))  # makes close() wait for a flush
            getattr(transport, how)()

        protocol.on_update = end
        await send(ends[1], b"abcdef")
        assert await protocol.lost is None
        assert protocol.data == b"ab"
        assert len(protocol.hints) == 1

    run(main())


def test_whoever_offered_the_buffer_is_told_of_it(run: Run, ends: Ends) -> None:
    """Also when that very call changed the protocol, in bulk mode and in the small one."""
    data = random.Random(21).randbytes(2_000_000)

    async def main() -> None:
        transport, first = await connected(ends[0], bytearray(100_000))
        second = Plain()

        class Leaving(Filling):
            def get_buffer(self, sizehint: int) -> Any:
                self.transport.set_protocol(second)
                return super().get_buffer(sizehint)

        async def told(n: int) -> None:
            while len(first.data) + len(leaving.data) + len(second.data) < n:
                await asyncio.sleep(0)

        leaving = Leaving(bytearray(50_000))
        leaving.transport = transport
        await send(ends[1], data[:-10])  # into bulk mode
        await told(len(data) - 10)
        transport.set_protocol(leaving)
        await send(ends[1], data[-10:])
        await told(len(data))
        assert leaving.data
        assert first.data + leaving.data + second.data == data
        transport.close()
        await second.lost

    run(main())


@pytest.mark.parametrize("size", [1, 4, 5, 6, 4096])
def test_a_header_read_buffered_then_an_ordinary_protocol(run: Run, ends: Ends, size: int) -> None:
    """The rest of what had arrived must reach the new protocol without any more coming."""

    async def main() -> None:
        transport, header = await connected(ends[0], bytearray(size))
        body = Plain()

        def switch(_: int) -> None:
            if len(header.data) >= 5:
                transport.set_protocol(body)

        header.on_update = switch
        await send(ends[1], b"helloworld")
        while len(header.data) + len(body.data) < 10:
            body.received.clear()
            await (body.received if len(header.data) >= 5 else header.received).wait()
            header.received.clear()
        assert len(header.data) < 5 + size
        assert header.data + body.data == b"helloworld"
        await send(ends[1], b" and more", end=True)
        assert await body.lost is None
        assert header.data + body.data == b"helloworld and more"

    run(main())


def test_an_ordinary_protocol_then_a_buffered_one(run: Run, ends: Ends) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        transport, first = await loop.create_connection(Plain, sock=ends[0])
        second = Filling(bytearray(3))
        first.on_data = lambda _: transport.set_protocol(second)
        await send(ends[1], b"one")
        await first.received.wait()
        await send(ends[1], b"two and three", end=True)
        assert await second.lost is None
        assert first.data == b"one"
        assert second.data == b"two and three"
        assert not first.lost.done()

    run(main())


@pytest.mark.parametrize("buffered", [1000, 100_000])
def test_a_stream_stays_whole_while_protocols_take_turns(
    run: Run, ends: Ends, buffered: int
) -> None:
    """Two protocols of either kind hand the connection to each other after each piece."""
    data = random.Random(8).randbytes(6 << 20)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        transport, plain = await loop.create_connection(Plain, sock=ends[0])
        filling = Filling(bytearray(buffered))
        got = bytearray()
        turns = 0

        def from_plain(piece: bytes) -> None:
            nonlocal turns
            turns += 1
            got.extend(piece)
            transport.set_protocol(filling)

        def from_filling(n: int) -> None:
            nonlocal turns
            turns += 1
            got.extend(filling.data[-n:])
            if turns % 3 == 0:
                transport.pause_reading()
                loop.call_soon(transport.resume_reading)
            transport.set_protocol(plain)

        plain.on_data, filling.on_update = from_plain, from_filling
        await send(ends[1], data, end=True)
        done, _ = await asyncio.wait(
            [plain.lost, filling.lost], timeout=TIMEOUT, return_when=asyncio.FIRST_COMPLETED
        )
        assert len(done) == 1
        assert turns > 10
        assert got == data

    run(main(), timeout=20)


def test_streams_of_the_standard_library_work_on_a_buffered_server(run: Run) -> None:
    """An echo with BufferedProtocol, large enough for bulk mode in both directions."""
    data = random.Random(9).randbytes(3 << 20)

    async def main() -> None:
        class Echo(Filling):
            def buffer_updated(self, nbytes: int) -> None:
                super().buffer_updated(nbytes)
                self.transport.write(memoryview(self.buffer)[:nbytes])

        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: Echo(bytearray(100_000)), "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(data)
        writer.write_eof()
        assert await reader.read() == data
        writer.close()
        await writer.wait_closed()
        server.close()
        await server.wait_closed()

    run(main())
