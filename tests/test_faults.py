"""What goes wrong in the field: resets, cancellation storms, full queues, sudden ends."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import resource
import socket
import warnings
import weakref
from typing import TYPE_CHECKING, Any

import pytest

import ringloop

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Run = Callable[..., Any]

TIMEOUT = 10
RST = b"\1\0\0\0\0\0\0\0"  # struct linger: on, 0 seconds


def reset(sock: socket.socket) -> None:
    """End the connection with RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RST)
    sock.close()


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


# -- resets: the same on stock asyncio -----------------------------------------------------


class Victim(asyncio.Protocol):
    """A server's protocol, whose peer resets the connection; `peer` is that peer."""

    peer: socket.socket
    hook: Callable[[str, Victim], None]

    def __init__(self) -> None:
        self.events: list[str] = []
        self.transport: asyncio.Transport
        self.lost = asyncio.get_running_loop().create_future()

    def note(self, event: str) -> None:
        if self.events[-1:] != [event]:
            self.events.append(event)
        type(self).hook(event, self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.note("made")

    def data_received(self, data: bytes) -> None:
        self.note("data")

    def eof_received(self) -> bool:
        self.note("eof")
        return True

    def pause_writing(self) -> None:
        self.note("pause")

    def connection_lost(self, exc: Exception | None) -> None:
        # Whether it is EPIPE or ECONNRESET depends on which call met it.
        self.events.append("reset" if isinstance(exc, ConnectionError) else repr(exc))
        self.lost.set_result(None)


async def victim_of_reset(when: str) -> list[str]:
    """What the protocol is told when its peer resets at that moment."""
    loop = asyncio.get_running_loop()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        peer = socket.create_connection(listener.getsockname())
        accepted, _ = listener.accept()

    def hook(event: str, victim: Victim) -> None:
        transport = victim.transport
        if event == "made":
            if when == "in connection_made":
                reset(peer)
            elif when == "in connection_made, and it writes":
                reset(peer)
                transport.write(b"x")
            elif when in ("while writing", "while closing"):
                transport.write(bytes(32 << 20))
                if when == "while closing":
                    transport.close()
                loop.call_soon(reset, peer)
            elif when == "after our write_eof":
                transport.write_eof()
                loop.call_soon(reset, peer)
        elif event == "data":
            if when == "in data_received" and peer.fileno() != -1:
                reset(peer)
        elif event == "eof" and when == "after the peer's eof, and it writes":
            reset(peer)
            transport.write(b"x")  # finds it out, or the next one does
            loop.call_soon(transport.write, b"y")

    Victim.hook = staticmethod(hook)
    if when == "before the transport":
        reset(peer)
    _, victim = await loop.connect_accepted_socket(Victim, accepted)
    if when == "in data_received":
        peer.sendall(bytes(500_000))
    elif when == "while data waits":
        peer.sendall(b"some data")
        reset(peer)
    elif when == "after the peer's eof, and it writes":
        peer.shutdown(socket.SHUT_WR)
    await asyncio.wait_for(victim.lost, TIMEOUT)
    assert victim.transport.is_closing()
    assert peer.fileno() == -1
    events = victim.events
    # A reset overtakes what was not read yet: told or not, by chance.
    return [event for event in events if event != "data"] if "data" in when else events


@pytest.mark.parametrize(
    "when",
    [
        "before the transport",
        "in connection_made",
        "in connection_made, and it writes",
        "in data_received",
        "while data waits",
        "while writing",
        "while closing",
        "after our write_eof",
        "after the peer's eof, and it writes",
    ],
)
def test_a_reset_is_told_as_in_stock_asyncio(run: Run, when: str) -> None:
    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        expected = runner.run(victim_of_reset(when))
    assert run(victim_of_reset(when)) == expected
    assert expected[-1] == "reset"


def test_resets_before_the_accept_do_not_harm_a_server(run: Run) -> None:
    async def main() -> None:
        async def hello(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"hello")
            writer.close()
            await asyncio.gather(writer.wait_closed(), return_exceptions=True)

        server = await asyncio.start_server(hello, "127.0.0.1", 0)
        address = server.sockets[0].getsockname()
        for _ in range(3):
            for _ in range(50):
                reset(socket.create_connection(address))
            reader, writer = await asyncio.open_connection(*address)
            assert await reader.read() == b"hello"
            writer.close()
            await writer.wait_closed()
        server.close()
        await server.wait_closed()

    run(main())


# -- cancellation ----------------------------------------------------------------------------


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()
    await asyncio.gather(writer.wait_closed(), return_exceptions=True)


async def talk(address: tuple[str, int], rng: random.Random) -> None:
    """Connect, echo messages of every size, sleep; for ever."""
    while True:
        reader, writer = await asyncio.open_connection(*address)
        try:
            for _ in range(rng.randrange(5)):
                message = bytes(rng.choice((1, 100, 1000, 5000, 70_000)))
                writer.write(message)
                assert len(await reader.readexactly(len(message))) == len(message)
                await asyncio.sleep(rng.random() * 0.01)
        finally:
            writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize("seed", [1, 2])
def test_a_storm_of_cancellations_leaves_nothing(run: Run, seed: int) -> None:
    print("seed", seed)
    rng = random.Random(seed)

    async def main() -> None:
        server = await asyncio.start_server(echo, "127.0.0.1", 0, backlog=1000)
        address = server.sockets[0].getsockname()
        tasks = {asyncio.create_task(talk(address, random.Random(i))) for i in range(500)}
        order = rng.sample(sorted(tasks, key=id), len(tasks))
        for task in order:
            for _ in range(rng.choice((0, 0, 0, 1, 2, 5))):
                await asyncio.sleep(0)
            task.cancel()
        results = await asyncio.gather(*order, return_exceptions=True)
        assert {type(result) for result in results} == {asyncio.CancelledError}

        reader, writer = await asyncio.open_connection(*address)
        writer.write(b"still works")
        assert await reader.readexactly(11) == b"still works"
        writer.close()
        await writer.wait_closed()
        server.close()
        await server.wait_closed()
        while len(asyncio.all_tasks()) > 2:  # the echoes of those who left; wait_for's
            await asyncio.sleep(0.001)

    run(main(), timeout=60)  # and the fixture looks for what is left


# -- full queues -------------------------------------------------------------------------------


@pytest.fixture
def fds() -> Iterator[int]:
    """Raises the limit of file descriptors; how many more there may be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = 11_000 if hard == resource.RLIM_INFINITY else min(11_000, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, limit), hard))
    yield max(soft, limit) - 300
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_more_watches_in_one_iteration_than_the_queue_holds(
    run: Run, loop: ringloop.EventLoop, fds: int
) -> None:
    count = min(3000, fds) // 2

    async def main() -> None:
        pairs = [socket.socketpair() for _ in range(count)]
        socks = [sock for pair in pairs for sock in pair]
        got: dict[socket.socket, bytes] = {}
        done = loop.create_future()

        def read(sock: socket.socket) -> None:
            got[sock] = sock.recv(10)
            loop.remove_reader(sock)
            if len(got) == len(socks):
                done.set_result(None)

        for round_ in (b"first", b"second"):
            for sock in socks:
                loop.add_reader(sock, read, sock)
            for sock in socks:
                sock.send(round_)
            await done
            assert set(got.values()) == {round_}
            got.clear()
            done = loop.create_future()
        for sock in socks:
            sock.close()

    run(main())


class Echo(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


class Counting(asyncio.Protocol):
    """Waits for so many bytes."""

    def __init__(self, expected: int) -> None:
        self.left = expected
        self.full = asyncio.get_running_loop().create_future()
        self.lost = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        self.left -= len(data)
        if self.left == 0:
            self.full.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set_result(exc)


def test_more_writes_in_one_iteration_than_the_queue_holds(
    run: Run, loop: ringloop.EventLoop, fds: int
) -> None:
    count = min(3000, fds) // 2

    async def main() -> None:
        ends = []
        for _ in range(count):
            near, far = socket.socketpair()
            ends.append(await loop.create_connection(lambda: Counting(3300), sock=near))
            ends.append(await loop.create_connection(lambda: Counting(3300), sock=far))
        for size in (100, 3000, 200):
            for transport, _ in ends:
                transport.write(bytes(size))
            await asyncio.sleep(0)
        await asyncio.gather(*(protocol.full for _, protocol in ends))
        for transport, _ in ends:
            transport.close()
        assert set(await asyncio.gather(*(protocol.lost for _, protocol in ends))) == {None}
        while loop._live_operations() > 100:  # the last completions come by and by
            await asyncio.sleep(0.001)

    run(main())


def test_thousands_of_connections_that_send_at_once(
    run: Run, loop: ringloop.EventLoop, fds: int
) -> None:
    count = min(10_000, fds) // 2
    message = bytes(3000)

    async def main() -> None:
        server = await loop.create_server(Echo, "127.0.0.1", 0, backlog=1000)
        address = server.sockets[0].getsockname()
        clients = [socket.socket() for _ in range(count)]
        for client in clients:
            client.setblocking(False)
        for i in range(0, count, 500):
            await asyncio.gather(*(loop.sock_connect(c, address) for c in clients[i : i + 500]))
        for client in clients:  # all of it is there before the loop looks
            assert client.send(message) == len(message)

        async def answer(client: socket.socket) -> int:
            size = 0
            while size < len(message):
                size += len(await loop.sock_recv(client, 65536))
            client.close()
            return size

        assert set(await asyncio.gather(*map(answer, clients))) == {len(message)}
        server.close()
        await server.wait_closed()
        while loop._live_operations() > 100:  # the last completions come by and by
            await asyncio.sleep(0.001)

    run(main(), timeout=30)


# -- stopping and closing ------------------------------------------------------------------------


def test_stopping_and_going_on_in_the_middle_of_traffic(loop: ringloop.EventLoop) -> None:
    data = random.Random(15).randbytes(8 << 20)

    async def main() -> None:
        server = await asyncio.start_server(echo, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(data)
        assert await reader.readexactly(len(data)) == data
        writer.close()
        await writer.wait_closed()
        server.close()
        await server.wait_closed()

    task = loop.create_task(main())
    stops = 0
    deadline = loop.time() + TIMEOUT
    while not task.done():
        loop.call_soon(loop.stop)
        loop.run_forever()
        stops += 1
        assert loop.time() < deadline
    task.result()
    assert stops > 20


@pytest.mark.parametrize("size", [10, 8 << 20])
@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
def test_an_interrupt_in_data_received_ends_the_run_and_not_the_connection(
    loop: ringloop.EventLoop, kind: type[BaseException], size: int
) -> None:
    near, far = socket.socketpair()
    data = random.Random(16).randbytes(size)
    got = bytearray()

    class Interrupted(asyncio.Protocol):
        def __init__(self) -> None:
            self.lost: asyncio.Future[Exception | None] = loop.create_future()
            self.lost.add_done_callback(lambda _: loop.stop())

        def data_received(self, piece: bytes) -> None:
            got.extend(piece)
            raise kind

        def connection_lost(self, exc: Exception | None) -> None:
            self.lost.set_result(exc)

    _, protocol = loop.run_until_complete(loop.create_connection(Interrupted, sock=near))
    far.setblocking(False)
    sending = loop.create_task(loop.sock_sendall(far, data))
    sending.add_done_callback(lambda _: far.close())  # its end may come with the last data
    deaf = loop.call_later(TIMEOUT, loop.stop)
    interrupts = 0
    while not protocol.lost.done() and loop.time() < deaf.when():
        try:
            loop.run_forever()
        except kind:
            interrupts += 1
    deaf.cancel()
    assert got == data
    assert interrupts >= (20 if size > 10 else 1)
    assert protocol.lost.result() is None


async def lively(far: list[socket.socket]) -> list[asyncio.Transport]:
    """Transports in every state; `far` gets their peers."""
    transports = []
    for i in range(20):
        near, peer = socket.socketpair()
        far.append(peer)
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_connection(asyncio.Protocol, sock=near)
        transports.append(transport)
        if i % 4 == 1:
            transport.write(bytes(16 << 20))  # a send in flight, and more behind it
        elif i % 4 == 2:
            peer.send(b"unread")
        elif i % 4 == 3:
            transport.pause_reading()
            peer.send(b"unread")
        if i % 5 == 4:
            transport.close()
    return transports


def test_closing_a_loop_full_of_life_crashes_nothing_and_frees_all(driver: str) -> None:
    loop = ringloop.EventLoop(driver)
    alive = weakref.ref(loop)
    far: list[socket.socket] = []
    transports = loop.run_until_complete(lively(far))
    closing = sum(transport.is_closing() for transport in transports)
    assert closing == 4
    transports[0].write(b"flushed by close()")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loop.close()
        for transport in transports:
            assert "StreamTransport" in repr(transport)
            assert transport.get_extra_info("peername") == ""
            transport.write(b"x")
            with contextlib.suppress(RuntimeError):  # the loop is closed
                transport.abort()
        del transport, transports, loop
        gc.collect()
    messages = [str(warning.message) for warning in caught]
    caught.clear()  # each warning holds its transport
    gc.collect()
    assert alive() is None
    assert all(message.startswith("unclosed transport") for message in messages), messages
    assert len(messages) >= 20 - closing
    for peer in far:
        peer.settimeout(TIMEOUT)
        with peer, contextlib.suppress(ConnectionResetError):
            while peer.recv(1 << 20):  # until the end, for the fd was closed
                pass


def test_closing_a_loop_with_a_connection_that_nobody_has_accepted(
    driver: str, loop: ringloop.EventLoop
) -> None:
    """The fixture looks for file descriptors that are left."""
    other = ringloop.EventLoop(driver)
    server = other.run_until_complete(other.create_server(Echo, "127.0.0.1", 0))
    address = server.sockets[0].getsockname()
    with contextlib.ExitStack() as stack:
        for _ in range(5):
            client = stack.enter_context(socket.create_connection(address))
            client.sendall(b"too late")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            other.close()
            del other, server
            gc.collect()
    assert all("unclosed" in str(warning.message) for warning in caught)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)
