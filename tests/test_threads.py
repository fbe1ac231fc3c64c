"""Threads: waking a loop, storms of call_soon_threadsafe, loops that move between threads."""

from __future__ import annotations

import asyncio
import gc
import socket
import sys
import threading
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import drivers
import ringloop

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Pairs = Callable[[], tuple[socket.socket, socket.socket]]

TIMEOUT_S = 20


class Thread(threading.Thread):
    """A thread whose exception join() raises, and which must end in time."""

    def __init__(self, target: Callable[..., Any], *args: Any) -> None:
        super().__init__(daemon=True)
        self.work = target
        self.args = args
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self.work(*self.args)
        except BaseException as exc:
            self.error = exc

    def join(self, timeout: float | None = TIMEOUT_S) -> None:
        super().join(timeout)
        assert not self.is_alive(), "the thread hangs"
        if self.error is not None:
            raise self.error


@contextmanager
def eager_switches() -> Iterator[None]:
    """Let threads take the GIL from each other far more often than they do by themselves."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


def pattern(size: int) -> bytes:
    """Bytes in which a lost, doubled or misplaced piece shows: every four are their number."""
    return b"".join(i.to_bytes(4, "big") for i in range(size // 4))


# -- call_soon_threadsafe ------------------------------------------------------------


def test_a_sleeping_loop_wakes_every_time(loop: ringloop.EventLoop) -> None:
    """A wake-up that falls between the loop's last look and its sleep must not be lost."""
    rounds = 2000
    go = threading.Event()
    future: asyncio.Future[None]

    def caller() -> None:
        for i in range(rounds):
            assert go.wait(TIMEOUT_S), f"the loop slept through call {i}"
            go.clear()
            for _ in range(i % 50):  # at another moment each time
                pass
            loop.call_soon_threadsafe(future.set_result, None)

    async def main() -> None:
        nonlocal future
        for _ in range(rounds):
            future = loop.create_future()
            go.set()
            await future

    thread = Thread(caller)
    with eager_switches():
        loop.run_until_complete(asyncio.wait_for(main(), TIMEOUT_S))
    thread.join()


@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
def test_a_storm_from_eight_threads_loses_nothing_and_keeps_each_threads_order(
    loop: ringloop.EventLoop, busy: bool
) -> None:
    threads, calls = 8, 3000
    seen: dict[int, list[int]] = defaultdict(list)
    left = threads * calls

    def called(thread: int, i: int) -> None:
        nonlocal left
        seen[thread].append(i)
        left -= 1
        if left == 0:
            loop.stop()

    def spin() -> None:
        if left:
            loop.call_soon(spin)

    def storm(thread: int) -> None:
        for i in range(calls):
            loop.call_soon_threadsafe(called, thread, i)

    if busy:
        loop.call_soon(spin)
    watchdog = loop.call_later(TIMEOUT_S, loop.stop)
    with eager_switches():
        workers = [Thread(storm, i) for i in range(threads)]
        loop.run_forever()
        for worker in workers:
            worker.join()
    watchdog.cancel()
    assert left == 0
    assert dict(seen) == {i: list(range(calls)) for i in range(threads)}


def test_calls_from_a_thread_before_the_loop_runs_are_kept(loop: ringloop.EventLoop) -> None:
    seen: list[int] = []
    Thread(lambda: [loop.call_soon_threadsafe(seen.append, i) for i in range(1000)]).join()
    assert seen == []
    loop.call_soon_threadsafe(loop.stop)
    loop.run_forever()
    assert seen == list(range(1000))


def test_a_call_that_comes_while_a_replaced_time_runs_wakes_the_loop(driver: str) -> None:
    class Loop(ringloop.EventLoop):
        disturbed = False

        def time(self) -> float:
            if self.disturbed:
                self.disturbed = False
                Thread(self.call_soon_threadsafe, self.stop).join()
            return super().time()

    loop = Loop(drivers.make(driver))
    hung: list[bool] = []
    # The loop asks for the time as it has a timer.
    guard = loop.call_later(TIMEOUT_S, lambda: (hung.append(True), loop.stop()))
    loop.call_soon(setattr, loop, "disturbed", True)
    loop.run_forever()
    assert not hung
    guard.cancel()
    loop.close()


def test_another_thread_stops_a_loop(loop: ringloop.EventLoop) -> None:
    running = threading.Event()
    loop.call_soon(running.set)
    watchdog = loop.call_later(TIMEOUT_S, pytest.fail, "the loop was not stopped")

    def stopper() -> None:
        assert running.wait(TIMEOUT_S)
        loop.call_soon_threadsafe(loop.stop)

    thread = Thread(stopper)
    loop.run_forever()
    watchdog.cancel()
    thread.join()


def test_run_coroutine_threadsafe_gives_the_result_to_the_other_thread(
    loop: ringloop.EventLoop,
) -> None:
    async def add(a: int, b: int) -> int:
        await asyncio.sleep(0)
        return a + b

    results: list[int] = []

    def caller() -> None:
        for i in range(100):
            future = asyncio.run_coroutine_threadsafe(add(i, 1), loop)
            results.append(future.result(TIMEOUT_S))
        loop.call_soon_threadsafe(loop.stop)

    thread = Thread(caller)
    watchdog = loop.call_later(TIMEOUT_S, loop.stop)
    loop.run_forever()
    watchdog.cancel()
    thread.join()
    assert results == list(range(1, 101))


# -- executors -----------------------------------------------------------------------


def test_run_in_executor_runs_elsewhere_and_brings_back_results_and_exceptions(
    loop: ringloop.EventLoop, run: Callable[..., Any]
) -> None:
    def fail() -> None:
        raise LookupError("from the thread")

    async def main() -> None:
        assert await loop.run_in_executor(None, threading.get_ident) != threading.get_ident()
        assert await loop.run_in_executor(None, divmod, 7, 2) == (3, 1)
        with pytest.raises(LookupError, match="from the thread"):
            await loop.run_in_executor(None, fail)
        with ThreadPoolExecutor(1, "mine") as pool:
            name = await loop.run_in_executor(pool, lambda: threading.current_thread().name)
        assert name.startswith("mine")

    run(main())


def test_shutdown_default_executor_waits_for_its_threads_and_ends_it(
    loop: ringloop.EventLoop, run: Callable[..., Any]
) -> None:
    async def main() -> None:
        gate = threading.Event()
        log: list[str] = []
        future = loop.run_in_executor(None, lambda: (gate.wait(10), log.append("worked")))
        loop.call_later(0.01, gate.set)
        await loop.shutdown_default_executor()
        assert log == ["worked"]
        await future
        with pytest.raises(RuntimeError, match="Executor shutdown"):
            loop.run_in_executor(None, int)

    run(main())


# -- two loops at the same time ------------------------------------------------------


def test_two_loops_in_two_threads_echo_to_each_other(driver: str) -> None:
    ready: list[threading.Event] = [threading.Event(), threading.Event()]
    over = threading.Barrier(2)
    ports = [0, 0]
    results: list[list[bytes]] = [[], []]
    messages = [pattern(64), pattern(4096), pattern(300_000)] * 20

    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.close()

    async def peer(me: int) -> None:
        server = await asyncio.start_server(echo, "127.0.0.1", 0)
        ports[me] = server.sockets[0].getsockname()[1]
        ready[me].set()
        loop = asyncio.get_running_loop()
        assert await loop.run_in_executor(None, ready[1 - me].wait, TIMEOUT_S)
        reader, writer = await asyncio.open_connection("127.0.0.1", ports[1 - me])
        for message in messages:
            writer.write(message)
            results[me].append(await reader.readexactly(len(message)))
        writer.close()
        await writer.wait_closed()
        await loop.run_in_executor(None, over.wait, TIMEOUT_S)
        server.close()
        await server.wait_closed()

    def thread(me: int) -> None:
        ringloop.run(asyncio.wait_for(peer(me), TIMEOUT_S), driver=driver)

    with eager_switches():
        threads = [Thread(thread, i) for i in range(2)]
        for t in threads:
            t.join()
    assert results == [messages, messages]


def test_a_running_loop_refuses_a_second_thread_and_goes_on(loop: ringloop.EventLoop) -> None:
    running = threading.Event()
    loop.call_soon(running.set)
    errors: list[str] = []

    def intruder() -> None:
        assert running.wait(TIMEOUT_S)
        for method in (loop.run_forever, loop.close):
            with pytest.raises(RuntimeError) as caught:
                method()
            errors.append(str(caught.value))
        # It still works after that.
        loop.call_soon_threadsafe(loop.call_later, 0.001, loop.stop)

    thread = Thread(intruder)
    watchdog = loop.call_later(TIMEOUT_S, loop.stop)
    loop.run_forever()
    watchdog.cancel()
    thread.join()
    assert errors == ["This event loop is already running", "Cannot close a running event loop"]


# -- a loop that moves ---------------------------------------------------------------


class Collector(asyncio.Protocol):
    def __init__(self) -> None:
        self.received = bytearray()
        self.paused = False
        self.eof = False
        self.lost = False
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.received += data

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False

    def eof_received(self) -> None:
        self.eof = True

    def connection_lost(self, exc: BaseException | None) -> None:
        assert exc is None
        self.lost = True


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while not condition():
            await asyncio.sleep(0.001)


class Home:
    """A thread that runs whatever part of a loop's life it is given."""

    def __init__(self) -> None:
        self.pool = ThreadPoolExecutor(1)

    def run(self, loop: ringloop.EventLoop, condition: Callable[[], bool]) -> None:
        self.pool.submit(loop.run_until_complete, until(condition)).result(TIMEOUT_S + 1)

    def end(self) -> None:
        self.pool.shutdown()


@pytest.fixture(params=["ended", "alive"])
def homes(request: pytest.FixtureRequest) -> Iterator[Iterator[Home]]:
    """Threads one after another; those left behind have ended or live on, idle."""
    used: list[Home] = []

    def homes() -> Iterator[Home]:
        while True:
            if used and request.param == "ended":
                used[-1].end()
            used.append(Home())
            yield used[-1]

    yield homes()
    for home in used:
        home.end()


@pytest.fixture
def socketpair() -> Iterator[Pairs]:
    """Pairs that are closed afterwards, also when the test fails."""
    with ExitStack() as stack:

        def socketpair() -> tuple[socket.socket, socket.socket]:
            pair = socket.socketpair()
            for sock in pair:
                stack.enter_context(sock)
            return pair

        yield socketpair


def connect(loop: ringloop.EventLoop, home: Home, sock: socket.socket) -> Collector:
    async def connect() -> Collector:
        return (await loop.create_connection(Collector, sock=sock))[1]

    return home.pool.submit(loop.run_until_complete, connect()).result(TIMEOUT_S)


def test_a_moved_loop_receives_on_its_transports_and_watches(
    loop: ringloop.EventLoop, homes: Iterator[Home], socketpair: Pairs
) -> None:
    home = next(homes)
    ours, theirs = socketpair()
    watched, trigger = socketpair()
    watched.setblocking(False)
    protocol = connect(loop, home, ours)
    seen = bytearray()
    loop.add_reader(watched, lambda: seen.extend(watched.recv(100)))
    theirs.send(b"one ")
    trigger.send(b"a")
    home.run(loop, lambda: (bytes(protocol.received), bytes(seen)) == (b"one ", b"a"))
    home = next(homes)
    theirs.send(b"two ")  # while no thread runs the loop
    trigger.send(b"b")
    home.run(loop, lambda: (bytes(protocol.received), bytes(seen)) == (b"one two ", b"ab"))
    theirs.send(b"three")
    trigger.send(b"c")
    home.run(loop, lambda: (bytes(protocol.received), bytes(seen)) == (b"one two three", b"abc"))
    home = next(homes)
    theirs.close()
    home.run(loop, lambda: protocol.eof and protocol.lost)
    home.pool.submit(loop.remove_reader, watched).result(TIMEOUT_S)
    assert protocol.received == b"one two three"


def test_a_moved_loop_sends_what_was_not_sent_yet_and_its_fin(
    loop: ringloop.EventLoop, homes: Iterator[Home], socketpair: Pairs
) -> None:
    sent = pattern(4 << 20)
    home = next(homes)
    ours, theirs = socketpair()
    protocol = connect(loop, home, ours)
    loop.call_soon(protocol.transport.write, sent)
    home.run(loop, lambda: protocol.paused)  # the socket is full, a send in flight
    home = next(homes)
    received = bytearray()

    def read_all() -> None:
        theirs.settimeout(TIMEOUT_S)
        while data := theirs.recv(100_000):
            received.extend(data)

    reader = Thread(read_all)
    home.run(loop, lambda: not protocol.paused)
    home = next(homes)
    loop.call_soon(protocol.transport.close)
    home.run(loop, lambda: protocol.lost)
    reader.join()
    assert received == sent


def test_a_moved_loop_answers_eof_with_eof(
    loop: ringloop.EventLoop, homes: Iterator[Home], socketpair: Pairs
) -> None:
    """The ring that was left behind must not hold the connection open."""
    home = next(homes)
    ours, theirs = socketpair()
    theirs.settimeout(5)
    protocol = connect(loop, home, ours)
    theirs.send(b"x")
    home.run(loop, lambda: protocol.received == b"x")
    home = next(homes)
    theirs.shutdown(socket.SHUT_WR)
    home.run(loop, lambda: protocol.lost)
    assert theirs.recv(1) == b""


@pytest.mark.parametrize("chunk", [500, 60_000], ids=["small", "bulk"])
def test_no_byte_is_lost_or_doubled_while_a_loop_moves_again_and_again(
    loop: ringloop.EventLoop, homes: Iterator[Home], socketpair: Pairs, chunk: int
) -> None:
    sent = pattern(chunk * 100)
    step = len(sent) // 25
    ours, theirs = socketpair()
    if chunk == 500:  # else all would arrive at once
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    theirs.settimeout(TIMEOUT_S)
    home = next(homes)
    protocol = connect(loop, home, ours)
    back = bytearray()
    goal = step

    def feed() -> None:
        for i in range(0, len(sent), chunk):
            theirs.sendall(sent[i : i + chunk])
        theirs.shutdown(socket.SHUT_WR)

    def read_back() -> None:
        while data := theirs.recv(chunk):
            back.extend(data)

    def echo(data: bytes) -> None:
        protocol.received += data
        protocol.transport.write(data)
        if len(protocol.received) >= goal:
            loop.stop()  # here and now, whatever is on its way

    def lost(exc: BaseException | None) -> None:
        Collector.connection_lost(protocol, exc)
        loop.stop()

    protocol.data_received = echo  # type: ignore[method-assign]
    protocol.connection_lost = lost  # type: ignore[method-assign]
    threads = [Thread(feed), Thread(read_back)]
    moves = 0
    while not protocol.lost:
        home.pool.submit(loop.run_forever).result(TIMEOUT_S)
        goal = len(protocol.received) + step
        home = next(homes)
        moves += 1
    for thread in threads:
        thread.join()
    assert moves > 10
    assert protocol.received == sent
    assert back == sent


def sized_loop(driver: str, size: str) -> ringloop.EventLoop:
    """A loop whose driver's queues are as always, or tiny."""
    if size == "tiny" and driver != "uring":
        pytest.skip("only io_uring has queues whose size can be chosen")
    return ringloop.EventLoop(drivers.make("tiny-uring" if size == "tiny" else driver))


@pytest.mark.parametrize("size", ["real", "tiny"])
def test_a_loop_with_more_operations_than_its_queues_hold_moves(
    driver: str, homes: Iterator[Home], socketpair: Pairs, size: str
) -> None:
    loop = sized_loop(driver, size)
    home = next(homes)
    messages = [f"<{i}>".encode() * 30 for i in range(30)]
    pairs = [socketpair() for _ in messages]
    protocols = [connect(loop, home, ours) for ours, _ in pairs]
    watched, trigger = socketpair()
    # More than the 512 entries of a real ring's submission queue.
    copies = [watched.dup() for _ in range(700 if size == "real" else 0)]
    readable: set[int] = set()
    for copy in copies:
        loop.add_reader(copy, readable.add, copy.fileno())
    for moves in range(1, 4):
        readable.clear()
        for (_, theirs), message in zip(pairs, messages, strict=True):
            theirs.send(message)
        trigger.send(b"x")
        wanted = [message * moves for message in messages]

        def told(wanted: list[bytes] = wanted) -> bool:
            return [p.received for p in protocols] == wanted and len(readable) == len(copies)

        home.run(loop, told)
        watched.recv(1)
        home = next(homes)
    for copy in copies:
        loop.remove_reader(copy)
        copy.close()
    for _, theirs in pairs:
        theirs.close()
    home.run(loop, lambda: all(p.lost for p in protocols))
    loop.close()


@pytest.mark.parametrize("size", ["real", "tiny"])
def test_a_loop_that_moves_with_more_sends_done_than_its_queue_holds_sends_none_again(
    driver: str, homes: Iterator[Home], socketpair: Pairs, size: str
) -> None:
    loop = sized_loop(driver, size)
    home = next(homes)
    pairs = [socketpair() for _ in range(30)]
    protocols = [connect(loop, home, ours) for ours, _ in pairs]

    def write_and_stop() -> None:
        for protocol in protocols:
            protocol.transport.write(b"once")
        loop.stop()

    loop.call_soon(write_and_stop)
    home.pool.submit(loop.run_forever).result(TIMEOUT_S)
    home = next(homes)
    for protocol in protocols:
        loop.call_soon(protocol.transport.close)
    home.run(loop, lambda: all(p.lost for p in protocols))
    for _, theirs in pairs:
        theirs.settimeout(TIMEOUT_S)
        assert theirs.recv(100) == b"once"
        assert theirs.recv(100) == b""
    loop.close()


def test_a_moved_server_goes_on_accepting(loop: ringloop.EventLoop, homes: Iterator[Home]) -> None:
    made: list[Collector] = []

    def factory() -> Collector:
        made.append(Collector())
        return made[-1]

    home = next(homes)
    server = home.pool.submit(
        loop.run_until_complete, loop.create_server(factory, "127.0.0.1", 0)
    ).result(TIMEOUT_S)
    address = server.sockets[0].getsockname()
    clients = []
    for i in range(1, 6):
        clients.append(socket.create_connection(address))
        clients[-1].send(b"x" * i)
        home.run(loop, lambda: [len(p.received) for p in made] == list(range(1, len(clients) + 1)))
        home = next(homes)
    for client in clients:
        client.close()
    home.run(loop, lambda: all(p.lost for p in made))
    home.pool.submit(server.close).result(TIMEOUT_S)
    home.run(loop, lambda: True)


def open_fds() -> set[str]:
    return {f"{p.name}: {p.readlink()}" for p in Path("/proc/self/fd").iterdir() if p.is_symlink()}


@pytest.mark.parametrize("homes", ["ended"], indirect=True)
def test_a_loop_closes_in_another_thread_than_it_ran_in(
    driver: str, homes: Iterator[Home], socketpair: Pairs
) -> None:
    gc.collect()
    before = open_fds()
    loop = ringloop.EventLoop(driver)
    home = next(homes)
    ours, theirs = socketpair()
    watched, trigger = socketpair()
    protocol = connect(loop, home, ours)
    loop.add_reader(watched, pytest.fail)
    loop.call_later(3600, pytest.fail)
    theirs.send(b"x")
    home.run(loop, lambda: protocol.received == b"x")
    loop.remove_reader(watched)
    loop.call_soon(protocol.transport.abort)
    next(homes).run(loop, lambda: protocol.lost)
    loop.close()  # in this thread, where it never ran
    for sock in (theirs, watched, trigger):
        sock.close()
    gc.collect()
    assert open_fds() - before == set()


def test_a_loop_that_never_ran_closes_in_another_thread(driver: str) -> None:
    loop = ringloop.EventLoop(driver)
    loop.call_soon(pytest.fail)
    Thread(loop.close).join()
    assert loop.is_closed()
