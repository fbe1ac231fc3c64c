"""ringloop.streams over sockets: connections, flow control, ends and failures."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import inspect
import itertools
import random
import socket
import ssl
import struct
from typing import TYPE_CHECKING, Any

import pytest

from certificates import Contexts
from ringloop import streams

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    import ringloop

    Run = Callable[..., Any]
    Pair = tuple[asyncio.StreamReader, asyncio.StreamWriter]

ON_FAULTY_DRIVERS = True
FAILS = pytest.mark.xfail(raises=AssertionError)  # asyncio's own have the defect

# Younger versions do.
ASYNCIO_CLOSES_AFTER_CANCEL = "task.cancelled()" in inspect.getsource(
    asyncio.StreamReaderProtocol.connection_made
)


@pytest.fixture(scope="module")
def contexts(tmp_path_factory: pytest.TempPathFactory) -> Contexts:
    return Contexts(tmp_path_factory.mktemp("tls"))


def on_both(*marks: pytest.MarkDecorator) -> pytest.MarkDecorator:
    """Run on asyncio's streams, where `marks` say what is wrong with them, and on ours."""
    return pytest.mark.parametrize(
        "kind",
        [pytest.param(asyncio, marks=marks, id="asyncio"), pytest.param(streams, id="ringloop")],
    )


@contextlib.asynccontextmanager
async def served(handle: Any, *, kind: Any = streams, **options: Any) -> AsyncIterator[Any]:
    server = await kind.start_server(handle, "127.0.0.1", 0, **options)
    try:
        yield server.sockets[0].getsockname()
    finally:
        server.close()
        await server.wait_closed()


@contextlib.asynccontextmanager
async def pair(limit: int = 65536, **options: Any) -> AsyncIterator[tuple[Pair, Pair]]:
    """Both ends of a connection: the client's, the server's."""
    accepted: asyncio.Future[Pair] = asyncio.get_running_loop().create_future()
    async with served(lambda *ends: accepted.set_result(ends), limit=limit) as address:
        client = await streams.open_connection(*address, limit=limit, **options)
        server = await accepted
        try:
            yield client, server
        finally:
            for _, writer in (client, server):
                await close(writer)


async def close(writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(10_000):
        writer.write(data)
        await writer.drain()
    writer.close()
    await writer.wait_closed()


async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, seed: int) -> None:
    """Send messages of all sizes to an echo; read them back by every method."""
    chance = random.Random(seed)
    for _ in range(40):
        size = chance.choice([1, 30, 1000, 5000, 100_000])
        body = chance.randbytes(size).replace(b"\n", b"-")
        writer.write(body + b"\n")
        sent = asyncio.create_task(writer.drain())
        match chance.randrange(4):
            case 0:
                assert await reader.readexactly(size + 1) == body + b"\n"
            case 1:
                assert await reader.readline() == body + b"\n"
            case 2:
                assert await reader.readuntil(b"\n") == body + b"\n"
            case 3:
                got = b""
                while len(got) < size + 1:
                    got += await reader.read(size + 1 - len(got))
                assert got == body + b"\n"
        await sent
    writer.write_eof()
    assert await reader.read() == b""
    writer.close()
    await writer.wait_closed()


def test_every_read_over_tcp(run: Run) -> None:
    async def main() -> None:
        async with served(echo) as address:
            ends = [await streams.open_connection(*address, limit=200_000) for _ in range(3)]
            await asyncio.gather(*(talk(*end, seed) for seed, end in enumerate(ends)))

    run(main(), timeout=30)


def test_every_read_over_a_unix_socket(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        path = str(tmp_path / "socket")
        server = await streams.start_unix_server(echo, path)
        reader, writer = await streams.open_unix_connection(path, limit=200_000)
        assert type(reader) is streams.StreamReader
        assert type(writer) is streams.StreamWriter
        await talk(reader, writer, 7)
        server.close()
        await server.wait_closed()

    run(main(), timeout=30)


def test_a_small_limit_pauses_and_loses_nothing(run: Run) -> None:
    async def main() -> None:
        async with pair(limit=1000) as ((reader, _), (_, writer)):
            data = random.Random(1).randbytes(2_000_000)
            writer.write(data)
            sent = asyncio.create_task(writer.drain())
            core: Any = reader
            while not core._paused:
                await asyncio.sleep(0)
            assert len(core._buffer) > 2000
            assert not reader._transport.is_reading()  # type: ignore[attr-defined]
            got = await reader.readexactly(1_500_000)
            while len(got) < len(data):
                got += await reader.read(333)
            assert got == data
            await sent

    run(main(), timeout=30)


def test_eof_in_the_middle(run: Run) -> None:
    async def main() -> None:
        async with pair() as ((reader, client), (far, writer)):
            task = asyncio.create_task(reader.readexactly(10))
            writer.write(b"12345")
            writer.write_eof()
            with pytest.raises(asyncio.IncompleteReadError) as caught:
                await task
            assert caught.value.partial == b"12345"
            assert reader.at_eof()
            client.write(b"still open this way\n")
            assert await far.readline() == b"still open this way\n"

    run(main())


def test_a_reset_is_raised_by_reads_drain_and_wait_closed(run: Run) -> None:
    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            reader, writer = await streams.open_connection(*listener.getsockname())
            far, _ = listener.accept()
        task = asyncio.create_task(reader.read(10))
        await asyncio.sleep(0)
        far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        far.close()
        with pytest.raises(ConnectionResetError):
            await task
        with pytest.raises(ConnectionResetError):
            await reader.readline()
        with pytest.raises(ConnectionResetError):
            await writer.drain()
        writer.close()
        with pytest.raises(ConnectionResetError):
            await writer.wait_closed()

    run(main())


def test_drain_waits_for_a_peer_that_does_not_read(run: Run) -> None:
    async def main() -> None:
        async with pair() as ((_, writer), (far, _)):
            await writer.drain()
            size = 0
            while not writer._protocol._paused:  # type: ignore[attr-defined]
                writer.write(bytes(1_000_000))
                size += 1_000_000
                await asyncio.sleep(0)
            first, second = (asyncio.create_task(writer.drain()) for _ in range(2))
            await asyncio.sleep(0)
            first.cancel()
            await asyncio.wait([first])
            assert first.cancelled()
            assert not second.done()
            assert len(await far.readexactly(size)) == size
            await second

    run(main(), timeout=30)


def test_drain_after_the_end_raises(run: Run) -> None:
    async def main() -> None:
        async with pair() as ((_, writer), _):
            writer.transport.abort()
            with pytest.raises(ConnectionResetError, match="Connection lost"):
                while True:
                    writer.write(b"x")
                    await writer.drain()

    run(main())


# -- wait_closed() -----------------------------------------------------------------------


@on_both(FAILS)
def test_giving_up_wait_closed_does_not_end_it_for_others(run: Run, kind: Any) -> None:
    """asyncio cancels the one future that everybody waits for."""

    async def main() -> None:
        accepted: asyncio.Future[Pair] = asyncio.get_running_loop().create_future()
        async with served(lambda *ends: accepted.set_result(ends), kind=kind) as address:
            _, writer = await kind.open_connection(*address)
            first, second = (asyncio.create_task(writer.wait_closed()) for _ in range(2))
            await asyncio.sleep(0)
            first.cancel()
            await asyncio.wait([first])
            await asyncio.sleep(0)
            try:
                assert not second.done()
                writer.close()
                await second
                await writer.wait_closed()
            finally:
                await asyncio.wait([second])
                writer.transport.abort()
                (await accepted)[1].transport.abort()

    run(main())


@on_both(FAILS)
@pytest.mark.parametrize("how", ["abort", "reset"])
def test_wait_closed_and_drain_end_whatever_the_reader_does(run: Run, kind: Any, how: str) -> None:
    """asyncio's wait for ever if the reader raises at the end."""

    class Reader(kind.StreamReader):  # type: ignore[misc]
        def feed_eof(self) -> None:
            raise RuntimeError("no end")

        def set_exception(self, exc: Exception) -> None:
            raise RuntimeError("no end")

    async def main() -> None:
        loop = asyncio.get_running_loop()
        reported: list[Any] = []
        loop.set_exception_handler(lambda _, context: reported.append(context["exception"]))
        ends = socket.socketpair()
        reader = Reader(loop=loop)
        protocol = kind.StreamReaderProtocol(reader, loop=loop)
        transport, _ = await loop.create_connection(lambda: protocol, sock=ends[0])
        writer = kind.StreamWriter(transport, protocol, reader, loop)
        transport.pause_reading()
        writer.write(bytes(4_000_000))
        closed = asyncio.create_task(writer.wait_closed())
        drained = asyncio.create_task(writer.drain())
        for _ in range(5):
            await asyncio.sleep(0)
        assert not drained.done()
        if how == "abort":
            transport.abort()
        else:
            ends[1].close()
        while not reported:
            await asyncio.sleep(0)
        for _ in range(5):
            await asyncio.sleep(0)
        ends[1].close()
        try:
            assert closed.done()
            assert drained.done()
        finally:
            closed.cancel()
            drained.cancel()
            await asyncio.wait([closed, drained])
        for task in (closed, drained):
            assert isinstance(task.exception(), ConnectionError if how == "reset" else type(None))
        assert [str(exc) for exc in reported] == ["no end"]

    run(main())


# -- handlers that fail ------------------------------------------------------------------


async def outcome_of_handler(kind: Any, handle: Any) -> tuple[bool, list[Any]]:
    """Whether the server closed the connection by itself, and what was reported."""
    loop = asyncio.get_running_loop()
    reported: list[Any] = []
    loop.set_exception_handler(lambda _, context: reported.append(context))
    kept: list[Any] = []  # as servers do that keep a list of connections

    def keeping(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Any:
        kept.append(writer)
        return handle(reader, writer)

    async with served(keeping, kind=kind) as address:
        _, writer = await kind.open_connection(*address)
        while not kept:
            await asyncio.sleep(0)
        for _ in range(10):
            await asyncio.sleep(0)
        closed = kept[0].transport.is_closing()
        for transport in (writer.transport, kept[0].transport):
            transport.abort()
    return closed, reported


@on_both(FAILS)
def test_a_plain_callback_that_fails_closes_the_connection(run: Run, kind: Any) -> None:
    def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        raise RuntimeError("handler")

    closed, reported = run(outcome_of_handler(kind, handle))
    assert closed
    assert [str(context["exception"]) for context in reported] == ["handler"]


@on_both()
def test_a_coroutine_that_fails_closes_the_connection(run: Run, kind: Any) -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        raise RuntimeError("handler")

    closed, reported = run(outcome_of_handler(kind, handle))
    assert closed
    assert [context["message"] for context in reported] == [
        "Unhandled exception in client_connected_cb"
    ]
    assert isinstance(reported[0]["transport"], asyncio.Transport)


@on_both(*([] if ASYNCIO_CLOSES_AFTER_CANCEL else [FAILS]))
def test_a_coroutine_that_is_cancelled_closes_the_connection(run: Run, kind: Any) -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        raise asyncio.CancelledError

    closed, reported = run(outcome_of_handler(kind, handle))
    assert closed
    assert reported == []


def test_a_handler_may_return_and_leave_the_connection_to_others(run: Run) -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        pass

    assert run(outcome_of_handler(streams, handle)) == (False, [])


def test_a_connection_that_nobody_has_any_more_is_closed(run: Run) -> None:
    async def main() -> None:
        async with served(echo) as address:
            ends = await streams.open_connection(*address)
            transport = ends[1].transport
            with pytest.warns(ResourceWarning, match="unclosed <StreamWriter"):
                del ends
                gc.collect()
            assert transport.is_closing()

    run(main())


# -- TLS ---------------------------------------------------------------------------------


def test_tls(run: Run, contexts: Contexts) -> None:
    async def main() -> None:
        async with served(echo, ssl=contexts.server) as address:
            reader, writer = await streams.open_connection(
                *address, ssl=contexts.client, server_hostname="localhost", limit=200_000
            )
            data = random.Random(3).randbytes(300_000)
            writer.write(data)
            await writer.drain()
            assert await reader.readexactly(len(data)) == data
            writer.close()
            with contextlib.suppress(ssl.SSLError):
                await writer.wait_closed()

    run(main(), timeout=30)


def test_start_tls_in_mid_connection(run: Run, contexts: Contexts) -> None:
    async def main() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            assert await reader.readline() == b"starttls\n"
            writer.write(b"go on\n")
            await writer.drain()
            await writer.start_tls(contexts.server)
            await echo(reader, writer)

        async with served(serve) as address:
            reader, writer = await streams.open_connection(*address, limit=1000)
            plain = writer.transport
            writer.write(b"starttls\n")
            assert await reader.readline() == b"go on\n"
            await writer.start_tls(contexts.client, server_hostname="localhost")
            assert writer.transport is not plain
            assert writer.get_extra_info("ssl_object").version() == "TLSv1.3"
            core: Any = reader
            assert core._transport is writer.transport  # which is what it pauses
            data = random.Random(4).randbytes(200_000)
            writer.write(data)
            while not core._paused:
                await asyncio.sleep(0)
            assert await reader.readexactly(len(data)) == data
            writer.close()
            with contextlib.suppress(ssl.SSLError):
                await writer.wait_closed()

    run(main(), timeout=30)


# -- mixed -------------------------------------------------------------------------------


def test_our_classes_and_asyncios_go_together(run: Run, loop: ringloop.EventLoop) -> None:
    async def talk_by(kinds: tuple[Any, ...], address: Any) -> None:
        reader = kinds[0].StreamReader(loop=loop)
        protocol = kinds[1].StreamReaderProtocol(reader, loop=loop)
        transport, _ = await loop.create_connection(lambda: protocol, *address)
        writer = kinds[2].StreamWriter(transport, protocol, reader, loop)
        assert isinstance(writer, asyncio.StreamWriter)
        assert isinstance(protocol, asyncio.StreamReaderProtocol)
        writer.writelines([b"one\n", bytearray(b"two\n")])
        await writer.drain()
        assert await reader.readline() + await reader.readline() == b"one\ntwo\n"
        assert writer.can_write_eof()
        writer.write_eof()
        assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()

    async def main() -> None:
        async with served(echo) as address:
            for kinds in itertools.product((asyncio, streams), repeat=3):
                await talk_by(kinds, address)

    run(main())


def test_a_drain_that_need_not_wait_can_be_used_as_a_coroutine(run: Run) -> None:
    async def main() -> None:
        async with pair() as ((_, writer), _):
            assert asyncio.iscoroutine(writer.drain())
            assert await writer.drain() is None
            await asyncio.create_task(writer.drain())
            await asyncio.gather(writer.drain(), writer.drain())
            await asyncio.wait_for(writer.drain(), 1)
            task = asyncio.create_task(writer.drain())
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    run(main())


def test_in_debug_mode_a_forgotten_await_is_told_of(run: Run, loop: ringloop.EventLoop) -> None:
    async def main() -> None:
        async with pair() as ((_, writer), _):
            loop.set_debug(True)
            with pytest.warns(RuntimeWarning, match="StreamWriter.drain' was never awaited"):
                forgotten = writer.drain()
                del forgotten
            loop.set_debug(False)

    run(main())
