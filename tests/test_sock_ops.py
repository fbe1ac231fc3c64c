"""loop.sock_*: at once and after a wait, cancelled, and with sockets that go away."""

from __future__ import annotations

import array
import asyncio
import contextlib
import random
import socket
import ssl
from typing import TYPE_CHECKING, Any

import pytest

import ringloop

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterator

    Run = Callable[..., Any]

TIMEOUT = 10
Pair = tuple[socket.socket, socket.socket]


def tcp_pair() -> Pair:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        a = socket.create_connection(listener.getsockname())
        b, _ = listener.accept()
    return a, b


def udp_pair() -> Pair:
    a, b = (socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2))
    a.bind(("127.0.0.1", 0))
    b.bind(("127.0.0.1", 0))
    return a, b


@pytest.fixture(params=[tcp_pair, socket.socketpair], ids=["tcp", "unix"])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    a, b = request.param()
    with a, b:
        a.setblocking(False)
        b.setblocking(False)
        yield a, b


@pytest.fixture
def datagrams() -> Iterator[Pair]:
    a, b = udp_pair()
    with a, b:
        a.setblocking(False)
        b.setblocking(False)
        yield a, b


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def waiting(call: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    """A task that has come to wait for the kernel in that call."""
    task = asyncio.create_task(call)
    await settle()
    assert not task.done()
    return task


async def cancelled(task: asyncio.Task[Any]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


# -- receiving ---------------------------------------------------------------------------


@pytest.mark.parametrize("wait", [False, True], ids=["at once", "waiting"])
@pytest.mark.parametrize("n", [1, 1000, 262_144, 262_145, 3_000_000])
def test_sock_recv(run: Run, loop: ringloop.EventLoop, pair: Pair, n: int, wait: bool) -> None:
    data = random.Random(n).randbytes(2 * n + 1)

    async def main() -> None:
        got = bytearray()
        receiving = await waiting(loop.sock_recv(pair[0], n)) if wait else None
        sending = asyncio.create_task(loop.sock_sendall(pair[1], data))
        if receiving is not None:
            got += await receiving
        while len(got) < len(data):
            piece = await loop.sock_recv(pair[0], n)
            assert type(piece) is bytes
            assert 1 <= len(piece) <= n
            got += piece
        assert got == data
        await sending
        pair[1].shutdown(socket.SHUT_WR)
        assert await loop.sock_recv(pair[0], n) == b""
        assert await loop.sock_recv(pair[0], n) == b""

    run(main())


@pytest.mark.parametrize("wait", [False, True], ids=["at once", "waiting"])
@pytest.mark.parametrize(
    "target",
    [
        bytearray(1000),
        memoryview(bytearray(2000))[500:1500],
        array.array("I", [0] * 250),
        memoryview(bytearray(1000)).cast("d"),
    ],
    ids=["bytearray", "slice", "array", "doubles"],
)
def test_sock_recv_into(
    run: Run, loop: ringloop.EventLoop, pair: Pair, target: Any, wait: bool
) -> None:
    async def main() -> None:
        if wait:
            receiving = await waiting(loop.sock_recv_into(pair[0], target))
            pair[1].send(b"x" * 1500)
            n = await receiving
        else:
            pair[1].send(b"x" * 1500)
            n = await loop.sock_recv_into(pair[0], target)
        assert n == 1000
        assert bytes(memoryview(target)) == b"x" * 1000
        assert await loop.sock_recv_into(pair[0], target) == 500
        pair[1].close()
        assert await loop.sock_recv_into(pair[0], target) == 0

    run(main())


def test_nothing_asked_for_is_nothing_got(run: Run, loop: ringloop.EventLoop, pair: Pair) -> None:
    async def main() -> None:
        assert await loop.sock_recv(pair[0], 0) == b""
        await loop.sock_sendall(pair[1], b"")
        await loop.sock_sendall(pair[1], b"x")
        assert await loop.sock_recv(pair[0], 0) == b""
        assert await loop.sock_recv(pair[0], 10) == b"x"
        with pytest.raises(ValueError, match="negative buffersize"):
            await loop.sock_recv(pair[0], -1)

    run(main())


@pytest.mark.parametrize("wait", [False, True], ids=["at once", "waiting"])
def test_datagrams(run: Run, loop: ringloop.EventLoop, datagrams: Pair, wait: bool) -> None:
    a, b = datagrams
    buffer = bytearray(100)

    async def main() -> None:
        for data in (b"", b"x", bytes(60_000)):
            receiving = await waiting(loop.sock_recvfrom(a, 65536)) if wait else None
            assert await loop.sock_sendto(b, data, a.getsockname()) == len(data)
            answer = await (receiving or loop.sock_recvfrom(a, 65536))
            assert answer == (data, b.getsockname())

        for size, expected in ((0, 5), (3, 3)):
            into = loop.sock_recvfrom_into(a, buffer, size)
            receiving = await waiting(into) if wait else asyncio.ensure_future(into)
            await loop.sock_sendto(b, b"hello", a.getsockname())
            assert await receiving == (expected, b.getsockname())
            assert buffer[:expected] == b"hello"[:expected]

    run(main())


# -- sending -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "source",
    [
        b"12345678",
        bytearray(b"12345678"),
        memoryview(b"..12345678..")[2:-2],
        memoryview(b"12345678").cast("I"),
        array.array("B", b"12345678"),
    ],
    ids=["bytes", "bytearray", "slice", "ints", "array"],
)
def test_sock_sendall_of_any_buffer(
    run: Run, loop: ringloop.EventLoop, pair: Pair, source: Any
) -> None:
    async def main() -> None:
        await loop.sock_sendall(pair[1], source)
        assert await loop.sock_recv(pair[0], 100) == b"12345678"
        with pytest.raises(TypeError):
            await loop.sock_sendall(pair[1], "text")  # type: ignore[arg-type]

    run(main())


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_a_large_sendall_waits_for_a_slow_reader(
    run: Run, loop: ringloop.EventLoop, pair: Pair, kind: Any
) -> None:
    data = random.Random(11).randbytes(16 << 20)

    async def main() -> None:
        sending = await waiting(loop.sock_sendall(pair[1], kind(data)))
        got = bytearray()
        while len(got) < len(data):
            await settle()
            got += await loop.sock_recv(pair[0], 1 << 20)
        await sending
        assert got == data

    run(main())


def test_a_buffer_cannot_be_resized_while_it_is_being_sent(
    run: Run, loop: ringloop.EventLoop, pair: Pair
) -> None:
    data = bytearray(b"x" * (16 << 20))

    async def main() -> None:
        sending = await waiting(loop.sock_sendall(pair[1], data))
        with pytest.raises(BufferError):
            data.clear()
        assert len(data) == 16 << 20
        await cancelled(sending)
        data.clear()

    run(main())


# -- accepting and connecting ------------------------------------------------------------


@pytest.mark.parametrize("wait", [False, True], ids=["at once", "waiting"])
def test_sock_accept_and_connect(run: Run, loop: ringloop.EventLoop, wait: bool) -> None:
    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as client:
            listener.setblocking(False)
            client.setblocking(False)
            address = listener.getsockname()
            accepting = await waiting(loop.sock_accept(listener)) if wait else None
            await loop.sock_connect(client, address)
            conn, peer = await (accepting or loop.sock_accept(listener))
            with conn:
                assert peer == client.getsockname()
                assert conn.getblocking() is False
                assert not conn.get_inheritable()
                await loop.sock_sendall(conn, b"hello")
                assert await loop.sock_recv(client, 10) == b"hello"

    run(main())


def test_sock_connect_resolves_names(run: Run, loop: ringloop.EventLoop) -> None:
    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket() as client:
            client.setblocking(False)
            await loop.sock_connect(client, ("localhost", listener.getsockname()[1]))
            assert client.getpeername() == listener.getsockname()

    run(main())


def test_failed_connects_are_those_of_stock_asyncio(run: Run, tmp_path: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        refused = listener.getsockname()
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(tmp_path / "stale"))
    attempts: list[tuple[int, Any]] = [
        (socket.AF_INET, refused),
        (socket.AF_INET6, ("::1", refused[1])),
        (socket.AF_INET, ("255.255.255.255", 9)),  # unreachable, and no packet leaves
        (socket.AF_INET, ("127.0.0.1", 70_000)),
        (socket.AF_UNIX, str(tmp_path / "stale")),
        (socket.AF_UNIX, str(tmp_path / "missing")),
    ]

    async def failures() -> list[tuple[type, object, str]]:
        found = []
        for family, address in attempts:
            with socket.socket(family) as sock:
                sock.setblocking(False)
                with pytest.raises((OSError, OverflowError)) as caught:
                    await asyncio.get_running_loop().sock_connect(sock, address)
                error = caught.value
                found.append((type(error), getattr(error, "errno", None), str(error)))
        return found

    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        expected = runner.run(failures())
    assert run(failures()) == expected
    assert expected[0][0] is ConnectionRefusedError


# -- cancelling --------------------------------------------------------------------------


@pytest.mark.parametrize("late", [False, True], ids=["while waiting", "when ready"])
@pytest.mark.parametrize(
    "call",
    [
        lambda loop, sock: loop.sock_recv(sock, 100),
        lambda loop, sock: loop.sock_recv(sock, 1_000_000),
        lambda loop, sock: loop.sock_recv_into(sock, bytearray(100)),
        lambda loop, sock: loop.sock_recvfrom(sock, 100),
        lambda loop, sock: loop.sock_recvfrom_into(sock, bytearray(100)),
    ],
    ids=["recv", "large recv", "recv_into", "recvfrom", "recvfrom_into"],
)
@pytest.mark.parametrize("make", [tcp_pair, udp_pair], ids=["tcp", "udp"])
def test_a_cancelled_receive_takes_nothing(
    run: Run,
    loop: ringloop.EventLoop,
    make: Callable[[], Pair],
    call: Callable[[ringloop.EventLoop, socket.socket], Coroutine[Any, Any, Any]],
    late: bool,
) -> None:
    async def main() -> None:
        a, b = make()
        with a, b:
            a.setblocking(False)
            for _ in range(5):
                receiving = await waiting(call(loop, a))
                if late:  # both in one iteration: readiness and the cancel
                    b.sendto(b"whole", a.getsockname())
                    receiving.cancel()
                await cancelled(receiving)
                if not late:
                    b.sendto(b"whole", a.getsockname())
                assert await loop.sock_recv(a, 100) == b"whole"

    run(main())


def test_a_cancelled_sendall_has_sent_a_prefix(
    run: Run, loop: ringloop.EventLoop, pair: Pair
) -> None:
    data = random.Random(12).randbytes(16 << 20)

    async def main() -> None:
        sending = await waiting(loop.sock_sendall(pair[1], data))
        await cancelled(sending)
        got = bytearray()
        with contextlib.suppress(BlockingIOError):
            while True:
                got += pair[0].recv(1 << 20)
                await settle()  # what was given up must not go on
        assert 0 < len(got) < len(data)
        assert got == data[: len(got)]
        await loop.sock_sendall(pair[1], b"afterwards")
        assert await loop.sock_recv(pair[0], 100) == b"afterwards"

    run(main())


def test_a_cancelled_sendto_sends_nothing(run: Run, loop: ringloop.EventLoop) -> None:
    a, b = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)

    async def main() -> None:
        b.bind("")  # the kernel chooses an abstract name
        a.setblocking(False)
        b.setblocking(False)
        sent = 0
        with contextlib.suppress(BlockingIOError):
            while True:
                a.send(b"%d" % sent)
                sent += 1
        sending = await waiting(loop.sock_sendto(a, b"cancelled", b.getsockname()))
        await cancelled(sending)
        sending = await waiting(loop.sock_sendto(a, b"last", b.getsockname()))
        got = [await loop.sock_recv(b, 100) for _ in range(sent + 1)]
        assert got == [b"%d" % i for i in range(sent)] + [b"last"]
        assert await sending == 4

    with a, b:
        run(main())


def test_a_cancelled_accept_takes_no_connection(run: Run, loop: ringloop.EventLoop) -> None:
    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            listener.setblocking(False)
            for late in (False, True, False, True):
                accepting = await waiting(loop.sock_accept(listener))
                if not late:
                    await cancelled(accepting)
                with socket.create_connection(listener.getsockname()) as client:
                    if late:
                        await cancelled(accepting)
                    conn, address = await loop.sock_accept(listener)
                    assert address == client.getsockname()
                    conn.close()

    run(main())


def test_a_cancelled_connect_leaves_nothing(run: Run, loop: ringloop.EventLoop) -> None:
    async def main() -> None:
        with (
            socket.create_server(("127.0.0.1", 0), backlog=0) as deaf,
            socket.create_connection(deaf.getsockname()),
            socket.socket() as client,
        ):
            client.setblocking(False)
            await cancelled(await waiting(loop.sock_connect(client, deaf.getsockname())))

    run(main())  # and the fixture looks for operations in flight


def test_a_call_whose_loop_was_closed_harms_no_later_one(
    driver: str, pair: Pair, run: Run, loop: ringloop.EventLoop
) -> None:
    a, b = pair
    closed = ringloop.EventLoop(driver)
    call: Any = closed.sock_recv(a, 10)
    call.send(None)  # it waits
    closed.run_until_complete(asyncio.sleep(0))
    closed.close()
    b.send(b"late")
    with pytest.raises(StopIteration, match="late"):
        call.send(None)

    async def main() -> None:
        receiving = await waiting(loop.sock_recv(a, 10))
        b.send(b"next")
        assert await asyncio.wait_for(receiving, TIMEOUT) == b"next"

    run(main())


def test_a_connect_goes_on_after_a_cancelled_one(run: Run, loop: ringloop.EventLoop) -> None:
    async def main() -> None:
        with (
            socket.create_server(("127.0.0.1", 0), backlog=0) as busy,
            socket.create_connection(busy.getsockname()),
            socket.socket() as client,
        ):
            client.setblocking(False)
            await cancelled(await waiting(loop.sock_connect(client, busy.getsockname())))
            again = await waiting(loop.sock_connect(client, busy.getsockname()))
            busy.accept()[0].close()  # the kernel asks again after a second
            await again
            assert client.getpeername() == busy.getsockname()

    run(main())


# -- several at once, and sockets that go away -------------------------------------------


def test_waits_that_are_cancelled_and_waits_that_end_do_not_mix(
    run: Run, loop: ringloop.EventLoop
) -> None:
    async def go() -> None:
        chance = random.Random(1)
        pairs = [socket.socketpair() for _ in range(8)]
        with contextlib.ExitStack() as stack:
            for a, b in pairs:
                stack.enter_context(a).setblocking(False)
                stack.enter_context(b).setblocking(False)
            for _ in range(50):
                tasks = [asyncio.create_task(loop.sock_recv(a, 10)) for a, _ in pairs]
                await settle()
                for i, (_, b) in enumerate(pairs):
                    if chance.random() < 0.5:
                        tasks[i].cancel()
                    b.send(b"%d" % i)
                for i, (a, _) in enumerate(pairs):
                    # A cancelled call may have had its answer already: never another's.
                    (got,) = await asyncio.gather(tasks[i], return_exceptions=True)
                    if isinstance(got, asyncio.CancelledError):
                        got = await loop.sock_recv(a, 10)
                    assert got == b"%d" % i

    run(go())


def test_a_call_that_nobody_awaited_says_so(loop: ringloop.EventLoop, pair: Pair) -> None:
    with pytest.warns(RuntimeWarning, match="'sock_recv' was never awaited"):
        receiving = loop.sock_recv(pair[0], 1)
        del receiving
    with pytest.warns(RuntimeWarning, match="'sock_sendall' was never awaited"):
        sending = loop.sock_sendall(pair[0], b"x")
        del sending


def test_a_subclass_of_socket_says_its_own_number(run: Run, loop: ringloop.EventLoop) -> None:
    class Renumbered(socket.socket):
        asked = 0

        def fileno(self) -> int:
            self.asked += 1
            return super().fileno()

    async def go() -> None:
        ends = socket.socketpair()
        a, b = (Renumbered(fileno=end.detach()) for end in ends)
        with a, b:
            a.setblocking(False)
            b.setblocking(False)
            task = await waiting(loop.sock_recv(a, 10))
            await loop.sock_sendall(b, b"x")
            assert await task == b"x"
            assert a.asked
            assert b.asked

    run(go())


def test_two_receivers_of_one_socket_share_what_comes(
    run: Run, loop: ringloop.EventLoop, pair: Pair
) -> None:
    async def main() -> None:
        first = await waiting(loop.sock_recv(pair[0], 1))
        second = await waiting(loop.sock_recv(pair[0], 1))
        third = await waiting(loop.sock_recv(pair[0], 1))
        await cancelled(second)
        pair[1].send(b"a")
        done, _ = await asyncio.wait([first, third], return_when=asyncio.FIRST_COMPLETED)
        assert len(done) == 1
        pair[1].send(b"b")
        assert sorted(await asyncio.gather(first, third)) == [b"a", b"b"]

    run(main())


def test_both_directions_wait_independently(run: Run, loop: ringloop.EventLoop, pair: Pair) -> None:
    a, b = pair
    data = bytes(16 << 20)

    async def main() -> None:
        for victim in ("receiver", "sender"):
            receiving = await waiting(loop.sock_recv(a, 10))
            sending = await waiting(loop.sock_sendall(a, data))
            if victim == "receiver":
                await cancelled(receiving)
                left = len(data)
                while left:
                    left -= len(await loop.sock_recv(b, 1 << 20))
                await sending
            else:
                await cancelled(sending)
                b.send(b"still here")
                assert await receiving == b"still here"

    run(main())


async def reused(old: socket.socket) -> Pair:
    """Close `old`; a new connected pair, the first of which has its number."""
    number = old.fileno()
    old.close()
    fillers = []
    while True:
        a, b = socket.socketpair()
        if number in (a.fileno(), b.fileno()):
            break
        fillers += [a, b]
    for filler in fillers:
        filler.close()
    if b.fileno() == number:
        a, b = b, a
    a.setblocking(False)
    b.setblocking(False)
    return a, b


@pytest.mark.parametrize("cancel", [True, False], ids=["cancelled", "left waiting"])
@pytest.mark.parametrize("user", ["sock_recv", "transport", "add_reader"])
def test_a_receiver_of_a_closed_socket_gets_nothing_of_the_next_one(
    run: Run, loop: ringloop.EventLoop, pair: Pair, user: str, cancel: bool
) -> None:
    async def main() -> None:
        stale = await waiting(loop.sock_recv(pair[0], 100))
        a, b = await reused(pair[0])
        got = asyncio.Queue[bytes]()
        task: asyncio.Task[None] | None = None
        if user == "sock_recv":

            async def receive() -> None:
                while True:
                    got.put_nowait(await loop.sock_recv(a, 100))

            task = await waiting(receive())
        elif user == "add_reader":
            loop.add_reader(a, lambda: got.put_nowait(a.recv(100)))
        else:

            class Queueing(asyncio.Protocol):
                def data_received(self, data: bytes) -> None:
                    got.put_nowait(data)

            transport, _ = await loop.create_connection(Queueing, sock=a)
        b.send(b"one")
        assert await asyncio.wait_for(got.get(), TIMEOUT) == b"one"
        if cancel:
            stale.cancel()
        await settle()
        for i in range(10):
            b.send(b"%d" % i)
            assert await asyncio.wait_for(got.get(), TIMEOUT) == b"%d" % i
            await settle()
        if stale.done() and not stale.cancelled():
            assert isinstance(stale.exception(), OSError)  # EBADF: told as soon as it is known
        elif not stale.done():
            await cancelled(stale)
        if task is not None:
            await cancelled(task)
        elif user == "add_reader":
            assert loop.remove_reader(a)
        else:
            transport.close()
        await settle()
        a.close()
        b.close()

    run(main())


def test_close_ends_the_connection_even_if_a_task_waits_on_the_socket(
    run: Run, loop: ringloop.EventLoop
) -> None:
    async def main() -> None:
        a, b = tcp_pair()
        with b:
            a.setblocking(False)
            stale = await waiting(loop.sock_recv(a, 100))
            a.close()
            b.settimeout(2)
            assert await asyncio.to_thread(b.recv, 10) == b""
            stale.cancel()
            await asyncio.wait([stale])

        listener = socket.create_server(("127.0.0.1", 0))
        listener.setblocking(False)
        address = listener.getsockname()
        stale = await waiting(loop.sock_accept(listener))
        listener.close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address)
        stale.cancel()
        await asyncio.wait([stale])

    run(main())


def test_a_port_is_free_once_the_accept_is_cancelled_and_the_socket_closed(
    run: Run, loop: ringloop.EventLoop
) -> None:
    async def main() -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        listener.setblocking(False)
        address = listener.getsockname()
        await cancelled(await waiting(loop.sock_accept(listener)))
        listener.close()
        with socket.socket() as other:
            other.bind(address)
            other.listen()

    run(main())


# -- errors ------------------------------------------------------------------------------


def test_a_reset_is_an_error_for_whoever_waits(run: Run, loop: ringloop.EventLoop) -> None:
    async def main() -> None:
        for call in (
            lambda sock: loop.sock_recv(sock, 10),
            lambda sock: loop.sock_recv_into(sock, bytearray(10)),
            lambda sock: loop.sock_sendall(sock, bytes(16 << 20)),
        ):
            a, b = tcp_pair()
            with a:
                a.setblocking(False)
                task = await waiting(call(a))
                b.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                b.close()
                with pytest.raises(ConnectionResetError):
                    await task

    run(main())


def test_closed_sockets_and_sockets_of_transports_are_errors(
    run: Run, loop: ringloop.EventLoop, pair: Pair
) -> None:
    a, b = pair

    async def main() -> None:
        transport, _ = await loop.create_connection(asyncio.Protocol, sock=a)
        calls: list[Callable[[], Awaitable[Any]]] = [
            lambda: loop.sock_recv(a, 10),
            lambda: loop.sock_recv_into(a, bytearray(10)),
        ]
        for call in calls:
            with pytest.raises(RuntimeError, match="is used by transport"):
                await call()
        transport.close()
        await settle()
        for call in (
            *calls,
            lambda: loop.sock_sendall(a, b"x"),
            lambda: loop.sock_sendto(a, b"x", b.getsockname()),
            lambda: loop.sock_accept(a),
            lambda: loop.sock_connect(a, b.getsockname()),
        ):
            with pytest.raises(OSError, match="Bad file descriptor"):
                await call()

    run(main())


def test_blocking_and_tls_sockets_are_refused(run: Run, loop: ringloop.EventLoop) -> None:
    async def main() -> None:
        a, b = tcp_pair()
        loop.set_debug(True)
        with pytest.raises(ValueError, match="must be non-blocking"):
            await loop.sock_recv(a, 10)
        context = ssl.create_default_context()
        a.setblocking(False)
        with context.wrap_socket(a, server_hostname="x", do_handshake_on_connect=False) as tls, b:
            with pytest.raises(TypeError, match="Socket cannot be of type SSLSocket"):
                await loop.sock_recv(tls, 10)
            with pytest.raises(TypeError, match="Socket cannot be of type SSLSocket"):
                await loop.sock_sendall(tls, b"x")

    run(main())
