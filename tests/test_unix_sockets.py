"""Stream sockets of the Unix family."""

from __future__ import annotations

import asyncio
import errno
import random
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Run = Callable[..., Any]

TIMEOUT = 10


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "socket")


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()
    await writer.wait_closed()


async def closed(server: asyncio.Server) -> None:
    server.close()
    await server.wait_closed()


class Kept(asyncio.Protocol):
    """Hands its transport out."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.made: asyncio.Future[asyncio.Transport] = loop.create_future()
        self.lost: asyncio.Future[Exception | None] = loop.create_future()
        self.data = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.made.set_result(transport)

    def data_received(self, data: bytes) -> None:
        self.data += data

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set_result(exc)


def test_an_echo_through_streams(run: Run, path: str) -> None:
    data = random.Random(10).randbytes(3 << 20)

    async def main() -> None:
        server = await asyncio.start_unix_server(echo, path)
        assert server.sockets[0].getsockname() == path
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(data)
        writer.write_eof()
        assert await reader.read() == data
        writer.close()
        await writer.wait_closed()
        await closed(server)

    run(main())


def test_a_line_at_a_time(run: Run, path: str) -> None:
    async def main() -> None:
        server = await asyncio.start_unix_server(echo, path)
        reader, writer = await asyncio.open_unix_connection(path)
        for i in range(100):
            writer.write(b"line %d\n" % i)
            assert await reader.readline() == b"line %d\n" % i
        writer.close()
        await writer.wait_closed()
        await closed(server)

    run(main())


# -- addresses -----------------------------------------------------------------------------


async def names(address: str | bytes, bound: str | bytes | None) -> dict[str, Any]:
    """What both ends of a connection say of its addresses."""
    loop = asyncio.get_running_loop()
    accepted: asyncio.Future[Kept] = loop.create_future()

    def factory() -> Kept:
        protocol = Kept()
        accepted.set_result(protocol)
        return protocol

    server = await loop.create_unix_server(factory, address)  # type: ignore[arg-type]
    sock = socket.socket(socket.AF_UNIX)
    sock.setblocking(False)
    if bound is not None:
        sock.bind(bound)
    await loop.sock_connect(sock, address)
    client, protocol = await loop.create_unix_connection(Kept, sock=sock)
    theirs = await accepted
    told = await theirs.made
    found = {
        "client sockname": client.get_extra_info("sockname"),
        "client peername": client.get_extra_info("peername"),
        "server sockname": told.get_extra_info("sockname"),
        "server peername": told.get_extra_info("peername"),
        "listening": server.sockets[0].getsockname(),
        "family": told.get_extra_info("socket").family,
        "type": told.get_extra_info("socket").type,
    }
    client.close()
    assert await protocol.lost is None
    assert await theirs.lost is None
    await closed(server)
    return found


@pytest.mark.parametrize("bound", [False, True], ids=["unnamed client", "bound client"])
@pytest.mark.parametrize("abstract", [False, True], ids=["path", "abstract"])
def test_names_are_those_of_stock_asyncio(
    run: Run, tmp_path: Path, abstract: bool, bound: bool
) -> None:
    address: str | bytes = f"{tmp_path}/server ü"
    own: str | bytes = f"{tmp_path}/client"
    if abstract:
        address = b"\0ringloop " + str(tmp_path).encode() + b"\0zeros\0"
        own = address + b"client"
    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        expected = runner.run(names(address, own if bound else None))
    for left in tmp_path.iterdir():
        left.unlink()
    found = run(names(address, own if bound else None))
    assert found == expected
    assert found["server sockname"] == address
    assert found["server peername"] == (own if bound else "")


# -- the path --------------------------------------------------------------------------------


def test_a_path_object_and_start_serving_later(run: Run, path: str) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_unix_server(Kept, Path(path), start_serving=False)
        assert Path(path).is_socket()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_unix_connection(path)
        await server.start_serving()
        _, writer = await asyncio.open_unix_connection(path)
        writer.close()
        await writer.wait_closed()
        await closed(server)

    run(main())


def test_a_stale_socket_is_replaced(run: Run, path: str) -> None:
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(path)

    async def main() -> None:
        server = await asyncio.start_unix_server(echo, path)
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(b"new")
        assert await reader.readexactly(3) == b"new"
        writer.close()
        await writer.wait_closed()
        await closed(server)

    run(main())


def test_a_file_that_is_no_socket_is_left_alone(run: Run, path: str) -> None:
    Path(path).write_text("precious")

    async def main() -> None:
        with pytest.raises(OSError, match="already in use") as caught:
            await asyncio.start_unix_server(echo, path)
        assert caught.value.errno == errno.EADDRINUSE

    run(main())
    assert Path(path).read_text() == "precious"


@pytest.mark.skipif(sys.version_info < (3, 13), reason="cleanup_socket came with 3.13")
@pytest.mark.parametrize("cleanup", [True, False])
def test_close_removes_the_path_unless_told_not_to(run: Run, path: str, cleanup: bool) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        options: dict[str, Any] = {} if cleanup else {"cleanup_socket": False}
        server = await loop.create_unix_server(Kept, path, **options)
        server.close()
        assert Path(path).exists() is not cleanup
        await server.wait_closed()

    run(main())


@pytest.mark.skipif(sys.version_info < (3, 13), reason="cleanup_socket came with 3.13")
def test_close_leaves_a_path_that_is_somebody_elses_by_now(run: Run, path: str) -> None:
    async def main() -> None:
        first = await asyncio.start_unix_server(echo, path)
        second = await asyncio.start_unix_server(echo, path)  # takes the path over
        await closed(first)
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(b"second")
        assert await reader.readexactly(6) == b"second"
        writer.close()
        await writer.wait_closed()
        await closed(second)
        assert not Path(path).exists()

    run(main())


# -- errors ------------------------------------------------------------------------------------


def test_errors_are_those_of_stock_asyncio(run: Run, path: str) -> None:
    Path(path).write_text("no socket")

    async def failures() -> list[tuple[type[BaseException], object]]:
        loop = asyncio.get_running_loop()
        attempts: list[Callable[[], Awaitable[Any]]] = [
            lambda: loop.create_unix_connection(Kept, path),
            lambda: loop.create_unix_connection(Kept, path + ".missing"),
            lambda: loop.create_unix_connection(Kept),
            lambda: loop.create_unix_connection(Kept, "x" * 200),
            lambda: loop.create_unix_server(Kept),
            lambda: loop.create_unix_server(Kept, "x" * 200),
            lambda: loop.create_unix_server(Kept, path + ".dir/none"),
        ]
        found: list[tuple[type[BaseException], object]] = []
        for attempt in attempts:
            with pytest.raises((OSError, ValueError)) as caught:
                await attempt()
            found.append((caught.type, getattr(caught.value, "errno", None)))
        return found

    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        expected = runner.run(failures())
    assert run(failures()) == expected


def test_half_close_and_flush(run: Run) -> None:
    near, far = socket.socketpair()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        far.setblocking(False)
        transport, protocol = await loop.create_unix_connection(Kept, sock=near)
        assert transport.get_extra_info("socket").fileno() == near.fileno()
        transport.write(bytes(1 << 20))
        transport.write_eof()
        received = 0
        while data := await loop.sock_recv(far, 1 << 20):
            received += len(data)
        assert received == 1 << 20
        far.close()
        assert await asyncio.wait_for(protocol.lost, TIMEOUT) is None
        assert near.fileno() == -1

    run(main())
