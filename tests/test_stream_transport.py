"""Stream transports do what asyncio documents.

The strongest tests run one scenario on a stock asyncio loop and on ringloop and
compare what the protocols were told, callback by callback.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import logging
import random
import socket
import sys
import warnings
import weakref
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import drivers
import ringloop

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Run = Callable[..., Any]

ON_FAULTY_DRIVERS = True
TIMEOUT = 10


def tcp_pair(host: str = "127.0.0.1") -> tuple[socket.socket, socket.socket]:
    """Two connected TCP sockets, both blocking."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as listener:
        near = socket.create_connection(listener.getsockname()[:2])
        far, _ = listener.accept()
    far.settimeout(TIMEOUT)
    return near, far


# -- one scenario, two loops ---------------------------------------------------------


@dataclass
class Log:
    """What the two protocols and the exception handler were told."""

    client: list[tuple[str, Any]] = field(default_factory=list)
    server: list[tuple[str, Any]] = field(default_factory=list)
    errors: list[tuple[str, str, str]] = field(default_factory=list)

    def note_error(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        exc = context["exception"]
        message = context["message"]
        if "allback" in message or "transport creation" in message:
            message = "a callback failed"  # asyncio names its own internals here
        self.errors.append((type(exc).__name__, str(exc), message))


Reaction = tuple[str, str, str]  # who, in which callback, does what


class Recorder(asyncio.Protocol):
    """Notes each callback; in one of them it does what the scenario says."""

    def __init__(self, who: str, log: Log, reaction: Reaction) -> None:
        self.who = who
        self.events: list[tuple[str, Any]] = getattr(log, who)
        self.reaction = reaction
        self.transport: asyncio.Transport
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def react(self, event: str) -> bool:
        """Do it; True if the usual course of things goes on."""
        who, when, action = self.reaction
        if (who, when) != (self.who, event):
            return True
        if action == "raise":
            raise ValueError(f"raised in {event}")
        if action == "pause and resume":
            self.transport.pause_reading()
            self.transport.resume_reading()
        elif action == "keep open":
            self.transport.write(b"after eof")
            self.transport.close()
        else:
            getattr(self.transport, action)()
        return action not in ("close", "abort")

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.events.append(("connection_made", transport.is_closing()))
        self.transport = transport
        try:
            self.react("connection_made")
        finally:
            self.begin()

    def begin(self) -> None:
        if self.who == "client":
            self.transport.write(b"ping")

    def data_received(self, data: bytes) -> None:
        if self.events[-1][0] == "data_received":  # in how many pieces is nobody's business
            self.events[-1] = ("data_received", self.events[-1][1] + data)
        else:
            self.events.append(("data_received", data))
        if self.events[-1][1] in (b"ping", b"pong") and self.react("data_received"):
            if self.who == "client":
                self.transport.write_eof()
            else:
                self.transport.write(b"pong")

    def eof_received(self) -> bool | None:
        self.events.append(("eof_received", self.transport.is_closing()))
        self.react("eof_received")
        return self.reaction == (self.who, "eof_received", "keep open") or None

    def pause_writing(self) -> None:
        self.events.append(("pause_writing", self.transport.get_write_buffer_size() > 0))
        self.react("pause_writing")

    def resume_writing(self) -> None:
        self.events.append(("resume_writing", self.transport.is_closing()))
        asyncio.get_running_loop().call_soon(self.transport.close)
        self.react("resume_writing")

    def connection_lost(self, exc: Exception | None) -> None:
        self.events.append(("connection_lost", exc if exc is None else type(exc).__name__))
        self.lost.set_result(None)
        self.react("connection_lost")


class Flooded(Recorder):
    """The server writes more than the sockets hold; the client reads only after that."""

    def begin(self) -> None:
        if self.who == "client":
            self.transport.pause_reading()
        else:
            self.transport.write(bytes(16 << 20))

    def data_received(self, data: bytes) -> None:
        if self.events[-1][0] != "data_received":
            self.events.append(("data_received", None))


async def play(log: Log, kind: type[Recorder], reaction: Reaction) -> None:
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(log.note_error)
    accepted: asyncio.Future[Recorder] = loop.create_future()

    def factory() -> Recorder:
        recorder = kind("server", log, reaction)
        accepted.set_result(recorder)
        return recorder

    server = await loop.create_server(factory, "127.0.0.1", 0)
    address = server.sockets[0].getsockname()
    _, client = await loop.create_connection(lambda: kind("client", log, reaction), *address)
    theirs = await accepted
    while not log.server:  # its connection_made comes with the next iterations
        await asyncio.sleep(0)
    client.transport.resume_reading()
    await asyncio.wait_for(asyncio.gather(client.lost, theirs.lost), TIMEOUT)
    server.close()
    await server.wait_closed()
    for recorder in (client, theirs):
        assert recorder.transport.is_closing()
        assert recorder.transport.get_extra_info("peername") is not None


@functools.cache
def on_stock_asyncio(kind: type[Recorder], reaction: Reaction) -> Log:
    log = Log()
    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        runner.run(play(log, kind, reaction))
    return log


USUAL: Reaction = ("nobody", "never", "nothing")
ACTIONS = ("raise", "close", "abort", "write_eof", "pause and resume")
CALLBACKS = ("connection_made", "data_received", "eof_received", "connection_lost")
TALKS = [
    USUAL,
    *((w, c, a) for w in ("client", "server") for c in CALLBACKS for a in ACTIONS),
    ("server", "eof_received", "keep open"),
    ("client", "eof_received", "keep open"),
]
FLOODS = [
    USUAL,
    *(("server", c, a) for c in ("pause_writing", "resume_writing") for a in ACTIONS),
]


@pytest.mark.parametrize("reaction", TALKS, ids="-".join)
def test_same_events_as_stock_asyncio(run: Run, reaction: Reaction) -> None:
    expected, log = on_stock_asyncio(Recorder, reaction), Log()
    run(play(log, Recorder, reaction))
    assert log.errors == expected.errors
    assert log.server == expected.server
    if reaction[:2] == ("server", "connection_made") and reaction[2] in ("close", "abort"):
        # The ping was never read, so a reset chases the end of the stream: a race.
        assert log.client[0] == expected.client[0]
        assert log.client[-1][0] == "connection_lost"
    else:
        assert log.client == expected.client


@pytest.mark.parametrize("reaction", FLOODS, ids="-".join)
def test_same_events_as_stock_asyncio_when_writes_pause(run: Run, reaction: Reaction) -> None:
    expected, log = on_stock_asyncio(Flooded, reaction), Log()
    run(play(log, Flooded, reaction))
    assert ("pause_writing", True) in log.server
    assert log.server == expected.server
    assert log.client == expected.client
    if reaction in (("server", "resume_writing", "close"), ("server", "resume_writing", "abort")):
        # asyncio calls connection_lost() twice then, the second time on None.
        expected.errors.clear()
    assert log.errors == expected.errors


# -- one transport and a plain socket --------------------------------------------------


class Collect(asyncio.Protocol):
    """Keeps what arrives and when the connection ended."""

    def __init__(self, keep_open: bool = False) -> None:
        loop = asyncio.get_running_loop()
        self.data = bytearray()
        self.keep_open = keep_open
        self.made: asyncio.Future[None] = loop.create_future()
        self.eof: asyncio.Future[None] = loop.create_future()
        self.lost: asyncio.Future[Exception | None] = loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.made.set_result(None)

    def data_received(self, data: bytes) -> None:
        self.data += data

    def eof_received(self) -> bool:
        self.eof.set_result(None)
        return self.keep_open

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set_result(exc)


async def connected(
    sock: socket.socket, keep_open: bool = False
) -> tuple[asyncio.Transport, Collect]:
    loop = asyncio.get_running_loop()
    return await loop.create_connection(lambda: Collect(keep_open), sock=sock)


async def read_all(sock: socket.socket) -> bytes:
    """Everything until EOF, read in a thread."""

    def read() -> bytes:
        with sock.makefile("rb") as file:
            return file.read()

    return await asyncio.to_thread(read)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    near, far = tcp_pair()
    with far:
        yield near, far
    near.close()


Pair = tuple[socket.socket, socket.socket]


def test_a_transport_is_an_asyncio_transport(run: Run, pair: Pair) -> None:
    async def main() -> None:
        transport, protocol = await connected(pair[0])
        assert isinstance(transport, asyncio.Transport)
        assert transport.get_protocol() is protocol
        assert transport.is_reading()
        assert not transport.is_closing()
        assert transport.can_write_eof()
        transport.close()
        assert transport.is_closing()
        assert not transport.is_reading()
        assert await protocol.lost is None

    run(main())


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_extra_info_outlives_the_connection(run: Run, host: str) -> None:
    near, far = tcp_pair(host)
    ours, theirs = near.getsockname(), near.getpeername()

    async def main() -> None:
        transport, protocol = await connected(near)
        sock = transport.get_extra_info("socket")
        assert sock.fileno() == near.fileno()
        assert sock.family == near.family
        assert sock.getsockname() == ours
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
        assert transport.get_extra_info("nothing") is None
        assert transport.get_extra_info("nothing", 42) == 42
        far.close()
        await protocol.lost
        for _ in range(2):
            assert transport.get_extra_info("peername") == theirs
            assert transport.get_extra_info("sockname") == ours
            await asyncio.sleep(0)
        assert transport.get_extra_info("socket").fileno() == -1

    run(main())


def test_peername_is_known_when_the_peer_has_gone_before_the_first_look(
    run: Run, pair: Pair
) -> None:
    near, far = pair
    theirs = near.getpeername()

    async def main() -> None:
        transport, protocol = await connected(near)
        far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        far.close()
        assert isinstance(await protocol.lost, ConnectionResetError)
        assert transport.get_extra_info("peername") == theirs

    run(main())


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_peername_is_known_when_the_peer_has_gone_before_the_accept(run: Run, host: str) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        made: asyncio.Queue[Any] = asyncio.Queue()

        class Named(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                made.put_nowait(transport.get_extra_info("peername"))

        server = await loop.create_server(Named, host, 0)
        client = socket.create_connection(server.sockets[0].getsockname()[:2])
        theirs = client.getsockname()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        client.close()
        assert await made.get() == theirs
        server.close()
        await server.wait_closed()

    run(main())


def test_the_socket_of_a_closed_connection_is_a_closed_socket(run: Run) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        gone: asyncio.Future[asyncio.BaseTransport] = loop.create_future()

        class Closing(asyncio.Protocol):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                self.transport = transport
                transport.close()

            def connection_lost(self, exc: Exception | None) -> None:
                loop.call_soon(gone.set_result, self.transport)

        server = await loop.create_server(Closing, "127.0.0.1", 0)
        with socket.create_connection(server.sockets[0].getsockname()):
            sock = (await gone).get_extra_info("socket")
        assert sock.fileno() == -1
        assert sock.family == socket.AF_INET
        assert sock.type == socket.SOCK_STREAM
        server.close()
        await server.wait_closed()

    run(main())


@pytest.mark.parametrize("given", ["host", "socket"])
def test_an_accepted_connection_has_its_socket_and_no_delay(run: Run, given: str) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        made: asyncio.Future[asyncio.Transport] = loop.create_future()

        class Server(Collect):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                assert isinstance(transport, asyncio.Transport)
                made.set_result(transport)

        if given == "socket":  # whose `proto` is 0
            server = await loop.create_server(Server, sock=socket.create_server(("127.0.0.1", 0)))
        else:
            server = await loop.create_server(Server, "127.0.0.1", 0)
        address = server.sockets[0].getsockname()
        with socket.create_connection(address) as peer:
            transport = await made
            assert transport.get_extra_info("peername") == peer.getsockname()
            assert transport.get_extra_info("sockname") == address
            sock = transport.get_extra_info("socket")
            assert sock.getpeername() == peer.getsockname()
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
            assert not sock.get_inheritable()
        protocol = transport.get_protocol()
        assert isinstance(protocol, Collect)
        assert await protocol.lost is None
        server.close()
        await server.wait_closed()

    run(main())


def test_connect_accepted_socket(run: Run, pair: Pair) -> None:
    near, far = pair

    async def main() -> None:
        loop = asyncio.get_running_loop()
        transport, protocol = await loop.connect_accepted_socket(Collect, near)
        assert protocol.made.done()
        transport.write(b"hello")
        assert await asyncio.to_thread(far.recv, 10) == b"hello"
        transport.close()
        await protocol.lost

    run(main())


# -- writing ---------------------------------------------------------------------------


def test_a_buffer_changed_after_write_changes_nothing_sent(run: Run, pair: Pair) -> None:
    async def main() -> None:
        transport, protocol = await connected(pair[0])
        array = bytearray(b"array ")
        view = memoryview(bytearray(b"view "))
        numbers = memoryview(bytearray(b"\1\0\0\0\2\0\0\0")).cast("i")
        in_list = bytearray(b" list")
        transport.write(b"bytes ")
        transport.write(array)
        transport.write(view)
        transport.write(numbers)
        transport.write(view[::-1])
        transport.writelines([in_list])
        array[:] = b"XXXXXXX"  # also in length: nobody may hold on to it
        view[:] = b"XXXXX"
        numbers[0] = numbers[1] = 0
        in_list.clear()
        transport.close()
        assert await read_all(pair[1]) == (
            b"bytes array view \1\0\0\0\2\0\0\0" + b"view "[::-1] + b" list"
        )
        await protocol.lost

    run(main())


@pytest.mark.parametrize("wrong", ["text", None, 1, [b"x"], object()])
def test_writing_what_is_not_bytes_is_a_type_error(run: Run, pair: Pair, wrong: Any) -> None:
    async def main() -> None:
        transport, protocol = await connected(pair[0])
        with pytest.raises(TypeError):
            transport.write(wrong)
        with pytest.raises(TypeError):
            transport.writelines([b"never sent", wrong])
        assert transport.get_write_buffer_size() == 0
        transport.close()
        assert await read_all(pair[1]) == b""
        assert await protocol.lost is None

    run(main())


def test_empty_writes_send_nothing(run: Run, pair: Pair) -> None:
    async def main() -> None:
        transport, protocol = await connected(pair[0])
        for empty in (b"", bytearray(), memoryview(b"")):
            transport.write(empty)
        transport.writelines([])
        transport.writelines([b"", bytearray()])
        assert transport.get_write_buffer_size() == 0
        transport.writelines([b"", b"a", b"", b"b"])
        transport.close()
        assert await read_all(pair[1]) == b"ab"
        await protocol.lost

    run(main())


@pytest.mark.parametrize("size", [1, 700])
@pytest.mark.parametrize("count", [1, 2, 63, 64, 65, 1023, 1025, 5000])
def test_writelines_of_a_generator_keeps_the_order(
    run: Run, pair: Pair, count: int, size: int
) -> None:
    pieces = [random.Random(i).randbytes(size) for i in range(count)]

    async def main() -> None:
        transport, protocol = await connected(pair[0])
        transport.writelines(piece for piece in pieces)
        transport.write(b"end")
        transport.close()
        assert await read_all(pair[1]) == b"".join(pieces) + b"end"
        await protocol.lost

    run(main())


def test_writes_after_write_eof_are_errors(run: Run, pair: Pair) -> None:
    async def main() -> None:
        transport, protocol = await connected(pair[0], keep_open=True)
        transport.write(b"last")
        transport.write_eof()
        transport.write_eof()  # twice is no error
        with pytest.raises(RuntimeError, match="write_eof"):
            transport.write(b"more")
        with pytest.raises(RuntimeError, match="write_eof"):
            transport.writelines([b"more"])
        assert await read_all(pair[1]) == b"last"
        pair[1].sendall(b"still listening")
        pair[1].close()
        await protocol.eof
        assert protocol.data == b"still listening"
        transport.close()
        assert await protocol.lost is None

    run(main())


def test_write_eof_comes_after_all_that_was_written(run: Run, pair: Pair) -> None:
    data = random.Random(1).randbytes(3 << 20)

    async def main() -> None:
        transport, protocol = await connected(pair[0], keep_open=True)
        transport.write(data)
        transport.write_eof()
        assert await read_all(pair[1]) == data
        transport.close()
        await protocol.lost

    run(main())


def test_a_half_closed_peer_still_gets_its_answer(run: Run, pair: Pair) -> None:
    async def main() -> None:
        transport, protocol = await connected(pair[0], keep_open=True)
        pair[1].sendall(b"question")
        pair[1].shutdown(socket.SHUT_WR)
        await protocol.eof
        assert not transport.is_closing()
        transport.write(b"answer" * 100_000)
        transport.close()
        assert await read_all(pair[1]) == b"answer" * 100_000
        assert await protocol.lost is None

    run(main())


def test_writes_after_close_are_ignored_and_the_fifth_warns(
    run: Run, pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        transport, protocol = await connected(pair[0])
        transport.close()
        counts = []
        for _ in range(7):
            transport.write(b"ignored")
            counts.append(len(caplog.records))
        await protocol.lost
        transport.writelines([b"ignored"])
        counts.append(len(caplog.records))
        assert counts == [0, 0, 0, 0, 1, 2, 3, 4]
        assert await read_all(pair[1]) == b""

    with caplog.at_level(logging.WARNING, "asyncio"):
        run(main())
    assert {record.getMessage() for record in caplog.records} == {"socket.send() raised exception."}


def test_close_flushes(run: Run, pair: Pair) -> None:
    data = random.Random(2).randbytes(8 << 20)

    async def main() -> None:
        transport, protocol = await connected(pair[0])
        transport.write(data)
        transport.close()
        transport.close()
        transport.write(b" and what is written meanwhile")
        assert await read_all(pair[1]) == data + b" and what is written meanwhile"
        assert await protocol.lost is None
        assert transport.get_write_buffer_size() == 0

    run(main())


def test_abort_drops_what_waits(run: Run, pair: Pair) -> None:
    size = 32 << 20

    async def main() -> None:
        transport, protocol = await connected(pair[0])
        transport.write(bytes(size))
        transport.abort()
        transport.abort()
        assert transport.get_write_buffer_size() == 0
        assert await protocol.lost is None
        assert len(await read_all(pair[1])) < size

    run(main())


@pytest.mark.parametrize("after_eof", [False, True])
def test_a_write_between_close_and_its_flush_is_sent_and_ends_the_connection(
    run: Run, pair: Pair, after_eof: bool
) -> None:
    async def main() -> None:
        transport, protocol = await connected(pair[0], keep_open=True)
        if after_eof:
            pair[1].shutdown(socket.SHUT_WR)
            await protocol.eof
        transport.write(b"small")
        transport.close()
        transport.write(bytes(50_000))  # so large that write() itself may send all of it
        assert len(await read_all(pair[1])) == 50_005
        assert await protocol.lost is None

    run(main())


def test_what_waits_for_the_new_protocol_is_told_to_the_new_protocol(run: Run, pair: Pair) -> None:
    async def main() -> None:
        transport, first = await connected(pair[0])
        second = Collect()
        transport.pause_reading()
        pair[1].sendall(b"for the second")
        pair[1].shutdown(socket.SHUT_WR)
        await asyncio.sleep(0)
        transport.set_protocol(second)
        assert transport.get_protocol() is second
        transport.resume_reading()
        assert await second.lost is None
        assert second.data == b"for the second"
        assert not first.data
        assert not first.eof.done()

    run(main())


# -- the end ---------------------------------------------------------------------------


def test_a_closed_transport_that_is_dropped_gives_no_warning(run: Run, pair: Pair) -> None:
    async def main() -> None:
        transport, protocol = await connected(pair[0])
        gone = weakref.ref(transport)
        transport.close()
        await protocol.lost
        del transport
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        gc.collect()
        assert gone() is None

    run(main())  # and the fixture looks for ResourceWarnings


def test_a_transport_left_open_warns_and_closes_its_fd(driver: str) -> None:
    near, far = tcp_pair()
    far.settimeout(TIMEOUT)
    loop = ringloop.EventLoop(drivers.make(driver))
    fd = near.fileno()
    transport, _ = loop.run_until_complete(connected(near))
    loop.close()
    assert f"fd={fd}" in repr(transport)
    with pytest.warns(ResourceWarning, match=f"unclosed transport .*fd={fd}"):
        del transport, loop, _
        gc.collect()
    assert near.fileno() == -1
    assert far.recv(1) == b""
    far.close()


@pytest.mark.parametrize("accepted", [False, True], ids=["given", "accepted"])
def test_an_unclosed_transport_is_closed_though_warnings_are_errors(
    run: Run, loop: ringloop.EventLoop, monkeypatch: pytest.MonkeyPatch, accepted: bool
) -> None:
    raised: list[str] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda args: raised.append(str(args.exc_value)))
    protocols: list[Collect] = []

    class Keeping(Collect):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = transport
            protocols.append(self)

    def factory() -> Collect:
        return Keeping(keep_open=True)

    async def main() -> None:
        if accepted:
            server = await loop.create_server(factory, "127.0.0.1", 0)
            far = socket.create_connection(server.sockets[0].getsockname())
            far.settimeout(TIMEOUT)
        else:
            near, far = tcp_pair()
            await loop.create_connection(factory, sock=near)
        while not protocols:
            await asyncio.sleep(0)
        far.shutdown(socket.SHUT_WR)
        await protocols[0].eof
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            protocols.clear()
            while not raised:
                await asyncio.sleep(0)  # the receive's last completion
                gc.collect()
        assert far.recv(1) == b""
        far.close()
        assert len(raised) == 1
        assert raised[0].startswith("unclosed transport <StreamTransport fd=")
        if accepted:
            server.close()
            await server.wait_closed()

    run(main())


@pytest.mark.parametrize("bulk", [False, True], ids=["small", "bulk"])
@pytest.mark.parametrize("end", ["close", "abort"])
def test_the_end_of_a_transport_leaves_a_copy_of_its_socket_alone(
    run: Run, pair: Pair, end: str, bulk: bool
) -> None:
    """Somebody else may have the connection, too: a child process, or whoever it is sent to."""
    near, far = pair
    size = 1 << 20 if bulk else 10

    class Hand(Collect):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            assert isinstance(transport, asyncio.Transport)
            self.transport = transport

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if len(self.data) == size:
                self.copy = near.dup()
                getattr(self.transport, end)()

    async def main() -> None:
        _, protocol = await asyncio.get_running_loop().create_connection(Hand, sock=near)
        await asyncio.to_thread(far.sendall, bytes(size))
        await protocol.lost
        with protocol.copy as copy:
            copy.setblocking(True)
            copy.settimeout(TIMEOUT)
            copy.sendall(b"still here")
            assert far.recv(20) == b"still here"
            far.sendall(b"so am I")
            assert copy.recv(20) == b"so am I"
        assert far.recv(1) == b""

    run(main())


def ended_and_read(loop: ringloop.EventLoop, end: Callable[[], None], far: socket.socket) -> Any:
    """All that `far` gets, read by the callback that runs next after connection_lost().

    It blocks the loop, so the end must have come by then.
    """
    read = loop.create_future()

    def look() -> None:
        with contextlib.suppress(ConnectionResetError), far.makefile("rb") as file:
            file.read()
        read.set_result(None)

    def begin() -> None:
        end()
        loop.call_soon(look)

    loop.call_later(0, begin)  # timers come before the second batch of handles
    return read


@pytest.mark.parametrize("end", ["close", "abort"])
def test_the_peer_sees_the_end_at_once(run: Run, loop: ringloop.EventLoop, end: str) -> None:
    async def main() -> None:
        for unread in (b"", b"unread"):
            near, far = tcp_pair()
            transport, protocol = await connected(near)
            far.sendall(unread)
            await ended_and_read(loop, getattr(transport, end), far)
            assert await protocol.lost is None
            far.close()

    run(main())


def test_the_peer_sees_the_end_of_an_aborted_sendfile_at_once(
    run: Run, loop: ringloop.EventLoop, pair: Pair, tmp_path: Path
) -> None:
    path = tmp_path / "large"
    path.write_bytes(bytes(32 << 20))

    async def main() -> None:
        transport, _ = await connected(pair[0])
        with path.open("rb") as file:
            sending = asyncio.create_task(loop.sendfile(transport, file))
            while "write=<polling" not in repr(transport):
                await asyncio.sleep(0)
            await ended_and_read(loop, transport.abort, pair[1])
            with pytest.raises(ConnectionError):
                await sending

    run(main())


# -- connecting ------------------------------------------------------------------------


def test_create_connection_to_nobody_is_refused(run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        with pytest.raises(ConnectionRefusedError, match=r"Connect call failed"):
            await loop.create_connection(Collect, *address)

    run(main())


def test_create_connection_from_a_chosen_local_address(run: Run) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        with socket.create_server(("127.0.0.1", 0)) as listener:
            transport, protocol = await loop.create_connection(
                Collect, *listener.getsockname(), local_addr=("127.0.0.2", 0)
            )
            peer, address = listener.accept()
            assert address[0] == "127.0.0.2"
            assert transport.get_extra_info("sockname") == address
            peer.close()
            await protocol.lost

    run(main())


def test_happy_eyeballs_do_not_wait_for_an_address_that_hangs(
    run: Run, loop: ringloop.EventLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    with contextlib.ExitStack() as stack:
        # A full backlog: the kernel drops what comes after the first connection.
        deaf = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        stack.enter_context(socket.create_connection(deaf.getsockname()))
        listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))

        async def getaddrinfo(*_: Any, **__: Any) -> list[Any]:
            stream = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
            return [(*stream, deaf.getsockname()), (*stream, listener.getsockname())]

        async def main() -> None:
            monkeypatch.setattr(loop, "getaddrinfo", getaddrinfo)
            transport, protocol = await loop.create_connection(
                Collect, "example.invalid", 80, happy_eyeballs_delay=0.05
            )
            assert transport.get_extra_info("peername") == listener.getsockname()
            transport.close()
            await protocol.lost

        run(main())


# -- integrity -------------------------------------------------------------------------

# Around every size at which the transport changes its ways: bulk mode (16 KiB and
# 64 KiB), joined writes (16 KiB), water marks (64 KiB), the largest buffer (256 KiB).
EDGES = (1, 2, 2047, 2048, 2049, 16383, 16384, 16385, 65535, 65536, 65537, 262143, 262145)
SIZES = st.one_of(st.sampled_from(EDGES), st.integers(1, 300_000), st.integers(1, 5_000_000))


async def talk(transport: asyncio.Transport, sizes: list[int], seed: int) -> bytes:
    """Write pieces of those sizes, giving way as the water marks ask for."""
    rng = random.Random(seed)
    sent = []
    for size in sizes:
        data = rng.randbytes(size)
        sent.append(data)
        transport.write(data)
        if rng.random() < 0.5:
            await asyncio.sleep(0)
    transport.write_eof()
    return b"".join(sent)


def check_integrity(run: Run, sizes: list[int], back: list[int]) -> None:
    async def main() -> None:
        near, far = tcp_pair()
        a, ours = await connected(near, keep_open=True)
        b, theirs = await connected(far, keep_open=True)
        there, here = await asyncio.gather(talk(a, sizes, 1), talk(b, back, 2))
        await asyncio.gather(ours.eof, theirs.eof)
        assert theirs.data == there
        assert ours.data == here
        a.close()
        b.close()
        await asyncio.gather(ours.lost, theirs.lost)

    run(main())


@given(sizes=st.lists(SIZES, max_size=6), back=st.lists(SIZES, max_size=6))
@settings(
    max_examples=20,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
def test_what_is_written_arrives_both_ways_at_once(
    run: Run, sizes: list[int], back: list[int]
) -> None:
    check_integrity(run, sizes, back)


@pytest.mark.parametrize("large", [20_000, 100_000, 1_000_000])
def test_small_after_large_after_small_messages_arrive(run: Run, pair: Pair, large: int) -> None:
    """Each message waits for the one before, so the reader sees every size as it is."""
    rounds = [10] * 3 + [large] * 12 + [10] * 12 + [large] * 6 + [10] * 3 + [large] * 2 + [10]

    async def main() -> None:
        loop = asyncio.get_running_loop()
        reader, writer = await asyncio.open_connection(sock=pair[0], limit=1 << 21)
        pair[1].setblocking(False)
        rng = random.Random(large)
        for size in rounds:
            data = rng.randbytes(size)
            sending = loop.create_task(loop.sock_sendall(pair[1], data))
            assert await reader.readexactly(size) == data
            await sending
        pair[1].shutdown(socket.SHUT_WR)
        assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()

    run(main())
