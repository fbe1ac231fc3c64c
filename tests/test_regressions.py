"""What hurt users of other event loops: none of it may happen here.

Each test names where the trouble was first reported. They use public interfaces only.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import socket
import ssl
import weakref
from typing import TYPE_CHECKING, Any

import pytest

from certificates import Contexts
from machine import own_bytes

if TYPE_CHECKING:
    from collections.abc import Callable

    import ringloop

    Run = Callable[..., Any]

TIMEOUT = 10
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@pytest.fixture(scope="module")
def contexts(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    made = Contexts(tmp_path_factory.mktemp("tls"))
    return made.server, made.client


@pytest.fixture
def complaints(loop: ringloop.EventLoop) -> list[dict[str, Any]]:
    """What the loop's exception handler was told."""
    told: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: told.append(context))
    return told


async def stopped(server: asyncio.Server) -> None:
    server.close()
    await server.wait_closed()


# -- fd reuse ------------------------------------------------------------------------


class Answers(asyncio.Protocol):
    """Answers the connection's number, 4 bytes, with much data that is made of it."""

    def __init__(self, seed: random.Random) -> None:
        self.random = seed
        self.asked = b""
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.asked += data
        if len(self.asked) < 4:
            return
        # Large enough that some is still in flight, or not sent at all, at the end.
        for _ in range(self.random.randrange(1, 8)):
            self.transport.write(self.asked * self.random.choice((1, 500, 60_000)))
        if self.random.random() < 0.5:
            self.transport.close()
        else:
            asyncio.get_running_loop().call_soon(self.transport.abort)


# uvloop#645: a response was written to another connection, which had got the closed one's fd.
def test_no_byte_goes_to_a_connection_that_has_the_closed_ones_fd(
    run: Run, loop: ringloop.EventLoop
) -> None:
    seed = random.Random(645)
    numbers_seen: set[int] = set()

    async def client(address: tuple[str, int], number: int) -> int:
        mine = number.to_bytes(4, "big")
        reader, writer = await asyncio.open_connection(*address)
        numbers_seen.add(writer.get_extra_info("socket").fileno())
        writer.write(mine)
        received = bytearray()
        # Some leave early, so that the server's writes fail in the middle.
        enough = seed.choice((1, 100_000, 1 << 30))
        with contextlib.suppress(ConnectionError):
            while len(received) < enough and (data := await reader.read(65536)):
                received += data
        writer.transport.abort()
        whole = mine * (len(received) // 4 + 1)
        assert received == whole[: len(received)], f"connection {number} got another's bytes"
        return len(received)

    async def main() -> None:
        server = await loop.create_server(lambda: Answers(seed), "127.0.0.1", 0)
        address = server.sockets[0].getsockname()
        connections = total = 0
        for _ in range(12):
            batch = range(connections, connections + 20)
            total += sum(await asyncio.gather(*(client(address, n) for n in batch)))
            connections += len(batch)
        await stopped(server)
        # Else nothing was tested: each number served many connections, and much came.
        assert len(numbers_seen) * 3 < connections
        assert total > 1_000_000

    run(main(), 30)


# -- callbacks that fail ---------------------------------------------------------------


class Fails(asyncio.Protocol):
    """Everything that the end of a connection calls raises."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport
        self.calls: list[str] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def eof_received(self) -> bool:
        self.calls.append("eof_received")
        raise ZeroDivisionError("eof_received")

    def connection_lost(self, exc: Exception | None) -> None:
        self.calls.append("connection_lost")
        # The transport's own methods, from the callback that says it is gone.
        self.transport.write(b"too late")
        self.transport.close()
        self.transport.abort()
        raise ZeroDivisionError("connection_lost")


# uvloop#706: an exception in the callback of a close crashed the process.
@pytest.mark.parametrize("end", ["close", "abort", "eof", "reset"])
def test_an_exception_in_a_close_callback_is_reported_and_the_fd_closed(
    run: Run, loop: ringloop.EventLoop, complaints: list[dict[str, Any]], end: str
) -> None:
    async def main() -> None:
        protocols: list[Fails] = []

        def factory() -> Fails:
            protocols.append(Fails())
            return protocols[-1]

        server = await loop.create_server(factory, "127.0.0.1", 0)
        with socket.create_connection(server.sockets[0].getsockname()) as peer:
            async with asyncio.timeout(TIMEOUT):
                while not protocols or not hasattr(protocols[0], "transport"):
                    await asyncio.sleep(0)
            protocol = protocols[0]
            if end == "eof":
                peer.shutdown(socket.SHUT_WR)
            elif end == "reset":
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                peer.close()
            else:
                getattr(protocol.transport, end)()
            async with asyncio.timeout(TIMEOUT):
                while "connection_lost" not in protocol.calls:
                    await asyncio.sleep(0)
            if end != "reset":
                peer.settimeout(TIMEOUT)
                assert await asyncio.to_thread(peer.recv, 100) == b""
        await stopped(server)
        told = [str(context["exception"]) for context in complaints]
        assert told == protocol.calls
        assert protocol.calls.count("connection_lost") == 1
        # The loop goes on.
        assert await asyncio.to_thread(int, "17") == 17

    run(main())


# -- TLS -----------------------------------------------------------------------------


def starttls_client(
    context: ssl.SSLContext, address: tuple[str, int], *, one_segment: bool
) -> bytes:
    """Ask for TLS; the request and the first message of the handshake may come together."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_hostname="localhost")
    with contextlib.suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    hello = outgoing.read()
    with socket.create_connection(address, TIMEOUT) as sock:
        sock.sendall(b"STARTTLS\n" + (hello if one_segment else b""))
        assert sock.recv(3, socket.MSG_WAITALL) == b"go\n"
        if not one_segment:
            sock.sendall(hello)
        while True:
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                sock.sendall(outgoing.read())
                incoming.write(sock.recv(65536))
        # The end of the handshake and the first data come together, too.
        tls.write(b"first\nsecond\n")
        sock.sendall(outgoing.read())
        answer = b""
        while len(answer) < len(b"first\nsecond\n"):
            try:
                answer += tls.read()
            except ssl.SSLWantReadError:
                incoming.write(sock.recv(65536))
        return answer


# uvloop#707, python/cpython#142352: start_tls() lost what the reader had received before.
@pytest.mark.parametrize("one_segment", [True, False], ids=["together", "apart"])
def test_start_tls_loses_nothing_that_came_before_it(
    run: Run, contexts: tuple[ssl.SSLContext, ssl.SSLContext], one_segment: bool
) -> None:
    server_context, client_context = contexts

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.readline() == b"STARTTLS\n"
        writer.write(b"go\n")
        await writer.start_tls(server_context)
        while line := await reader.readline():
            writer.write(line.upper())
        writer.close()

    async def main() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        address = server.sockets[0].getsockname()
        answer = await asyncio.to_thread(
            starttls_client, client_context, address, one_segment=one_segment
        )
        assert answer == b"FIRST\nSECOND\n"
        await stopped(server)

    run(main())


class Flood:
    """A peer that sends for as long as it can, and never looks at what it gets."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self.context = context
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.sent = 0

    def serve_one(self) -> None:
        with self.listener, contextlib.suppress(OSError):
            sock, _ = self.listener.accept()
            sock.settimeout(TIMEOUT)
            with self.context.wrap_socket(sock, server_side=True) as tls:
                while True:
                    self.sent += tls.send(bytes(65536))


# uvloop#471: a TLS connection that was closed went on downloading for half a minute.
@pytest.mark.parametrize("reading", ["reading", "paused"])
def test_a_closed_tls_connection_stops_downloading(
    run: Run, contexts: tuple[ssl.SSLContext, ssl.SSLContext], reading: str
) -> None:
    server_context, client_context = contexts

    async def main() -> None:
        flood = Flood(server_context)
        serving = asyncio.create_task(asyncio.to_thread(flood.serve_one))
        reader, writer = await asyncio.open_connection(
            *flood.listener.getsockname(), ssl=client_context, server_hostname="localhost"
        )
        assert len(await reader.readexactly(1 << 20)) == 1 << 20
        if reading == "paused":
            # The reader's buffer fills, and the peer is held back.
            transport = writer.transport
            assert isinstance(transport, asyncio.Transport)
            async with asyncio.timeout(TIMEOUT):
                while transport.is_reading():
                    await asyncio.sleep(0)
        before = flood.sent
        writer.close()
        # The peer hears of it, and not only after asyncio's ssl_shutdown_timeout of 30 s.
        await asyncio.wait_for(serving, 5)
        # What was on its way may be thrown away; no more than the buffers hold.
        assert flood.sent - before < 32 << 20
        with contextlib.suppress(OSError):
            await asyncio.wait_for(writer.wait_closed(), 5)

    run(main(), 20)


# uvloop#565, python/cpython#109534: each TLS connection left some 40 KiB behind.
@pytest.mark.measures_memory
@pytest.mark.parametrize("end", ["close", "abort"])
def test_tls_connections_leave_no_memory_behind(
    run: Run,
    loop: ringloop.EventLoop,
    contexts: tuple[ssl.SSLContext, ssl.SSLContext],
    end: str,
) -> None:
    server_context, client_context = contexts
    made: list[weakref.ref[asyncio.Protocol]] = []

    class Once(asyncio.Protocol):
        def __init__(self) -> None:
            made.append(weakref.ref(self))
            self.lost = loop.create_future()

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            assert isinstance(transport, asyncio.Transport)
            transport.write(b"hello")
            getattr(transport, end)()

        def connection_lost(self, exc: Exception | None) -> None:
            self.lost.set_result(None)

    async def client(address: tuple[str, int]) -> None:
        with contextlib.suppress(OSError):
            _, protocol = await loop.create_connection(
                Once, *address, ssl=client_context, server_hostname="localhost"
            )
            await protocol.lost

    async def main() -> None:
        server = await loop.create_server(Once, "127.0.0.1", 0, ssl=server_context)
        address = server.sockets[0].getsockname()

        async def batch() -> int:
            for _ in range(6):
                await asyncio.gather(*(client(address) for _ in range(20)))
            async with asyncio.timeout(TIMEOUT):
                while any(ref() is not None for ref in made):
                    await asyncio.sleep(0)
                    gc.collect()
            made.clear()
            return own_bytes()

        await batch()
        before = await batch()
        growth = await batch() - before
        assert growth < 120 * 20_000
        await stopped(server)

    run(main(), 30)
