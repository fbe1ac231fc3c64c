"""TLS over sockets: streams, transports, start_tls, and what goes wrong."""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import ssl
from typing import TYPE_CHECKING, Any

import pytest

from certificates import Contexts

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    import ringloop

    Run = Callable[..., Any]

TIMEOUT = 10

pytestmark = pytest.mark.usefixtures("engine")


@pytest.fixture(scope="module")
def contexts(tmp_path_factory: pytest.TempPathFactory) -> Contexts:
    return Contexts(tmp_path_factory.mktemp("tls"))


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    await closed(writer)


async def closed(writer: asyncio.StreamWriter) -> None:
    writer.close()
    await writer.wait_closed()


def address_of(server: asyncio.Server) -> tuple[str, int]:
    address: tuple[str, int] = server.sockets[0].getsockname()
    return address


async def stopped(server: asyncio.Server) -> None:
    server.close()
    await server.wait_closed()


def test_a_megabyte_both_ways_at_once(run: Run, contexts: Contexts) -> None:
    data = random.Random(13).randbytes(1 << 20)

    async def main() -> None:
        server = await asyncio.start_server(echo, "127.0.0.1", 0, ssl=contexts.server)
        reader, writer = await asyncio.open_connection(*address_of(server), ssl=contexts.client)
        tls = writer.get_extra_info("ssl_object")
        assert tls.version() == "TLSv1.3"
        assert writer.get_extra_info("peercert")["subject"] == ((("commonName", "localhost"),),)
        assert writer.get_extra_info("peername") == address_of(server)
        assert writer.get_extra_info("socket").getpeername() == address_of(server)
        writer.write(data)
        assert await reader.readexactly(len(data)) == data
        await closed(writer)
        await stopped(server)

    run(main())


def test_many_small_messages_on_many_connections(run: Run, contexts: Contexts) -> None:
    async def client(address: tuple[str, int], number: int) -> None:
        reader, writer = await asyncio.open_connection(*address, ssl=contexts.client)
        for i in range(20):
            message = b"%d of %d\n" % (i, number)
            writer.write(message)
            assert await reader.readline() == message
        await closed(writer)

    async def main() -> None:
        server = await asyncio.start_server(echo, "127.0.0.1", 0, ssl=contexts.server)
        await asyncio.gather(*(client(address_of(server), i) for i in range(20)))
        await stopped(server)

    run(main())


def test_a_slow_reader_makes_a_tls_writer_wait(run: Run, contexts: Contexts) -> None:
    piece = random.Random(14).randbytes(1 << 16)
    total = 400  # 25 MiB, more than any socket buffer

    async def main() -> None:
        sizes = []

        async def flood(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            for _i in range(total):
                writer.write(piece)
                await writer.drain()
                sizes.append(writer.transport.get_write_buffer_size())
            await closed(writer)

        server = await asyncio.start_server(flood, "127.0.0.1", 0, ssl=contexts.server)
        reader, writer = await asyncio.open_connection(*address_of(server), ssl=contexts.client)
        stuck = -1
        while stuck != len(sizes):  # until nothing moves any more
            stuck = len(sizes)
            for _ in range(100):
                await asyncio.sleep(0)
        assert stuck < total
        for _ in range(total):
            assert await reader.readexactly(len(piece)) == piece
        assert await reader.read() == b""
        assert max(sizes) < 4 * len(piece) + (1 << 19)
        await closed(writer)
        await stopped(server)

    run(main(), timeout=30)


# -- start_tls ---------------------------------------------------------------------------


def test_start_tls_of_streams_in_mid_connection(run: Run, contexts: Contexts) -> None:
    async def main() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            assert await reader.readline() == b"starttls\n"
            writer.write(b"go on\n")
            await writer.drain()
            await writer.start_tls(contexts.server)
            await echo(reader, writer)

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*address_of(server))
        plain = writer.transport
        writer.write(b"starttls\n")
        assert await reader.readline() == b"go on\n"
        await writer.start_tls(contexts.client, server_hostname="localhost")
        assert writer.transport is not plain
        assert writer.get_extra_info("ssl_object").version() == "TLSv1.3"
        for size in (1, 100_000, 10, 1_000_000):
            data = random.Random(size).randbytes(size)
            writer.write(data)
            assert await reader.readexactly(size) == data
        await closed(writer)
        await stopped(server)

    run(main())


def test_start_tls_of_a_protocol(run: Run, loop: ringloop.EventLoop, contexts: Contexts) -> None:
    class Greeting(asyncio.Protocol):
        def __init__(self) -> None:
            self.got: asyncio.Future[bytes] = loop.create_future()
            self.lost: asyncio.Future[Exception | None] = loop.create_future()

        def data_received(self, data: bytes) -> None:
            self.got.set_result(data)

        def connection_lost(self, exc: Exception | None) -> None:
            self.lost.set_result(exc)

    async def main() -> None:
        near, far = socket.socketpair()
        ours, theirs = Greeting(), Greeting()
        plain, _ = await loop.create_connection(lambda: ours, sock=near)
        other, _ = await loop.create_connection(lambda: theirs, sock=far)
        upgraded, served = await asyncio.gather(
            loop.start_tls(plain, ours, contexts.client, server_hostname="localhost"),
            loop.start_tls(other, theirs, contexts.server, server_side=True),
        )
        assert upgraded is not None
        assert served is not None
        upgraded.write(b"from the client")
        served.write(b"from the server")
        assert await theirs.got == b"from the client"
        assert await ours.got == b"from the server"
        upgraded.close()
        assert await ours.lost is None
        assert await theirs.lost is None

    run(main())


# -- what goes wrong ---------------------------------------------------------------------


def test_a_wrong_host_name_is_rejected(run: Run, contexts: Contexts) -> None:
    async def main() -> None:
        server = await asyncio.start_server(echo, "127.0.0.1", 0, ssl=contexts.server)
        with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
            await asyncio.open_connection(
                *address_of(server), ssl=contexts.client, server_hostname="example.org"
            )
        with pytest.raises(ssl.SSLCertVerificationError, match="self-signed"):
            await asyncio.open_connection(*address_of(server), ssl=True)
        # and the server goes on
        reader, writer = await asyncio.open_connection(*address_of(server), ssl=contexts.client)
        writer.write(b"x")
        assert await reader.readexactly(1) == b"x"
        await closed(writer)
        await stopped(server)

    run(main())


def test_a_handshake_that_nobody_answers_times_out(run: Run, contexts: Contexts) -> None:
    async def main() -> None:
        with (
            socket.create_server(("127.0.0.1", 0)) as silent,
            pytest.raises(ConnectionAbortedError, match="handshake is taking longer"),
        ):
            await asyncio.open_connection(
                *silent.getsockname(), ssl=contexts.client, ssl_handshake_timeout=0.05
            )

    run(main())


def test_a_client_that_never_shakes_hands_is_dropped(run: Run, contexts: Contexts) -> None:
    async def main() -> None:
        server = await asyncio.start_server(
            echo, "127.0.0.1", 0, ssl=contexts.server, ssl_handshake_timeout=0.05
        )
        reader, writer = await asyncio.open_connection(*address_of(server))
        assert await reader.read() == b""
        await closed(writer)
        await stopped(server)

    run(main())


def test_a_client_that_speaks_no_tls_is_dropped(run: Run, contexts: Contexts) -> None:
    async def main() -> None:
        server = await asyncio.start_server(echo, "127.0.0.1", 0, ssl=contexts.server)
        reader, writer = await asyncio.open_connection(*address_of(server))
        writer.write(b"GET / HTTP/1.0\r\n\r\n")
        # At most an alert; a reset if the server had not read all of it.
        with contextlib.suppress(ConnectionResetError):
            assert len(await reader.read()) < 100
        writer.close()
        await asyncio.gather(writer.wait_closed(), return_exceptions=True)
        await stopped(server)

    run(main())


@pytest.mark.parametrize("how", ["end without goodbye", "reset", "goodbye"])
def test_an_abrupt_end_looks_as_it_does_in_stock_asyncio(
    run: Run, contexts: Contexts, how: str
) -> None:
    async def ending() -> tuple[bytes, str, str]:
        """What a client that reads sees of the connection's end."""
        over = asyncio.Event()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"some data")
            assert await reader.read(3) == b"got"
            if how == "goodbye":
                writer.close()
            else:
                if how == "reset":
                    sock = writer.get_extra_info("socket")
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                writer.transport.abort()
            await asyncio.gather(writer.wait_closed(), return_exceptions=True)
            over.set()

        async def outcome(call: Awaitable[Any]) -> str:
            try:
                return repr(await asyncio.wait_for(call, TIMEOUT))
            except Exception as exc:
                return type(exc).__name__

        server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=contexts.server)
        reader, writer = await asyncio.open_connection(*address_of(server), ssl=contexts.client)
        data = await reader.readexactly(9)
        writer.write(b"got")
        rest = await outcome(reader.read())
        writer.close()
        lost = await outcome(writer.wait_closed())
        await asyncio.wait_for(over.wait(), TIMEOUT)
        await stopped(server)
        return data, rest, lost

    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        expected = runner.run(ending())
    assert run(ending()) == expected
    assert expected[0] == b"some data"


def test_a_protocol_that_was_paused_for_what_then_left_is_resumed(
    run: Run, loop: ringloop.EventLoop, contexts: Contexts
) -> None:
    class Paused(asyncio.Protocol):
        def __init__(self) -> None:
            self.told: list[str] = []
            self.resumed = loop.create_future()
            self.transport: Any = None

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = transport

        def data_received(self, data: bytes) -> None:
            self.transport.write(data)  # leaves when this returns
            self.transport.set_write_buffer_limits(0)

        def pause_writing(self) -> None:
            self.told.append("pause")

        def resume_writing(self) -> None:
            self.told.append("resume")
            self.resumed.set_result(None)

    async def main() -> None:
        protocol = Paused()
        server = await loop.create_server(lambda: protocol, "127.0.0.1", 0, ssl=contexts.server)
        reader, writer = await asyncio.open_connection(
            *server.sockets[0].getsockname(), ssl=contexts.client, server_hostname="localhost"
        )
        writer.write(b"hello")
        assert await reader.readexactly(5) == b"hello"
        await protocol.resumed
        assert protocol.told == ["pause", "resume"]
        writer.close()
        await writer.wait_closed()
        server.close()
        await server.wait_closed()

    run(main())
