"""The driver contract (`_driver/base.pyx`), on every driver."""

from __future__ import annotations

import errno
import os
import select
import socket
import threading
import time
from functools import partial
from typing import TYPE_CHECKING

import pytest

import drivers
from ringloop._driver.base import OpKind
from ringloop.testing.harness import Harness, RecordingSink

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

ON_FAULTY_DRIVERS = True
DEADLINE_S = 5.0
# io_uring's completion carries what it read; epoll's comes from a scratch buffer.
Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def harness(driver: str) -> Iterator[Harness]:
    harness = Harness(drivers.make(driver))
    harness.attach()
    harness.run(0)
    yield harness
    harness.close()
    assert harness.live == 0


@pytest.fixture
def pair() -> Iterator[Pair]:
    a, b = socket.socketpair()
    a.setblocking(False)
    b.setblocking(False)
    with a, b:
        yield a, b


def run_until(harness: Harness, done: Callable[[], object]) -> None:
    """Run the driver until `done()`; a test that waits in vain fails."""
    end = time.monotonic() + DEADLINE_S
    while not done():
        assert time.monotonic() < end, "nothing happened"
        harness.run(0.05)


def data_of(sink: RecordingSink) -> bytes:
    return b"".join(c[4] for c in sink.completions if c[4])


def last(sink: RecordingSink, token: int) -> tuple[int, int, int, bool, bytes | None] | None:
    """The last completion of an operation, once it has come."""
    found = [c for c in sink.completions if c[0] == token and not c[3]]
    assert len(found) <= 1, "an operation has one last completion"
    return found[0] if found else None


def test_receive_delivers_all_bytes_in_order_then_eof(harness: Harness, pair: Pair) -> None:
    a, b = pair
    sink = RecordingSink(harness.driver)
    token = harness.recv_start(sink, a.fileno())
    sent = b""
    for i in range(50):
        piece = os.urandom(1 + i * 37)
        b.sendall(piece)
        sent += piece
        harness.run(0)
    b.close()
    run_until(harness, lambda: last(sink, token))
    assert data_of(sink) == sent
    assert last(sink, token) == (token, OpKind.OP_RECV, 0, False, None)


def test_receive_survives_more_data_than_there_are_buffers(harness: Harness, pair: Pair) -> None:
    a, b = pair
    sink = RecordingSink(harness.driver)
    harness.recv_start(sink, a.fileno())
    harness.run(0)
    blob = os.urandom(150_000)
    sent = 0
    while sent < len(blob):
        try:
            sent += b.send(blob[sent : sent + 20_000])
        except BlockingIOError:
            harness.run(0)
    run_until(harness, lambda: len(data_of(sink)) >= len(blob))
    assert data_of(sink) == blob
    assert all(c[3] for c in sink.completions), "nothing ended the receive"


def test_nothing_completes_inside_the_calls(harness: Harness, pair: Pair) -> None:
    a, b = pair
    sink = RecordingSink(harness.driver)
    b.send(b"there already")
    tokens = [harness.recv_start(sink, a.fileno())]
    tokens.append(harness.send(sink, b.fileno(), b"x"))
    tokens.append(harness.poll(sink, b.fileno(), select.POLLOUT))
    harness.submit()
    for token in tokens:
        harness.cancel(token)
    harness.submit()
    assert sink.completions == []
    run_until(harness, lambda: all(last(sink, t) for t in tokens))


def test_cancelled_receive_gets_its_last_completion_and_no_data_is_lost(
    harness: Harness, pair: Pair
) -> None:
    a, b = pair
    sink = RecordingSink(harness.driver)
    total = b""
    for i in range(30):
        token = harness.recv_start(sink, a.fileno())
        piece = bytes([i]) * (i + 1)
        b.sendall(piece)
        total += piece
        if i % 3:
            harness.run(0)
        harness.cancel(token)
        run_until(harness, partial(last, sink, token))
        got = last(sink, token)
        assert got is not None
        assert got[2] == -errno.ECANCELED
    token = harness.recv_start(sink, a.fileno())
    run_until(harness, lambda: len(data_of(sink)) == len(total))
    assert data_of(sink) == total


def test_cancel_is_idempotent_and_ignores_what_is_over(harness: Harness, pair: Pair) -> None:
    a, _ = pair
    sink = RecordingSink(harness.driver)
    token = harness.poll(sink, a.fileno(), select.POLLIN)
    for _ in range(3):
        harness.cancel(token)
    run_until(harness, lambda: last(sink, token))
    before = harness.live
    # The slot is used again: the old token must not hit the new operation.
    again = harness.poll(sink, a.fileno(), select.POLLIN)
    assert again != token
    harness.cancel(token)
    harness.cancel(0)
    harness.cancel(2**64 - 1)
    harness.run(0)
    assert last(sink, again) is None
    assert harness.live == before + 1


def test_send_completes_with_what_the_socket_took(harness: Harness, pair: Pair) -> None:
    a, b = pair
    sink = RecordingSink(harness.driver)
    data = os.urandom(1000)
    token = harness.send(sink, a.fileno(), data)
    run_until(harness, lambda: last(sink, token))
    done = last(sink, token)
    assert done is not None
    assert 0 < done[2] <= len(data)
    assert b.recv(2000) == data[: done[2]]


def test_send_from_several_buffers_keeps_their_order(harness: Harness, pair: Pair) -> None:
    a, b = pair
    sink = RecordingSink(harness.driver)
    pieces = tuple(os.urandom(10 + i) for i in range(40))
    token = harness.sendv(sink, a.fileno(), pieces)
    run_until(harness, lambda: last(sink, token))
    done = last(sink, token)
    assert done is not None
    assert done[2] > 0
    assert b.recv(10_000) == b"".join(pieces)[: done[2]]


def test_blocked_send_owns_its_buffer_until_it_completes(harness: Harness, pair: Pair) -> None:
    a, b = pair
    a.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    filled = 0
    try:
        while True:
            filled += a.send(b"-" * 1000)
    except BlockingIOError:
        pass
    sink = RecordingSink(harness.driver)
    # The only reference to these bytes is the driver's.
    token = harness.send(sink, a.fileno(), b"".join([b"late", b"r"]))
    harness.run(0)
    assert last(sink, token) is None
    junk = [os.urandom(5) for _ in range(1000)]
    received = b""
    while len(received) < filled:
        received += b.recv(65536)
    run_until(harness, lambda: last(sink, token))
    done = last(sink, token)
    assert done is not None
    assert done[2] > 0
    assert b.recv(100) == b"later"[: done[2]]
    assert junk


def test_cancelled_send_says_so(harness: Harness, pair: Pair) -> None:
    a, _ = pair
    try:
        while True:
            a.send(b"-" * 100_000)
    except BlockingIOError:
        pass
    sink = RecordingSink(harness.driver)
    token = harness.send(sink, a.fileno(), b"never")
    harness.run(0)
    harness.cancel(token)
    run_until(harness, lambda: last(sink, token))
    done = last(sink, token)
    assert done is not None
    assert done[2] == -errno.ECANCELED


def test_send_to_a_closed_peer_is_an_error_not_a_signal(harness: Harness, pair: Pair) -> None:
    a, b = pair
    b.close()
    sink = RecordingSink(harness.driver)
    token = harness.send(sink, a.fileno(), b"x")
    run_until(harness, lambda: last(sink, token))
    done = last(sink, token)
    assert done is not None
    assert done[2] == -errno.EPIPE


def test_accept_gives_a_descriptor_for_each_connection(harness: Harness) -> None:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(100)
    listener.setblocking(False)
    sink = RecordingSink(harness.driver)
    token = harness.accept_start(sink, listener.fileno())
    clients = []
    for _ in range(30):
        client = socket.create_connection(listener.getsockname())
        clients.append(client)
    run_until(harness, lambda: len(sink.completions) == len(clients))
    accepted = [socket.socket(fileno=c[2]) for c in sink.completions]
    assert all(c[3] for c in sink.completions)
    assert {c.getpeername() for c in accepted} == {c.getsockname() for c in clients}
    assert all(not c.get_inheritable() for c in accepted)
    harness.cancel_now(token)
    harness.release_fd(listener.fileno())
    address = listener.getsockname()
    listener.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)
    run_until(harness, lambda: last(sink, token))
    for sock in (*accepted, *clients):
        sock.close()


def test_poll_waits_once(harness: Harness, pair: Pair) -> None:
    a, b = pair
    sink = RecordingSink(harness.driver)
    token = harness.poll(sink, a.fileno(), select.POLLIN)
    harness.run(0)
    assert sink.completions == []
    b.send(b"x")
    run_until(harness, lambda: last(sink, token))
    done = last(sink, token)
    assert done is not None
    assert done[2] & select.POLLIN
    for _ in range(5):
        harness.run(0)
    assert len(sink.completions) == 1


def test_two_polls_on_one_descriptor_are_independent(harness: Harness, pair: Pair) -> None:
    a, b = pair
    sink = RecordingSink(harness.driver)
    first = harness.poll(sink, a.fileno(), select.POLLIN)
    second = harness.poll(sink, a.fileno(), select.POLLIN)
    out = harness.poll(sink, a.fileno(), select.POLLOUT)
    run_until(harness, lambda: last(sink, out))
    assert last(sink, first) is None
    harness.cancel(first)
    run_until(harness, lambda: last(sink, first))
    assert last(sink, second) is None
    b.send(b"x")
    run_until(harness, lambda: last(sink, second))


def test_poll_notices_a_reused_descriptor(harness: Harness) -> None:
    sink = RecordingSink(harness.driver)
    a, b = socket.socketpair()
    number = a.fileno()
    token = harness.poll(sink, number, select.POLLIN)
    harness.run(0)
    harness.cancel(token)
    run_until(harness, lambda: last(sink, token))
    a.close()
    b.close()
    c, d = socket.socketpair()
    assert number in (c.fileno(), d.fileno())
    mine, other = (c, d) if c.fileno() == number else (d, c)
    token = harness.poll(sink, mine.fileno(), select.POLLIN)
    other.send(b"x")
    run_until(harness, lambda: last(sink, token))
    c.close()
    d.close()


def test_watch_is_level_triggered(harness: Harness, pair: Pair) -> None:
    a, b = pair
    sink = RecordingSink(harness.driver)
    token = harness.watch_start(sink, a.fileno(), select.POLLIN)
    b.send(b"four")
    run_until(harness, lambda: len(sink.completions) >= 3)  # nobody reads it
    assert all(c[3] and c[2] & select.POLLIN for c in sink.completions)
    a.recv(100)
    harness.cancel(token)
    run_until(harness, lambda: last(sink, token))


def test_watch_refuses_regular_files(harness: Harness, tmp_path: os.PathLike[str]) -> None:
    sink = RecordingSink(harness.driver)
    path = os.path.join(tmp_path, "file")  # noqa: PTH118 - os.open below takes it as it is
    fd = os.open(path, os.O_CREAT | os.O_RDWR)
    before = harness.live
    with pytest.raises(PermissionError):
        harness.watch_start(sink, fd, select.POLLIN)
    os.close(fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        harness.watch_start(sink, fd, select.POLLIN)
    assert harness.live == before


def test_wake_ends_a_wait_from_another_thread(harness: Harness) -> None:
    woken = threading.Event()

    def wake() -> None:
        while not harness.sleeping:
            time.sleep(0.0005)
        harness.wake()
        woken.set()

    for _ in range(20):
        woken.clear()
        thread = threading.Thread(target=wake)
        thread.start()
        start = time.monotonic()
        while not woken.is_set():
            harness.run(DEADLINE_S)
        thread.join()
        assert time.monotonic() - start < DEADLINE_S / 2


def test_run_returns_at_its_deadline(harness: Harness) -> None:
    end = time.monotonic() + 0.05
    runs = 0
    # A ring that was closed earlier may interrupt a wait of its thread (EINTR, and no
    # signal): run() may return early, but not often.
    while (left := end - time.monotonic()) > 0:
        harness.run(left)
        runs += 1
    assert runs <= 20


def test_flush_runs_before_the_wait(harness: Harness, pair: Pair) -> None:
    a, b = pair
    tokens: list[int] = []
    sink = RecordingSink(
        harness.driver, on_flush=lambda: tokens.append(harness.send(sink, a.fileno(), b"now"))
    )
    harness.to_flush(sink)
    harness.to_flush(sink)
    assert sink.flushed == 0
    harness.run(DEADLINE_S)
    assert sink.flushed == 1
    run_until(harness, lambda: last(sink, tokens[0]))
    assert b.recv(10) == b"now"[: last(sink, tokens[0])[2]]  # type: ignore[index]


def test_what_a_flush_has_to_tell_is_not_waited_with(harness: Harness) -> None:
    sink = RecordingSink(harness.driver, on_flush=lambda: harness.to_dispatch(sink))
    harness.to_flush(sink)
    start = time.monotonic()
    harness.run(DEADLINE_S)
    assert time.monotonic() - start < DEADLINE_S / 2, "it waited"
    assert harness.dispatch() == 1
    assert sink.dispatched == 1


def test_a_sink_is_dispatched_once_for_many_completions(harness: Harness, pair: Pair) -> None:
    a, b = pair
    sink = RecordingSink(harness.driver)
    for _ in range(3):
        harness.poll(sink, a.fileno(), select.POLLOUT)
    run_until(harness, lambda: len(sink.completions) == 3)
    assert harness.dispatch() == 1
    assert sink.dispatched == 1
    assert harness.dispatch() == 0
    assert b.fileno() >= 0


def test_a_sink_that_always_has_something_to_tell_takes_no_more_room(harness: Harness) -> None:
    sink = RecordingSink(harness.driver, on_dispatch=lambda: harness.to_dispatch(sink))
    harness.to_dispatch(sink)
    before = harness.dispatch_capacity
    for _ in range(1000):
        assert harness.dispatch() == 1
    assert sink.dispatched == 1000
    assert harness.dispatch_capacity == before


def test_far_more_operations_than_queue_entries(harness: Harness) -> None:
    sink = RecordingSink(harness.driver)
    pairs = [socket.socketpair() for _ in range(200)]
    tokens = [harness.poll(sink, p[0].fileno(), select.POLLIN) for p in pairs for _ in range(10)]
    for _, b in pairs:
        b.send(b"x")
    run_until(harness, lambda: len(sink.completions) == len(tokens))
    assert {c[0] for c in sink.completions} == set(tokens)
    for a, b in pairs:
        a.close()
        b.close()


def test_close_lets_go_of_everything_in_flight(driver: str, pair: Pair) -> None:
    a, b = pair
    harness = Harness(drivers.make(driver))
    harness.attach()
    sink = RecordingSink(harness.driver)
    harness.recv_start(sink, a.fileno())
    harness.watch_start(sink, b.fileno(), select.POLLIN)
    harness.run(0)
    harness.close()
    harness.close()
    assert harness.live == 0
    with pytest.raises(RuntimeError, match="closed"):
        harness.recv_start(sink, a.fileno())
    harness.cancel(1 << 32 | 1)
    a.close()
    # Nothing holds the file any more: the peer sees the end at once.
    b.settimeout(DEADLINE_S)
    assert b.recv(1) == b""


def test_what_is_received_at_the_very_end_is_told_with_its_bytes(driver: str, pair: Pair) -> None:
    a, b = pair
    for rounds in range(50):  # in some of them the last completions are late
        harness = Harness(drivers.make(driver))
        harness.attach()
        sink = RecordingSink(harness.driver)
        harness.recv_start(sink, a.fileno())
        for _ in range(rounds + 1):
            b.send(b"some bytes")
            harness.run(0)
        harness.close()
        assert all(len(data or b"") == res for _, _, res, _, data in sink.completions if res > 0)


# -- files ---------------------------------------------------------------------------

FSYNC, OPENAT, READ, WRITE = 3, 18, 22, 23


def with_files(harness: Harness) -> None:
    if not harness.driver.has_file_ops:
        with pytest.raises(NotImplementedError):
            harness.file_op(RecordingSink(harness.driver), READ, 0, bytearray(1))
        pytest.skip("epoll has no operations on files, and says so")


def test_file_operations_give_the_result_of_the_call(harness: Harness, tmp_path: Path) -> None:
    with_files(harness)
    sink = RecordingSink(harness.driver)
    fd = os.open(tmp_path / "a", os.O_RDWR | os.O_CREAT)
    buffer = bytearray(10)
    for args, expected in (
        ((WRITE, fd, b"hello", 3), 5),
        ((FSYNC, fd, None), 0),
        ((READ, fd, buffer), 8),
        ((READ, fd, bytearray(1), 100), 0),
        ((READ, 999_999, bytearray(1)), -errno.EBADF),
        (
            (OPENAT, -100, str(tmp_path / "missing").encode() + b"\0", 0, os.O_CLOEXEC),
            -errno.ENOENT,
        ),
    ):
        token = harness.file_op(sink, *args)
        assert last(sink, token) is None  # nothing completes inside the call
        run_until(harness, lambda token=token: last(sink, token))  # type: ignore[misc]
        done = last(sink, token)
        assert done is not None
        assert (done[1], done[2]) == (OpKind.OP_FILE, expected)
    assert buffer == b"\0\0\0hello\0\0"
    os.close(fd)


def test_far_more_file_operations_than_entries(harness: Harness, tmp_path: Path) -> None:
    with_files(harness)
    (tmp_path / "a").write_bytes(bytes(range(250)))
    fd = os.open(tmp_path / "a", os.O_RDONLY)
    sink = RecordingSink(harness.driver)
    buffers = [bytearray(1) for _ in range(250)]
    tokens = {harness.file_op(sink, READ, fd, b, i) for i, b in enumerate(buffers)}
    run_until(harness, lambda: len(sink.completions) == 250)
    assert {c[0] for c in sink.completions} == tokens
    assert b"".join(buffers) == bytes(range(250))
    os.close(fd)


def ready_reads(harness: Harness, n: int) -> RecordingSink:
    """So many operations that the kernel completes as soon as it has them.

    Of a pipe that holds the bytes: what a worker has to read, as on tmpfs, comes later.
    """
    r, w = os.pipe()
    os.write(w, b"x" * n)
    sink = RecordingSink(harness.driver)
    for _ in range(n):
        harness.file_op(sink, READ, r, bytearray(1), 2**64 - 1)
    harness.submit()
    os.close(r)
    os.close(w)
    return sink


def test_an_iteration_takes_a_few_file_completions(harness: Harness, driver: str) -> None:
    """The loop looks at its timers between them; none waits for anything else to happen."""
    with_files(harness)
    if driver == "tiny-uring":
        pytest.skip("what overflowed its queue of 8 is taken all at once")
    sink = ready_reads(harness, 40)
    counts = []
    while len(sink.completions) < 40:
        before = len(sink.completions)
        harness.run(-1)
        counts.append(len(sink.completions) - before)
    assert counts == [8] * 5
    assert {c[2] for c in sink.completions} == {1}


def test_the_end_takes_all_file_completions(harness: Harness, driver: str) -> None:
    with_files(harness)
    n = 500 if driver == "tiny-uring" else 2500  # its end is over after 100 queues of 8
    sink = ready_reads(harness, n)
    harness.close()
    assert [c[2] for c in sink.completions] == [1] * n


@pytest.mark.parametrize("submitted", [False, True])
def test_a_cancelled_file_operation_completes_once(harness: Harness, submitted: bool) -> None:
    with_files(harness)
    r, w = os.pipe()
    sink = RecordingSink(harness.driver)
    token = harness.file_op(sink, READ, r, bytearray(4), 2**64 - 1)
    if submitted:
        harness.run(0)
    harness.cancel(token)
    harness.cancel(token)
    run_until(harness, lambda: sink.completions)
    harness.run(0)
    assert [(c[0], c[2], c[3]) for c in sink.completions] == [(token, -errno.ECANCELED, False)]
    os.write(w, b"kept")
    assert os.read(r, 4) == b"kept"
    os.close(r)
    os.close(w)
