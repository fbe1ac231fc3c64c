"""The loop itself: scheduling, stopping, closing, tasks, executors, the public functions."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import socket
import sys
import threading
import weakref
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import ringloop

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterator

var: contextvars.ContextVar[str] = contextvars.ContextVar("var", default="unset")


def run_briefly(loop: asyncio.AbstractEventLoop) -> None:
    """Run all that is scheduled and due."""
    loop.call_later(0.001, loop.stop)
    loop.run_forever()


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    yield ours, theirs
    ours.close()
    theirs.close()


class Recorder(asyncio.Protocol):
    """Notes what it hears; `on_data` runs in data_received."""

    def __init__(self, log: list[Any], on_data: Callable[[bytes], None] | None = None) -> None:
        self.log = log
        self.on_data = on_data
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        self.log.append(data)
        if self.on_data is not None:
            self.on_data(data)

    def eof_received(self) -> None:
        self.log.append("eof")

    def connection_lost(self, exc: BaseException | None) -> None:
        self.log.append("lost")
        self.lost.set_result(None)


# -- call_soon and its handles -------------------------------------------------------


def test_callbacks_run_once_each_in_the_order_of_call_soon(loop: ringloop.EventLoop) -> None:
    seen: list[int] = []
    expected: list[int] = []
    for batch in (10, 700, 100, 300, 3000):  # grows the ready queue, wherever its head is
        for _ in range(batch):
            expected.append(len(expected))
            loop.call_soon(seen.append, expected[-1])
        run_briefly(loop)
        assert seen == expected


def test_callbacks_of_callbacks_run_after_all_that_were_scheduled_before(
    loop: ringloop.EventLoop,
) -> None:
    seen: list[str] = []

    def first() -> None:
        seen.append("first")
        loop.call_soon(seen.append, "child of first")
        loop.call_soon(loop.stop)

    loop.call_soon(first)
    loop.call_soon(seen.append, "second")
    loop.run_forever()
    assert seen == ["first", "second", "child of first"]


def test_a_cancelled_handle_does_not_run(loop: ringloop.EventLoop) -> None:
    seen: list[str] = []
    handles = [loop.call_soon(seen.append, name) for name in ("a", "b", "c")]
    handles[1].cancel()
    handles[1].cancel()
    run_briefly(loop)
    assert seen == ["a", "c"]
    assert [h.cancelled() for h in handles] == [False, True, False]


def test_a_callback_cancels_another_of_the_same_batch_and_itself(
    loop: ringloop.EventLoop,
) -> None:
    seen: list[str] = []
    handles: list[asyncio.Handle] = []

    def canceller() -> None:
        seen.append("canceller")
        for handle in handles:
            handle.cancel()

    handles.append(loop.call_soon(canceller))
    handles.append(loop.call_soon(seen.append, "cancelled"))
    loop.call_soon(seen.append, "last")
    run_briefly(loop)
    assert seen == ["canceller", "last"]


def test_handles_are_asyncio_handles_and_say_what_they_call(loop: ringloop.EventLoop) -> None:
    def some_callback() -> None: ...

    handle = loop.call_soon(some_callback)
    assert isinstance(handle, asyncio.Handle)
    assert not isinstance(handle, asyncio.TimerHandle)
    assert "some_callback" in repr(handle)
    assert Path(__file__).name in repr(handle)
    handle.cancel()
    assert repr(handle) == "<Handle cancelled>"


def test_a_handle_that_has_run_or_was_cancelled_keeps_nothing_alive(
    loop: ringloop.EventLoop,
) -> None:
    class Callback:
        def __call__(self) -> None: ...

    ran, cancelled = Callback(), Callback()
    refs = [weakref.ref(ran), weakref.ref(cancelled)]
    loop.call_soon(ran)
    kept = loop.call_soon(cancelled)
    kept.cancel()
    del ran, cancelled
    run_briefly(loop)
    gc.collect()
    assert [ref() for ref in refs] == [None, None]


def test_a_callback_runs_in_a_copy_of_the_context_of_its_call_soon(
    loop: ringloop.EventLoop,
) -> None:
    seen: list[str] = []

    def callback() -> None:
        seen.append(var.get())
        var.set("set by the callback")

    token = var.set("scheduler's")
    try:
        loop.call_soon(callback)
        loop.call_soon(callback)
        loop.call_later(0, callback)
    finally:
        var.reset(token)
    loop.call_later(0.001, loop.stop)
    loop.run_forever()
    assert seen == ["scheduler's", "scheduler's", "scheduler's"]
    assert var.get() == "unset"


def test_a_given_context_is_used_itself(loop: ringloop.EventLoop) -> None:
    context = contextvars.copy_context()
    context.run(var.set, "given")
    seen: list[str] = []
    for schedule in (loop.call_soon, loop.call_soon_threadsafe):
        handle = schedule(lambda: (seen.append(var.get()), var.set("changed")), context=context)
        assert handle.get_context() is context  # type: ignore[attr-defined]  # asyncio's: 3.12
    loop.call_at(0, lambda: seen.append(var.get()), context=context)
    run_briefly(loop)
    assert seen == ["given", "changed", "changed"]


def test_readers_and_protocols_run_in_the_context_that_made_them(
    loop: ringloop.EventLoop, pair: tuple[socket.socket, socket.socket], run: Callable[..., Any]
) -> None:
    seen: list[str] = []

    async def main() -> None:
        var.set("reader's")
        done = loop.create_future()
        extra_ours, extra_theirs = socket.socketpair()

        def readable() -> None:
            seen.append(var.get())
            loop.remove_reader(extra_ours)
            done.set_result(None)

        loop.add_reader(extra_ours, readable)
        var.set("protocol's")
        _, protocol = await loop.create_connection(
            lambda: Recorder([], lambda _: seen.append(var.get())), sock=pair[0].dup()
        )
        var.set("later")
        extra_theirs.send(b"x")
        await done
        pair[1].send(b"x")
        pair[1].shutdown(socket.SHUT_WR)
        await protocol.lost
        extra_ours.close()
        extra_theirs.close()

    run(main())
    assert seen == ["reader's", "protocol's"]


# -- order ---------------------------------------------------------------------------


def test_call_soon_goes_before_io_and_io_before_timers(
    loop: ringloop.EventLoop, pair: tuple[socket.socket, socket.socket], run: Callable[..., Any]
) -> None:
    log: list[Any] = []

    async def connect() -> tuple[asyncio.Transport, Recorder]:
        return await loop.create_connection(lambda: Recorder(log), sock=pair[0].dup())

    transport, protocol = run(connect())
    reader, writer = socket.socketpair()
    loop.add_reader(reader, lambda: (log.append("reader"), loop.remove_reader(reader)))
    run(asyncio.sleep(0))  # both receives are armed
    writer.send(b"x")
    pair[1].send(b"data")
    loop.call_at(loop.time() - 1, log.append, "timer")
    loop.call_soon(log.append, "soon")
    loop.call_at(loop.time() - 2, loop.call_soon, loop.stop)
    loop.run_forever()
    assert log[0] == "soon"
    assert log[-1] == "timer"
    assert sorted(log[1:-1], key=str) == [b"data", "reader"]
    transport.close()
    run(protocol.lost)
    reader.close()
    writer.close()


def test_an_endless_chain_of_call_soon_starves_neither_io_nor_timers(
    loop: ringloop.EventLoop, pair: tuple[socket.socket, socket.socket], run: Callable[..., Any]
) -> None:
    async def main() -> None:
        spinning = True

        def spin() -> None:
            if spinning:
                loop.call_soon(spin)

        spin()
        timer = loop.create_future()
        loop.call_later(0.001, timer.set_result, None)
        await timer
        received = asyncio.ensure_future(loop.sock_recv(pair[0], 10))
        await asyncio.sleep(0)
        pair[1].send(b"x")
        assert await received == b"x"
        spinning = False

    run(main())


# -- stop ----------------------------------------------------------------------------


def test_stop_lets_the_batch_finish_and_what_that_schedules_waits(
    loop: ringloop.EventLoop,
) -> None:
    seen: list[str] = []

    def stopper() -> None:
        loop.stop()
        loop.call_soon(seen.append, "next run")

    loop.call_soon(stopper)
    loop.call_soon(seen.append, "same batch")
    loop.run_forever()
    assert seen == ["same batch"]
    run_briefly(loop)
    assert seen == ["same batch", "next run"]


def test_stop_from_a_timer_and_from_data_received_makes_new_callbacks_wait(
    loop: ringloop.EventLoop, pair: tuple[socket.socket, socket.socket], run: Callable[..., Any]
) -> None:
    seen: list[Any] = []

    def stopper(name: str) -> None:
        loop.stop()
        loop.call_soon(seen.append, name)

    loop.call_later(0.001, stopper, "timer")
    loop.run_forever()
    assert seen == []
    run_briefly(loop)
    assert seen == ["timer"]

    async def connect() -> tuple[asyncio.Transport, Recorder]:
        return await loop.create_connection(
            lambda: Recorder([], lambda _: stopper("data")), sock=pair[0].dup()
        )

    transport, protocol = run(connect())
    pair[1].send(b"x")
    loop.run_forever()
    assert seen == ["timer"]
    run_briefly(loop)
    assert seen == ["timer", "data"]
    transport.close()
    run(protocol.lost)


def test_stop_before_run_forever_runs_what_is_scheduled_due_and_readable(
    loop: ringloop.EventLoop, pair: tuple[socket.socket, socket.socket], run: Callable[..., Any]
) -> None:
    seen: list[str] = []
    loop.add_reader(pair[0], seen.append, "reader")
    run(asyncio.sleep(0))
    pair[1].send(b"x")
    loop.call_soon(seen.append, "soon")
    loop.call_at(loop.time() - 1, seen.append, "timer")
    loop.stop()
    loop.run_forever()
    loop.remove_reader(pair[0])
    assert seen == ["soon", "reader", "timer"]


def test_stop_is_forgotten_when_the_run_is_over(loop: ringloop.EventLoop) -> None:
    loop.stop()
    loop.run_forever()
    seen: list[int] = []

    def chain(n: int) -> None:
        seen.append(n)
        if n:
            loop.call_soon(chain, n - 1)
        else:
            loop.stop()

    loop.call_soon(chain, 5)
    loop.run_forever()
    assert seen == [5, 4, 3, 2, 1, 0]


# -- exceptions ----------------------------------------------------------------------


def test_an_exception_in_a_callback_reaches_the_handler_and_the_rest_goes_on(
    loop: ringloop.EventLoop,
) -> None:
    contexts: list[dict[str, Any]] = []
    seen: list[str] = []
    loop.set_exception_handler(lambda _, context: contexts.append(context))

    def broken() -> None:
        raise ValueError("broken on purpose")

    handle = loop.call_soon(broken)
    timer = loop.call_later(-1, broken)
    loop.call_soon(seen.append, "rest")
    run_briefly(loop)
    assert seen == ["rest"]
    assert [str(c["exception"]) for c in contexts] == ["broken on purpose"] * 2
    assert [c["handle"] for c in contexts] == [handle, timer]
    assert all("Exception in callback" in c["message"] for c in contexts)
    assert all("broken" in c["message"] for c in contexts)


def test_without_a_handler_the_exception_is_logged(
    loop: ringloop.EventLoop, caplog: pytest.LogCaptureFixture
) -> None:
    loop.call_soon(lambda: 1 / 0)
    run_briefly(loop)
    assert "Exception in callback" in caplog.text
    assert "ZeroDivisionError" in caplog.text


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
def test_exit_exceptions_come_out_and_nothing_behind_is_lost(
    loop: ringloop.EventLoop, kind: type[BaseException]
) -> None:
    seen: list[str] = []

    def raiser() -> None:
        raise kind("out")

    reader, writer = socket.socketpair()
    loop.add_reader(reader, lambda: (seen.append("reader"), loop.remove_reader(reader)))
    writer.send(b"x")
    loop.call_soon(raiser)
    loop.call_soon(seen.append, "soon")
    loop.call_later(-1, seen.append, "timer")
    with pytest.raises(kind, match="out"):
        loop.run_forever()
    assert not loop.is_running()
    loop.call_later(0.001, loop.stop)
    loop.run_forever()
    assert sorted(seen) == ["reader", "soon", "timer"]
    reader.close()
    writer.close()


def connected(
    loop: ringloop.EventLoop, sock: socket.socket
) -> tuple[asyncio.Transport, asyncio.Protocol]:
    return loop.run_until_complete(loop.create_connection(asyncio.Protocol, sock=sock))


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
def test_what_was_written_before_an_exit_exception_is_sent(
    loop: ringloop.EventLoop, pair: tuple[socket.socket, socket.socket], kind: type[BaseException]
) -> None:
    transport, _ = connected(loop, pair[0])

    def leave() -> None:
        transport.write(b"bye")
        raise kind("out")

    loop.call_soon(leave)
    with pytest.raises(kind, match="out"):
        loop.run_forever()
    assert pair[1].recv(10, socket.MSG_DONTWAIT) == b"bye"
    transport.close()


def test_what_was_written_outside_a_run_is_sent_when_the_loop_is_closed(
    loop: ringloop.EventLoop, pair: tuple[socket.socket, socket.socket]
) -> None:
    transport, _ = connected(loop, pair[0])
    transport.pause_reading()
    loop.run_until_complete(asyncio.sleep(0))
    transport.write(b"bye")
    loop.close()
    assert pair[1].recv(10, socket.MSG_DONTWAIT) == b"bye"
    with pytest.warns(ResourceWarning, match="unclosed transport"):
        del transport
        gc.collect()


def test_what_was_written_behind_a_send_is_sent_when_the_loop_is_closed(
    loop: ringloop.EventLoop, pair: tuple[socket.socket, socket.socket]
) -> None:
    transport, _ = connected(loop, pair[0])
    loop.call_soon(transport.write, b"a")
    loop.call_soon(loop.stop)
    loop.run_forever()
    transport.write(b"b")
    loop.close()
    assert pair[1].recv(10, socket.MSG_DONTWAIT) == b"ab"
    with pytest.warns(ResourceWarning, match="unclosed transport"):
        del transport
        gc.collect()


@pytest.mark.parametrize("size", [100, 4 << 20], ids=["small", "bulk"])
@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
def test_an_exit_exception_in_data_received_loses_no_byte_and_no_eof(
    loop: ringloop.EventLoop, run: Callable[..., Any], kind: type[BaseException], size: int
) -> None:
    log: list[Any] = []
    raised = []

    def on_data(data: bytes) -> None:
        # Now and then, so that both ways of receiving meet it.
        if len(log) % 7 == 1:
            raised.append(len(data))
            raise kind("out")

    ours, theirs = socket.socketpair()
    sent = bytes(range(256)) * (size // 256 + 1)

    async def connect() -> Recorder:
        return (await loop.create_connection(lambda: Recorder(log, on_data), sock=ours))[1]

    protocol = run(connect())

    def feed() -> None:
        theirs.sendall(sent)
        theirs.close()

    feeder = threading.Thread(target=feed)
    feeder.start()
    if size == 100:
        feeder.join()  # data and EOF are there together
    give_up = loop.time() + 10
    while not protocol.lost.done() and loop.time() < give_up:
        with suppress(kind):
            loop.run_until_complete(asyncio.wait([protocol.lost], timeout=1))
    feeder.join(10)
    assert raised
    assert log[-2:] == ["eof", "lost"]
    assert b"".join(log[:-2]) == sent


# -- run_until_complete --------------------------------------------------------------


def test_run_until_complete_gives_results_and_raises_exceptions(
    loop: ringloop.EventLoop,
) -> None:
    async def value() -> int:
        return 42

    async def error() -> None:
        raise LookupError("mine")

    class Awaitable:
        def __await__(self) -> Generator[Any, None, int]:
            return value().__await__()

    assert loop.run_until_complete(value()) == 42
    assert loop.run_until_complete(Awaitable()) == 42
    done = loop.create_future()
    done.set_result("done before")
    assert loop.run_until_complete(done) == "done before"
    with pytest.raises(LookupError, match="mine"):
        loop.run_until_complete(error())


def test_run_until_complete_says_when_the_loop_was_stopped_early(
    loop: ringloop.EventLoop,
) -> None:
    future = loop.create_future()
    loop.call_soon(loop.stop)
    with pytest.raises(RuntimeError, match="stopped before Future completed"):
        loop.run_until_complete(future)
    loop.call_soon(future.set_result, "later")
    assert loop.run_until_complete(future) == "later"


def test_run_until_complete_refuses_what_it_cannot_run(
    loop: ringloop.EventLoop, driver: str
) -> None:
    other = ringloop.EventLoop(driver)
    foreign = other.create_future()
    with pytest.raises(ValueError, match="loop"):
        loop.run_until_complete(foreign)
    with pytest.raises(TypeError):
        loop.run_until_complete(42)  # type: ignore[arg-type]
    other.close()


def test_a_running_loop_cannot_be_run_or_closed(loop: ringloop.EventLoop, driver: str) -> None:
    other = ringloop.EventLoop(driver)

    async def main() -> None:
        with pytest.raises(RuntimeError, match="already running"):
            loop.run_forever()
        with pytest.raises(RuntimeError, match="running"):
            loop.close()
        with pytest.raises(RuntimeError, match="another loop is running"):
            other.run_forever()
        assert asyncio.get_running_loop() is loop
        assert loop.is_running()
        assert not other.is_running()

    loop.run_until_complete(main())
    assert not loop.is_running()
    other.close()


def test_system_exit_of_a_task_comes_out_of_run_until_complete(
    loop: ringloop.EventLoop,
) -> None:
    async def main() -> None:
        raise SystemExit(3)

    with pytest.raises(SystemExit):
        loop.run_until_complete(main())


# -- close ---------------------------------------------------------------------------


def test_close_twice_is_no_error_and_drops_what_was_scheduled(driver: str) -> None:
    loop = ringloop.EventLoop(driver)
    seen: list[int] = []
    loop.call_soon(seen.append, 1)
    loop.call_later(0, seen.append, 2)
    assert not loop.is_closed()
    loop.close()
    loop.close()
    assert loop.is_closed()
    assert seen == []
    assert "closed=True" in repr(loop)


def never() -> None: ...


CALLS: dict[str, Callable[[Any, socket.socket], Any]] = {
    "call_soon": lambda loop, _: loop.call_soon(never),
    "call_soon_threadsafe": lambda loop, _: loop.call_soon_threadsafe(never),
    "call_later": lambda loop, _: loop.call_later(1, never),
    "call_at": lambda loop, _: loop.call_at(1, never),
    "run_forever": lambda loop, _: loop.run_forever(),
    "run_until_complete": lambda loop, _: loop.run_until_complete(loop.create_future()),
    "run_in_executor": lambda loop, _: loop.run_in_executor(None, never),
    "add_reader": lambda loop, sock: loop.add_reader(sock, never),
    "add_writer": lambda loop, sock: loop.add_writer(sock, never),
    "add_signal_handler": lambda loop, _: loop.add_signal_handler(10, never),
}

COROUTINES: dict[str, Callable[[Any, socket.socket], Coroutine[Any, Any, Any]]] = {
    "create_connection": lambda loop, sock: loop.create_connection(asyncio.Protocol, sock=sock),
    "connect_accepted_socket": lambda loop, sock: loop.connect_accepted_socket(
        asyncio.Protocol, sock
    ),
    "create_server": lambda loop, sock: loop.create_server(asyncio.Protocol, sock=sock),
    "getaddrinfo": lambda loop, _: loop.getaddrinfo("127.0.0.1", 1),
    "sock_recv": lambda loop, sock: loop.sock_recv(sock, 1),
    "sock_recv_into": lambda loop, sock: loop.sock_recv_into(sock, bytearray(1)),
    "sock_recvfrom": lambda loop, sock: loop.sock_recvfrom(sock, 1),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_closed_loop_refuses_every_call(
    driver: str, name: str, pair: tuple[socket.socket, socket.socket]
) -> None:
    loop = ringloop.EventLoop(driver)
    loop.close()
    with pytest.raises(RuntimeError, match="Event loop is closed"):
        CALLS[name](loop, pair[0])


@pytest.mark.parametrize("name", COROUTINES)
def test_a_closed_loop_refuses_every_coroutine(
    driver: str, name: str, pair: tuple[socket.socket, socket.socket]
) -> None:
    loop = ringloop.EventLoop(driver)
    loop.close()
    with socket.create_server(("127.0.0.1", 0)) as listening:
        coro = COROUTINES[name](loop, listening if name == "create_server" else pair[0])
        try:
            with pytest.raises(RuntimeError, match="Event loop is closed"):
                coro.send(None)
        finally:
            coro.close()


def test_a_task_for_a_closed_loop_is_refused(driver: str) -> None:
    loop = ringloop.EventLoop(driver)
    loop.close()

    async def main() -> None: ...

    coro = main()
    with pytest.raises(RuntimeError, match="Event loop is closed"):
        loop.create_task(coro)
    coro.close()


def test_a_loop_that_nobody_closed_gives_a_resource_warning(driver: str) -> None:
    loop = ringloop.EventLoop(driver)
    loop.run_until_complete(asyncio.sleep(0))
    ref = weakref.ref(loop)
    with pytest.warns(ResourceWarning, match="unclosed event loop"):
        del loop
        gc.collect()
    assert ref() is None


# -- tasks and generators --------------------------------------------------------------


def test_a_task_factory_makes_the_tasks_and_goes_away_again(loop: ringloop.EventLoop) -> None:
    class MyTask(asyncio.Task[Any]): ...

    async def kind() -> type:
        return type(asyncio.current_task())

    def factory(loop: Any, coro: Any, **kwargs: Any) -> asyncio.Task[Any]:
        return MyTask(coro, loop=loop, **kwargs)

    assert loop.get_task_factory() is None
    assert loop.run_until_complete(kind()) is asyncio.Task
    loop.set_task_factory(factory)
    assert loop.get_task_factory() is factory
    assert loop.run_until_complete(kind()) is MyTask
    loop.set_task_factory(None)
    assert loop.run_until_complete(kind()) is asyncio.Task


def test_a_task_factory_gets_no_keywords_that_nobody_gave(loop: ringloop.EventLoop) -> None:
    def factory(loop: Any, coro: Any) -> asyncio.Task[Any]:
        return asyncio.Task(coro, loop=loop)

    async def answer() -> int:
        return 42

    loop.set_task_factory(factory)
    assert loop.run_until_complete(answer()) == 42


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks came with Python 3.12")
def test_eager_tasks_run_up_to_their_first_wait_at_once(
    loop: ringloop.EventLoop, run: Callable[..., Any]
) -> None:
    log: list[str] = []

    async def child(wait: bool) -> str:
        log.append("started")
        if wait:
            await asyncio.sleep(0)
            log.append("resumed")
        return "result"

    async def main() -> None:
        loop.set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined]
        done = loop.create_task(child(wait=False))
        assert done.done()
        waiting = loop.create_task(child(wait=True))
        assert log == ["started", "started"]
        assert not waiting.done()
        assert [await done, await waiting] == ["result", "result"]
        assert log == ["started", "started", "resumed"]

    run(main())


def test_shutdown_asyncgens_closes_generators_that_were_left_open(
    loop: ringloop.EventLoop,
) -> None:
    log: list[str] = []

    async def numbers() -> AsyncIterator[int]:
        try:
            yield 1
            yield 2
        finally:
            await asyncio.sleep(0)
            log.append("closed")

    async def main(kept: list[Any]) -> None:
        kept.append(numbers())
        assert await anext(kept[0]) == 1

    kept: list[Any] = []
    loop.run_until_complete(main(kept))
    assert log == []
    loop.run_until_complete(loop.shutdown_asyncgens())
    assert log == ["closed"]


def test_a_generator_dropped_half_way_is_closed_by_the_loop(
    loop: ringloop.EventLoop, run: Callable[..., Any]
) -> None:
    closed = loop.create_future()

    async def numbers() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            await asyncio.sleep(0)
            closed.set_result("closed")

    async def main() -> str:
        async for _ in numbers():
            break
        gc.collect()
        return str(await closed)

    assert run(main()) == "closed"


# -- ringloop.run and install ------------------------------------------------------------


def test_run_refuses_what_is_no_coroutine_and_a_running_loop(loop: ringloop.EventLoop) -> None:
    with pytest.raises((ValueError, TypeError), match="coroutine"):
        ringloop.run(42)  # type: ignore[arg-type]

    async def inner() -> None: ...

    async def outer() -> None:
        coro = inner()
        try:
            with pytest.raises(RuntimeError, match="cannot be called from a running event loop"):
                ringloop.run(coro)
        finally:
            coro.close()

    loop.run_until_complete(outer())


@pytest.mark.skipif(sys.version_info >= (3, 16), reason="event loop policies end with 3.15")
@pytest.mark.filterwarnings("ignore:.*policy:DeprecationWarning")  # from 3.14 on
def test_install_makes_every_new_loop_a_ringloop() -> None:
    async def kind() -> type:
        return type(asyncio.get_running_loop())

    ringloop.install()
    try:
        assert asyncio.run(kind()) is ringloop.EventLoop
        loop = asyncio.new_event_loop()
        assert isinstance(loop, ringloop.EventLoop)
        loop.close()
    finally:
        asyncio.set_event_loop_policy(None)
    assert asyncio.run(kind()) is not ringloop.EventLoop
