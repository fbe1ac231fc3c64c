"""add_reader, add_writer and their removal, on everything that can be polled."""

from __future__ import annotations

import asyncio
import contextvars
import errno
import os
import socket
import tty
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import ringloop

    Run = Callable[..., Any]
    Loop = ringloop.EventLoop

TIMEOUT = 10


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    a, b = socket.socketpair()
    with a, b:
        a.setblocking(False)
        b.setblocking(False)
        yield a, b


Pair = tuple[socket.socket, socket.socket]


def run_iterations(loop: Loop, n: int = 5) -> None:
    """Let happen what is ready to happen."""
    for _ in range(n):
        loop.run_until_complete(asyncio.sleep(0))


def until(loop: Loop, condition: Callable[[], bool]) -> None:
    async def wait() -> None:
        while not condition():
            await asyncio.sleep(0)

    loop.run_until_complete(asyncio.wait_for(wait(), TIMEOUT))


# -- readiness ---------------------------------------------------------------------------


def test_unread_data_fires_again(loop: Loop, pair: Pair) -> None:
    got = []
    pair[1].send(b"abcd")
    loop.add_reader(pair[0], lambda: got.append(pair[0].recv(1)))
    until(loop, lambda: len(got) == 4)
    run_iterations(loop, 20)
    assert got == [b"a", b"b", b"c", b"d"]
    pair[1].send(b"e")
    until(loop, lambda: len(got) == 5)
    assert loop.remove_reader(pair[0])


def test_data_that_nobody_reads_fires_until_the_removal(loop: Loop, pair: Pair) -> None:
    calls: list[int] = []
    loop.add_reader(pair[0], calls.append, 1)
    run_iterations(loop, 20)
    assert not calls
    pair[1].send(b"x")
    until(loop, lambda: len(calls) >= 10)
    assert loop.remove_reader(pair[0])
    count = len(calls)
    run_iterations(loop)
    assert len(calls) == count
    assert pair[0].recv(10) == b"x"


def test_a_writable_socket_fires_until_it_is_full_and_again_when_it_is_not(
    loop: Loop, pair: Pair
) -> None:
    sent = 0

    def write() -> None:
        nonlocal sent
        sent += pair[0].send(bytes(100_000))

    loop.add_writer(pair[0], write)
    until(loop, lambda: sent > 0)
    run_iterations(loop, 20)
    full = sent
    run_iterations(loop, 20)
    assert sent == full
    while full:
        full -= len(pair[1].recv(1 << 20))
    before = sent
    until(loop, lambda: sent > before)
    assert loop.remove_writer(pair[0])


def test_arguments_and_context(loop: Loop, pair: Pair) -> None:
    var: contextvars.ContextVar[int] = contextvars.ContextVar("var", default=0)
    seen: list[Any] = []

    def register() -> None:
        var.set(1)
        loop.add_writer(pair[0], lambda *args: seen.append((*args, var.get())), "one", 2)

    contextvars.copy_context().run(register)
    until(loop, lambda: bool(seen))
    loop.remove_writer(pair[0])
    assert seen[0] == ("one", 2, 1)


def test_the_end_of_the_stream_fires_until_the_removal(loop: Loop, pair: Pair) -> None:
    got = []
    loop.add_reader(pair[0], lambda: got.append(pair[0].recv(10)))
    pair[1].close()
    until(loop, lambda: len(got) == 3)
    assert loop.remove_reader(pair[0])
    assert set(got) == {b""}


def test_both_directions_of_one_fd(loop: Loop, pair: Pair) -> None:
    events: list[bytes] = []
    loop.add_reader(pair[0], lambda: events.append(pair[0].recv(10)))
    loop.add_writer(pair[0], events.append, b"w")
    until(loop, lambda: len(events) > 3)
    assert set(events) == {b"w"}
    assert loop.remove_writer(pair[0])
    events.clear()
    run_iterations(loop)
    assert events == []
    pair[1].send(b"read")
    until(loop, lambda: bool(events))
    loop.add_writer(pair[0], events.append, b"w")
    assert loop.remove_reader(pair[0])
    pair[1].send(b"not read")
    until(loop, lambda: len(events) > 4)
    assert set(events) == {b"read", b"w"}
    assert loop.remove_writer(pair[0])


def test_a_refused_connect_makes_the_socket_writable(loop: Loop) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = listener.getsockname()
    with socket.socket() as sock:
        sock.setblocking(False)
        assert sock.connect_ex(address) == errno.EINPROGRESS
        fired: list[int] = []
        loop.add_writer(sock, fired.append, 1)
        until(loop, lambda: bool(fired))
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNREFUSED
        assert loop.remove_writer(sock)


def test_a_watch_that_always_fires_starves_nobody(loop: Loop, pair: Pair) -> None:
    calls = 0

    def fire() -> None:
        nonlocal calls
        calls += 1

    async def main() -> int:
        loop.add_writer(pair[0], fire)
        await asyncio.sleep(0.01)
        for _ in range(10):
            await asyncio.sleep(0)
        return calls

    assert loop.run_until_complete(asyncio.wait_for(main(), TIMEOUT)) >= 10
    assert loop.remove_writer(pair[0])


def test_many_fds_ready_at_once(loop: Loop) -> None:
    pairs = [socket.socketpair() for _ in range(200)]
    got: list[int] = []

    def read(i: int) -> None:
        pairs[i][0].recv(1)
        got.append(i)

    for i, (a, b) in enumerate(pairs):
        loop.add_reader(a, read, i)
        b.send(b"x")
    until(loop, lambda: len(got) == 200)
    run_iterations(loop)
    assert sorted(got) == list(range(200))
    for a, b in pairs:
        assert loop.remove_reader(a)
        a.close()
        b.close()


# -- adding and removing -------------------------------------------------------------------


def test_the_newest_callback_replaces_the_older(loop: Loop, pair: Pair) -> None:
    events: list[str] = []
    loop.add_reader(pair[0], events.append, "first")
    loop.add_reader(pair[0], events.append, "second")
    pair[1].send(b"x")
    until(loop, lambda: bool(events))
    loop.add_reader(pair[0].fileno(), events.append, "third")  # the same fd, as a number
    events.clear()
    until(loop, lambda: bool(events))
    assert set(events) == {"third"}
    assert loop.remove_reader(pair[0].fileno())
    assert not loop.remove_reader(pair[0])


def test_what_removal_says(loop: Loop, pair: Pair) -> None:
    for add, remove in (
        (loop.add_reader, loop.remove_reader),
        (loop.add_writer, loop.remove_writer),
    ):
        assert remove(pair[0]) is False
        add(pair[0], int)
        assert remove(pair[0]) is True
        assert remove(pair[0]) is False
    loop.add_reader(pair[0], int)
    assert loop.remove_writer(pair[0]) is False
    assert loop.remove_reader(pair[0]) is True


def test_a_callback_may_remove_itself_and_others(loop: Loop, pair: Pair) -> None:
    """Whoever is removed in the batch in which it is ready is not called any more."""
    called = []

    def only_me(me: socket.socket, other: socket.socket) -> None:
        called.append(me)
        assert loop.remove_reader(me)
        assert loop.remove_reader(other)

    a, b = pair
    a.send(b"x")
    b.send(b"x")
    loop.add_reader(a, only_me, a, b)
    loop.add_reader(b, only_me, b, a)
    until(loop, lambda: bool(called))
    run_iterations(loop)
    assert len(called) == 1


def test_a_callback_may_replace_itself(loop: Loop, pair: Pair) -> None:
    events: list[str] = []

    def first() -> None:
        events.append("first")
        loop.add_reader(pair[0], second)

    def second() -> None:
        events.append("second")
        loop.remove_reader(pair[0])
        loop.add_writer(pair[0], third)

    def third() -> None:
        events.append("third")
        loop.remove_writer(pair[0])

    pair[1].send(b"x")
    loop.add_reader(pair[0], first)
    until(loop, lambda: len(events) == 3)
    run_iterations(loop)
    assert events == ["first", "second", "third"]


def test_an_exception_in_a_callback_is_reported_and_the_watch_goes_on(
    loop: Loop, pair: Pair
) -> None:
    errors: list[Any] = []
    loop.set_exception_handler(lambda _, context: errors.append(context["exception"]))
    loop.add_reader(pair[0], lambda: 1 // 0)
    pair[1].send(b"x")
    until(loop, lambda: len(errors) >= 3)
    assert loop.remove_reader(pair[0])
    assert {type(error) for error in errors} == {ZeroDivisionError}


@pytest.mark.parametrize("schedule", ["soon", "later"])
def test_what_the_destructor_of_a_watched_object_schedules_is_not_waited_with(
    loop: Loop, pair: Pair, schedule: str
) -> None:
    """The last reference may go just before the loop waits."""

    class Connection:
        def fileno(self) -> int:
            return pair[0].fileno()

        def __del__(self) -> None:
            if schedule == "soon":
                gone.set_result(None)
            else:
                loop.call_later(0.001, gone.set_result, None)

    async def main() -> None:
        connection = Connection()
        loop.add_reader(connection, pytest.fail)
        loop.remove_reader(connection)
        del connection
        await gone

    gone = loop.create_future()
    loop.run_until_complete(asyncio.wait_for(main(), TIMEOUT))


def test_a_number_that_was_removed_closed_and_reused(loop: Loop) -> None:
    got: list[bytes] = []

    def read(fd: int) -> None:
        got.append(os.read(fd, 10))

    for i in range(20):
        r, w = os.pipe()
        number = r
        loop.add_reader(r, read, r)
        if i % 2:
            run_iterations(loop, 1)  # once it is armed, once it is not
        loop.remove_reader(r)
        os.close(r)
        os.close(w)
        r, w = os.pipe()
        assert r == number
        loop.add_reader(r, read, r)
        os.write(w, b"x")
        until(loop, lambda expected=i + 1: len(got) == expected)  # type: ignore[misc]
        loop.remove_reader(r)
        os.close(r)
        os.close(w)
    assert got == [b"x"] * 20


@pytest.mark.parametrize("closed", ["between calls", "in its callback"])
def test_a_number_that_was_closed_without_removal_and_reused(loop: Loop, closed: str) -> None:
    errors: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: errors.append(context))
    got: list[bytes] = []

    def read(fd: int) -> None:
        got.append(os.read(fd, 10))

    old_r, old_w = os.pipe()
    if closed == "between calls":
        loop.add_reader(old_r, read, old_r)
        run_iterations(loop)
        os.close(old_r)
    else:
        calls: list[int] = []
        loop.add_reader(old_r, lambda: (calls.append(1), os.close(old_r)))
        os.write(old_w, b"x")
        until(loop, lambda: bool(calls))
        run_iterations(loop)
        assert calls == [1]
    r, w = os.pipe()
    assert r == old_r
    loop.add_reader(r, read, r)
    for i in range(3):
        os.write(w, b"y")
        until(loop, lambda expected=i + 1: len(got) == expected)  # type: ignore[misc]
    assert loop.remove_reader(r)
    assert not loop.remove_reader(r)
    assert (got, errors) == ([b"y"] * 3, [])
    for fd in (old_w, r, w):
        os.close(fd)


def test_a_socket_that_is_closed_first_and_removed_then(loop: Loop, pair: Pair) -> None:
    a, b = pair
    loop.add_reader(a, lambda: None)
    loop.add_writer(a, lambda: None)
    run_iterations(loop)
    a.close()
    assert loop.remove_writer(a)
    assert loop.remove_reader(a)
    with pytest.raises(ValueError, match="Invalid file descriptor"):
        loop.remove_reader(a)
    assert loop.run_until_complete(loop.sock_recv(b, 1)) == b""  # nothing holds the file


def test_a_port_is_free_once_the_watch_is_removed_and_the_socket_closed(loop: Loop) -> None:
    async def main() -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        address = listener.getsockname()
        loop.add_reader(listener, int)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        loop.remove_reader(listener)
        listener.close()
        with socket.socket() as other:
            other.bind(address)
            other.listen()

    loop.run_until_complete(main())


def test_a_watched_socket_that_is_closed_ends_its_connection(loop: Loop, pair: Pair) -> None:
    a, b = pair
    number = a.fileno()
    loop.add_reader(a, int)
    loop.add_writer(a, int)
    run_iterations(loop)
    a.close()
    b.settimeout(TIMEOUT)
    assert b.recv(10) == b""
    assert loop.remove_reader(number)
    assert loop.remove_writer(number)


def test_a_watch_that_nobody_removed_does_not_blind_the_next_owner_of_the_number(
    loop: Loop,
) -> None:
    async def main() -> None:
        a, b = socket.socketpair()
        number = a.fileno()
        loop.add_reader(a, int)
        await asyncio.sleep(0)
        a.close()
        b.close()
        near, far = socket.socketpair()
        assert near.fileno() == number
        reader, writer = await asyncio.open_connection(sock=near)
        # Small pieces and large ones: transports have two ways to receive.
        for size in (10, 1 << 22):
            sending = asyncio.create_task(asyncio.to_thread(far.sendall, bytes(size)))
            assert await reader.readexactly(size) == bytes(size)
            await sending
        writer.close()
        await writer.wait_closed()
        far.close()
        assert loop.remove_reader(number)

    loop.run_until_complete(asyncio.wait_for(main(), TIMEOUT))


# -- what can be watched -------------------------------------------------------------------


def check_reads(loop: Loop, fd: int, write: Callable[[], object], expected: bytes) -> None:
    got: list[bytes] = []
    loop.add_reader(fd, lambda: got.append(os.read(fd, 100)))
    run_iterations(loop)
    assert not got
    write()
    until(loop, lambda: bool(got))
    assert got == [expected]
    run_iterations(loop)
    assert got == [expected]
    assert loop.remove_reader(fd)


def test_pipes(loop: Loop) -> None:
    r, w = os.pipe()
    check_reads(loop, r, lambda: os.write(w, b"pipe"), b"pipe")
    os.set_blocking(w, False)
    fired: list[int] = []
    loop.add_writer(w, fired.append, 1)
    until(loop, lambda: bool(fired))
    os.write(w, bytes(os.fpathconf(w, "PC_PIPE_BUF") * 16))
    run_iterations(loop)
    fired.clear()
    run_iterations(loop)
    assert not fired  # it is full
    os.close(r)
    until(loop, lambda: bool(fired))  # nobody will read that: an error to find out
    assert loop.remove_writer(w)
    os.close(w)


def test_a_pipe_whose_writer_is_gone(loop: Loop) -> None:
    r, w = os.pipe()
    got: list[bytes] = []
    loop.add_reader(r, lambda: got.append(os.read(r, 10)))
    os.close(w)
    until(loop, lambda: bool(got))
    assert loop.remove_reader(r)
    assert got[0] == b""
    os.close(r)


def test_terminals(loop: Loop) -> None:
    ours, theirs = os.openpty()
    tty.setraw(theirs)
    check_reads(loop, ours, lambda: os.write(theirs, b"out"), b"out")
    check_reads(loop, theirs, lambda: os.write(ours, b"in"), b"in")
    fired: list[int] = []
    loop.add_writer(theirs, fired.append, 1)
    until(loop, lambda: bool(fired))
    assert loop.remove_writer(theirs)
    os.close(ours)
    os.close(theirs)


def test_an_eventfd(loop: Loop) -> None:
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    check_reads(loop, fd, lambda: os.eventfd_write(fd, 7), (7).to_bytes(8, "little"))
    os.close(fd)


def open_file(tmp_path: Path) -> int:
    (tmp_path / "file").write_text("text")
    return os.open(tmp_path / "file", os.O_RDWR)


@pytest.mark.parametrize(
    "open_it",
    [
        open_file,
        lambda path: os.open(path, os.O_RDONLY),
        lambda path: os.open("/dev/null", os.O_RDWR),
        lambda path: os.open("/proc/self/status", os.O_RDONLY),
        lambda path: os.memfd_create("ringloop"),
    ],
    ids=["file", "directory", "/dev/null", "/proc", "memfd"],
)
def test_what_cannot_be_polled_is_refused(
    loop: Loop, tmp_path: Path, open_it: Callable[[Path], int]
) -> None:
    fd = open_it(tmp_path)
    try:
        for add, remove in (
            (loop.add_reader, loop.remove_reader),
            (loop.add_writer, loop.remove_writer),
        ):
            with pytest.raises(PermissionError) as caught:
                add(fd, int)
            assert caught.value.errno == errno.EPERM
            assert not remove(fd)
    finally:
        os.close(fd)


# -- errors ----------------------------------------------------------------------------------


def test_bad_fds_are_refused_as_in_stock_asyncio(loop: Loop, pair: Pair) -> None:
    gone = os.dup2(0, 900)
    os.close(gone)
    dead = socket.socket()
    dead.close()

    class Odd:
        def fileno(self) -> str:
            return "odd"

    def failures(loop: Any) -> list[tuple[str, type, object]]:
        found = []
        for method in ("add_reader", "add_writer", "remove_reader", "remove_writer"):
            for bad in (gone, -1, dead, "text", None, Odd(), 1.5):
                args = (int,) if method.startswith("add") else ()
                try:
                    result = getattr(loop, method)(bad, *args)
                    found.append((method, type(result), result))
                except Exception as exc:
                    found.append((method, type(exc), getattr(exc, "errno", None)))
        return found

    stock = asyncio.SelectorEventLoop()
    expected = failures(stock)
    stock.close()
    assert failures(loop) == expected


def test_the_fd_of_a_transport_is_refused_until_it_is_closed(
    loop: Loop, run: Run, pair: Pair
) -> None:
    async def main() -> None:
        transport, _ = await loop.create_connection(asyncio.Protocol, sock=pair[0])
        for fd in (pair[0], pair[0].fileno()):
            for method in ("add_reader", "add_writer", "remove_reader", "remove_writer"):
                args = (fd, int) if method.startswith("add") else (fd,)
                with pytest.raises(RuntimeError, match=r"is used by transport"):
                    getattr(loop, method)(*args)
        transport.close()
        fd = pair[0].fileno()
        while pair[0].fileno() != -1:
            await asyncio.sleep(0)
        os.dup2(pair[1].fileno(), fd)
        loop.add_writer(fd, int)  # somebody else's now
        assert loop.remove_writer(fd)
        os.close(fd)

    run(main())


def test_after_the_loop_is_closed(loop: Loop, pair: Pair) -> None:
    loop.add_reader(pair[0], int)
    loop.add_writer(pair[1], int)
    run_iterations(loop)
    loop.close()
    assert loop.remove_reader(pair[0]) is False
    assert loop.remove_writer(pair[1]) is False
    with pytest.raises(RuntimeError, match="Event loop is closed"):
        loop.add_reader(pair[0], int)
    with pytest.raises(RuntimeError, match="Event loop is closed"):
        loop.add_writer(pair[0], int)
