"""Debug mode: slow callbacks, wrong threads, forgotten coroutines, where things were made."""

from __future__ import annotations

import asyncio
import gc
import logging
import re
import socket
import sys
import threading
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import ringloop

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SLOW_S = 0.02
HERE = Path(__file__).name


@pytest.fixture
def debug_loop(loop: ringloop.EventLoop) -> ringloop.EventLoop:
    loop.set_debug(True)
    loop.slow_callback_duration = SLOW_S
    return loop


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    yield ours, theirs
    ours.close()
    theirs.close()


def spend(seconds: float) -> None:
    """A callback that blocks the loop."""
    time.sleep(seconds)


def slow_warning(caplog: pytest.LogCaptureFixture, name: str) -> tuple[str, float]:
    """The longest of the warnings that have this name in what was slow.

    There may be others: a machine that is busy elsewhere makes any callback slow.
    """
    found = [(what, seconds) for what, seconds in slow_warnings(caplog) if name in what]
    assert found, slow_warnings(caplog)
    return max(found, key=lambda warning: warning[1])


def slow_warnings(caplog: pytest.LogCaptureFixture) -> list[tuple[str, float]]:
    """(what, seconds) of each warning about a slow callback."""
    found = []
    for record in caplog.records:
        match = re.fullmatch(r"Executing (.*) took (\d+\.\d+) seconds", record.getMessage())
        if match:
            assert record.levelno == logging.WARNING
            assert record.name == "asyncio"
            found.append((match[1], float(match[2])))
    return found


def run_briefly(loop: asyncio.AbstractEventLoop) -> None:
    loop.call_later(0.001, loop.stop)
    loop.run_forever()


# -- slow callbacks ------------------------------------------------------------------


@pytest.mark.parametrize("schedule", ["call_soon", "call_later", "call_soon_threadsafe"])
def test_a_slow_callback_is_named_with_its_duration(
    debug_loop: ringloop.EventLoop, caplog: pytest.LogCaptureFixture, schedule: str
) -> None:
    if schedule == "call_later":
        debug_loop.call_later(0, spend, SLOW_S * 2)
    else:
        getattr(debug_loop, schedule)(spend, SLOW_S * 2)
    run_briefly(debug_loop)
    what, seconds = slow_warning(caplog, "spend")
    assert HERE in what
    assert SLOW_S * 2 <= seconds < 5


def test_a_slow_step_of_a_task_is_named_by_its_coroutine(
    debug_loop: ringloop.EventLoop, caplog: pytest.LogCaptureFixture
) -> None:
    async def slow_coroutine() -> None:
        time.sleep(SLOW_S * 2)

    debug_loop.run_until_complete(slow_coroutine())
    _, seconds = slow_warning(caplog, "slow_coroutine")
    assert seconds >= SLOW_S * 2


def test_quick_callbacks_are_not_named(
    debug_loop: ringloop.EventLoop, caplog: pytest.LogCaptureFixture
) -> None:
    debug_loop.slow_callback_duration = 5
    debug_loop.call_soon(spend, 0.001)
    run_briefly(debug_loop)
    assert slow_warnings(caplog) == []


def test_without_debug_mode_nobody_is_named(
    loop: ringloop.EventLoop, caplog: pytest.LogCaptureFixture
) -> None:
    loop.slow_callback_duration = 0.0
    loop.call_soon(spend, 0.002)
    run_briefly(loop)
    assert slow_warnings(caplog) == []


class SlowProtocol(asyncio.Protocol):
    """Blocks the loop in one of its methods."""

    def __init__(self, slow: str) -> None:
        self.slow = slow
        self.lost = asyncio.get_running_loop().create_future()

    def spend(self, name: str) -> None:
        if name == self.slow:
            time.sleep(SLOW_S * 2)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.spend("connection_made")

    def data_received(self, data: bytes) -> None:
        self.spend("data_received")

    def eof_received(self) -> None:
        self.spend("eof_received")

    def connection_lost(self, exc: BaseException | None) -> None:
        self.spend("connection_lost")
        self.lost.set_result(None)


@pytest.mark.parametrize(
    "slow", ["connection_made", "data_received", "eof_received", "connection_lost"]
)
def test_a_slow_protocol_is_named_by_its_transport(
    debug_loop: ringloop.EventLoop,
    run: Callable[..., Any],
    pair: tuple[socket.socket, socket.socket],
    caplog: pytest.LogCaptureFixture,
    slow: str,
) -> None:
    async def main() -> None:
        _, protocol = await debug_loop.create_connection(lambda: SlowProtocol(slow), sock=pair[0])
        pair[1].send(b"x")
        pair[1].shutdown(socket.SHUT_WR)
        await protocol.lost

    run(main())
    _, seconds = slow_warning(caplog, "Transport")
    assert seconds >= SLOW_S * 2


def test_a_slow_protocol_factory_of_a_server_is_named(
    debug_loop: ringloop.EventLoop,
    run: Callable[..., Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        accepted = debug_loop.create_future()

        def factory() -> asyncio.Protocol:
            accepted.set_result(protocol := SlowProtocol(""))
            time.sleep(SLOW_S * 2)
            return protocol

        server = await debug_loop.create_server(factory, "127.0.0.1", 0)
        with socket.create_connection(server.sockets[0].getsockname()):
            protocol = await accepted
        await protocol.lost
        server.close()

    run(main())
    _, seconds = slow_warning(caplog, "127.0.0.1")
    assert seconds >= SLOW_S * 2


def test_a_slow_reader_is_named(
    debug_loop: ringloop.EventLoop,
    run: Callable[..., Any],
    pair: tuple[socket.socket, socket.socket],
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def main() -> None:
        done = debug_loop.create_future()

        def slow_reader() -> None:
            debug_loop.remove_reader(pair[0])
            time.sleep(SLOW_S * 2)
            done.set_result(None)

        debug_loop.add_reader(pair[0], slow_reader)
        pair[1].send(b"x")
        await done

    run(main())
    _, seconds = slow_warning(caplog, "slow_reader")
    assert seconds >= SLOW_S * 2


# -- wrong threads -------------------------------------------------------------------


@pytest.mark.parametrize("method", ["call_soon", "call_later", "call_at"])
def test_scheduling_from_another_thread_is_refused(
    debug_loop: ringloop.EventLoop, run: Callable[..., Any], method: str
) -> None:
    def schedule() -> str:
        args = (print,) if method == "call_soon" else (1, print)
        with pytest.raises(RuntimeError) as caught:
            getattr(debug_loop, method)(*args)
        return str(caught.value)

    async def main() -> str:
        return str(await debug_loop.run_in_executor(None, schedule))

    assert "Non-thread-safe operation" in run(main())


def test_call_soon_threadsafe_from_another_thread_is_fine(
    debug_loop: ringloop.EventLoop, run: Callable[..., Any]
) -> None:
    async def main() -> str:
        future = debug_loop.create_future()
        thread = threading.Thread(
            target=debug_loop.call_soon_threadsafe, args=(future.set_result, "called")
        )
        thread.start()
        try:
            return str(await future)
        finally:
            thread.join()

    assert run(main()) == "called"


def test_a_loop_that_does_not_run_may_be_used_from_any_thread(
    debug_loop: ringloop.EventLoop,
) -> None:
    seen: list[int] = []
    thread = threading.Thread(target=lambda: debug_loop.call_soon(seen.append, 1))
    thread.start()
    thread.join()
    run_briefly(debug_loop)
    assert seen == [1]


# -- what cannot be called -----------------------------------------------------------


@pytest.mark.parametrize("method", ["call_soon", "call_soon_threadsafe", "call_later", "call_at"])
def test_a_coroutine_is_no_callback(debug_loop: ringloop.EventLoop, method: str) -> None:
    async def coroutine() -> None: ...

    schedule = getattr(debug_loop, method)
    when = (1,) if method in ("call_later", "call_at") else ()
    created = coroutine()
    for callback in (coroutine, created):
        with pytest.raises(TypeError, match=rf"coroutines cannot be used with {method}\(\)"):
            schedule(*when, callback)
    created.close()
    with pytest.raises(TypeError, match=rf"a callable object was expected by {method}\(\)"):
        schedule(*when, "not callable")


BLOCKING: dict[str, Callable[[Any, socket.socket], Any]] = {
    "recv": lambda loop, sock: loop.sock_recv(sock, 1),
    "recv_into": lambda loop, sock: loop.sock_recv_into(sock, bytearray(1)),
    "recvfrom": lambda loop, sock: loop.sock_recvfrom(sock, 1),
    "recvfrom_into": lambda loop, sock: loop.sock_recvfrom_into(sock, bytearray(1)),
    "sendall": lambda loop, sock: loop.sock_sendall(sock, b"x"),
    "sendto": lambda loop, sock: loop.sock_sendto(sock, b"x", ("127.0.0.1", 1)),
    "accept": lambda loop, sock: loop.sock_accept(sock),
    "connect": lambda loop, sock: loop.sock_connect(sock, ("127.0.0.1", 1)),
}


@pytest.mark.parametrize("name", BLOCKING)
def test_a_blocking_socket_is_refused(
    debug_loop: ringloop.EventLoop,
    run: Callable[..., Any],
    pair: tuple[socket.socket, socket.socket],
    name: str,
) -> None:
    async def main() -> None:
        with pytest.raises(ValueError, match="must be non-blocking"):
            await BLOCKING[name](debug_loop, pair[1])

    pair[1].settimeout(1)
    run(main())


# -- where things were made ----------------------------------------------------------


def test_a_handle_says_where_it_was_created(debug_loop: ringloop.EventLoop) -> None:
    def callback() -> None: ...

    handles = [
        debug_loop.call_soon(callback),
        debug_loop.call_soon_threadsafe(callback),
        debug_loop.call_later(1, callback),
        debug_loop.call_at(1, callback),
    ]
    for handle in handles:
        assert re.search(rf"created at .*{re.escape(HERE)}:\d+", repr(handle))
        frame = handle._source_traceback[-1]  # type: ignore[attr-defined]
        assert frame.name == "test_a_handle_says_where_it_was_created"
        handle.cancel()
        assert "cancelled" in repr(handle)
        assert "callback" in repr(handle)  # debug mode remembers


def test_without_debug_mode_a_handle_keeps_no_traceback(loop: ringloop.EventLoop) -> None:
    handle = loop.call_soon(print)
    assert "created at" not in repr(handle)
    handle.cancel()


def test_the_report_of_an_exception_says_where_its_callback_was_scheduled(
    debug_loop: ringloop.EventLoop, caplog: pytest.LogCaptureFixture
) -> None:
    def scheduler() -> None:
        debug_loop.call_soon(lambda: 1 / 0)

    scheduler()
    run_briefly(debug_loop)
    assert "Object created at (most recent call last)" in caplog.text
    assert "in scheduler" in caplog.text
    assert "ZeroDivisionError" in caplog.text


def test_a_coroutine_that_was_never_awaited_says_where_it_was_created(
    debug_loop: ringloop.EventLoop, run: Callable[..., Any]
) -> None:
    async def forgotten() -> None: ...

    async def creator() -> None:
        forgotten()  # type: ignore[unused-coroutine]
        gc.collect()

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", RuntimeWarning)
        run(creator())
    (message,) = [str(w.message) for w in caught if w.category is RuntimeWarning]
    assert "forgotten' was never awaited" in message
    assert "Coroutine created at" in message
    assert "in creator" in message


def test_origin_tracking_is_on_only_while_a_debug_loop_runs(
    loop: ringloop.EventLoop, run: Callable[..., Any]
) -> None:
    async def depth() -> int:
        return sys.get_coroutine_origin_tracking_depth()

    async def switch() -> list[int]:
        loop.set_debug(True)
        await asyncio.sleep(0)
        on = await depth()
        loop.set_debug(False)
        await asyncio.sleep(0)
        return [on, await depth()]

    before = sys.get_coroutine_origin_tracking_depth()
    assert run(depth()) == before
    on, off = run(switch())
    assert on > 0
    assert off == before
    loop.set_debug(True)
    assert run(depth()) > 0
    assert sys.get_coroutine_origin_tracking_depth() == before


def test_debug_mode_can_be_asked_for_by_the_environment(
    driver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONASYNCIODEBUG", "1")
    loop = ringloop.EventLoop(driver)
    assert loop.get_debug()
    assert "debug=True" in repr(loop)
    loop.close()


def test_debug_mode_changes_nothing_that_the_program_sees(
    debug_loop: ringloop.EventLoop, run: Callable[..., Any]
) -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.close()

    async def main() -> bytes:
        debug_loop.slow_callback_duration = 5
        server = await asyncio.start_server(echo, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        writer.write(b"debug" * 50_000)
        writer.write_eof()
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
        server.close()
        while len(asyncio.all_tasks()) > 2:  # this, wait_for's, and the other end's handler
            await asyncio.sleep(0.001)
        return answer

    assert run(main()) == b"debug" * 50_000
