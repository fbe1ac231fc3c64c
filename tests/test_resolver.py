"""loop.getaddrinfo and getnameinfo: the stdlib's answers, in threads of their own."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import socket
import subprocess
import sys
import textwrap
import threading
import weakref
from typing import TYPE_CHECKING, Any

import pytest

import drivers
import ringloop
from waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Run = Callable[..., Any]

TIMEOUT = 10
# The classes of socket's errors, as `resolve` in a thread raises them.
Outcome = tuple[str, Any]


def resolver_threads() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name.startswith("ringloop-resolver")]


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    gc.collect()
    for thread in resolver_threads():
        thread.join(TIMEOUT)
        assert not thread.is_alive()


class StuckResolver:
    """socket.getaddrinfo for the names that start with "stuck": waits to be let go."""

    def __init__(self) -> None:
        self.real = socket.getaddrinfo
        self.lock = threading.Lock()
        self.asked: list[str] = []
        self.go = threading.Event()
        self.entered = threading.Semaphore(0)

    def __call__(self, host: Any, port: Any, *args: Any) -> Any:
        if isinstance(host, str) and host.startswith("stuck"):
            self.asked.append(host)
            self.entered.release()
            assert self.go.wait(TIMEOUT)
            host = "127.0.0.1"
        return self.real(host, port, *args)


@pytest.fixture
def stuck(monkeypatch: pytest.MonkeyPatch) -> Iterator[StuckResolver]:
    resolver = StuckResolver()
    monkeypatch.setattr(socket, "getaddrinfo", resolver)
    yield resolver
    resolver.go.set()


async def outcome(awaitable: Any) -> Outcome:
    try:
        return "result", await awaitable
    except Exception as exc:
        return type(exc).__name__, exc.args


def outcome_of(function: Callable[..., Any], *args: Any) -> Outcome:
    try:
        return "result", function(*args)
    except Exception as exc:
        return type(exc).__name__, exc.args


# -- the same answers ----------------------------------------------------------------

V6, V4 = socket.AF_INET6, socket.AF_INET
STREAM = socket.SOCK_STREAM

NUMERIC = [
    ("127.0.0.1", 80, 0, 0, 0, 0),
    ("127.0.0.1", "80", V4, STREAM, 0, 0),
    (b"127.0.0.1", b"80", 0, STREAM, socket.IPPROTO_TCP, 0),
    ("::1", 443, 0, STREAM, 0, 0),
    ("::1%lo", 443, 0, STREAM, 0, 0),
    ("fe80::1%1", 443, 0, STREAM, 0, 0),
    ("fe80::1%nosuch", 443, 0, STREAM, 0, 0),
    ("127.0.0.1", None, 0, socket.SOCK_DGRAM, 0, 0),
    ("127.0.0.1", 80, V6, STREAM, 0, 0),
    ("127.0.0.1", 80, V6, STREAM, 0, socket.AI_V4MAPPED),
    ("::1", 80, V4, STREAM, 0, 0),
    ("10.1.2.3", 80, 0, STREAM, 0, socket.AI_CANONNAME),
    ("name.invalid", 80, 0, STREAM, 0, socket.AI_NUMERICHOST),
    ("ü" * 70, 80, 0, STREAM, 0, socket.AI_NUMERICHOST),
    ("127.0.0.1", "http", 0, STREAM, 0, socket.AI_NUMERICSERV),
    (None, 80, 0, STREAM, 0, 0),
    (None, "80", 0, STREAM, 0, socket.AI_PASSIVE),
    (None, None, 0, 0, 0, 0),
    ("127.0.0.1", 80, 12345, STREAM, 0, 0),
    ("127.0.0.1", 80, V4, 99, 0, 0),
    ("127.0.0.1", 1 << 80, V4, STREAM, 0, 0),
    ("127.0.0.1", -1, V4, STREAM, 0, 0),
]
LOOKED_UP = [
    ("localhost", 80, V4, STREAM, 0, 0),
    (b"localhost", 80, V4, STREAM, 0, 0),
    ("localhost", "http", V4, STREAM, 0, 0),
    ("127.0.0.1", "http", 0, STREAM, 0, 0),
    ("127.0.0.1", "no-such-service", 0, STREAM, 0, 0),
    (None, "http", V4, STREAM, 0, 0),
    ("127.1", 80, 0, STREAM, 0, 0),
    ("127.0.0.1", "", 0, STREAM, 0, 0),
    ("127.0.0.1", "²", 0, STREAM, 0, 0),
    ("a" * 70, 80, 0, STREAM, 0, 0),
    ("x" * 64 + ".example", 80, 0, STREAM, 0, 0),
    ("ü" * 70, 80, 0, STREAM, 0, 0),
    ("127.0.0.1\0.example", 80, 0, STREAM, 0, 0),
    ("127.0.0.1", 80.5, 0, STREAM, 0, 0),
    (17, 80, 0, STREAM, 0, 0),
    ([], 80, 0, STREAM, 0, 0),
]


def ask(loop: ringloop.EventLoop, args: tuple[Any, ...]) -> Any:
    host, port, family, kind, proto, flags = args
    return loop.getaddrinfo(host, port, family=family, type=kind, proto=proto, flags=flags)


@pytest.mark.parametrize("args", NUMERIC, ids=repr)
def test_numbers_get_the_stdlibs_answer_without_a_thread(
    run: Run, loop: ringloop.EventLoop, args: tuple[Any, ...]
) -> None:
    before = threading.active_count()
    assert run(outcome(ask(loop, args))) == outcome_of(socket.getaddrinfo, *args)
    assert threading.active_count() == before


@pytest.mark.parametrize("args", LOOKED_UP, ids=repr)
def test_names_get_the_stdlibs_answer_in_a_thread(
    run: Run, loop: ringloop.EventLoop, args: tuple[Any, ...]
) -> None:
    assert run(outcome(ask(loop, args))) == outcome_of(socket.getaddrinfo, *args)
    assert len(resolver_threads()) == 1


def test_a_name_without_an_address_is_a_gaierror(run: Run, loop: ringloop.EventLoop) -> None:
    with pytest.raises(socket.gaierror) as caught:
        run(loop.getaddrinfo("127.0.0.1", 80, family=socket.AF_INET6))
    assert caught.value.errno in (socket.EAI_ADDRFAMILY, socket.EAI_NONAME)
    with pytest.raises(UnicodeError):
        run(loop.getaddrinfo("x" * 64, 80))
    with pytest.raises(TypeError, match="must be string or None"):
        run(loop.getaddrinfo(17, 80))  # type: ignore[arg-type]


NUMERIC_NAME = socket.NI_NUMERICHOST | socket.NI_NUMERICSERV


@pytest.mark.parametrize(
    ("address", "flags", "threads"),
    [
        (("127.0.0.1", 80), NUMERIC_NAME, 0),
        (("::1", 80, 0, 0), NUMERIC_NAME, 0),
        (("name.invalid", 80), NUMERIC_NAME, 0),
        (("127.0.0.1", 80), socket.NI_NUMERICHOST, 1),
        (("127.0.0.1", 80), socket.NI_NUMERICSERV, 1),
        (("127.0.0.1", 1 << 40), 0, 1),
        ("127.0.0.1", 0, 1),
        (("127.0.0.1",), NUMERIC_NAME, 0),
    ],
    ids=repr,
)
def test_getnameinfo_gives_the_stdlibs_answer(
    run: Run, loop: ringloop.EventLoop, address: Any, flags: int, threads: int
) -> None:
    expected = outcome_of(socket.getnameinfo, address, flags)
    assert run(outcome(loop.getnameinfo(address, flags))) == expected
    assert len(resolver_threads()) == threads


# -- the threads ---------------------------------------------------------------------


def test_a_blocked_default_executor_does_not_stop_name_resolution(
    run: Run, loop: ringloop.EventLoop
) -> None:
    go = threading.Event()

    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            # More than the default executor has threads.
            blocked = [loop.run_in_executor(None, go.wait, TIMEOUT) for _ in range(40)]
            try:
                port = listener.getsockname()[1]
                _, writer = await asyncio.open_connection("localhost", port, family=V4)
                writer.close()
                await writer.wait_closed()
                assert not any(future.done() for future in blocked)
            finally:
                go.set()
                await asyncio.gather(*blocked)

    run(main())


def test_threads_are_made_one_by_one_and_used_again(run: Run, loop: ringloop.EventLoop) -> None:
    async def main() -> None:
        assert resolver_threads() == []
        for _ in range(3):
            await loop.getaddrinfo("localhost", 80)
            assert len(resolver_threads()) == 1

    run(main())


def test_no_more_threads_than_asked_for_and_the_others_wait_in_line(
    driver: str, stuck: StuckResolver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RINGLOOP_RESOLVER_THREADS", "2")

    async def main() -> None:
        loop = asyncio.get_running_loop()
        tasks = [asyncio.create_task(loop.getaddrinfo(f"stuck{i}", 80)) for i in range(5)]
        await asyncio.to_thread(stuck.entered.acquire)
        await asyncio.to_thread(stuck.entered.acquire)
        assert len(resolver_threads()) == 2
        assert sorted(stuck.asked) == ["stuck0", "stuck1"]
        # One that waits in line is never asked once it is cancelled.
        tasks[3].cancel()
        # Nor does anybody hear of one that is cancelled while it is asked.
        tasks[0].cancel()
        await asyncio.wait([tasks[0], tasks[3]])
        stuck.go.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [isinstance(r, list) for r in results] == [False, True, True, False, True]
        assert stuck.asked[2:] in (["stuck2", "stuck4"], ["stuck4", "stuck2"])
        assert len(resolver_threads()) == 2

    with asyncio.Runner(loop_factory=lambda: ringloop.EventLoop(drivers.make(driver))) as runner:
        runner.run(asyncio.wait_for(main(), TIMEOUT))


@pytest.mark.parametrize("text", ["0", "-1", "many", "1.5", "²"])
def test_a_wrong_number_of_threads_is_said_when_the_loop_is_made(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RINGLOOP_RESOLVER_THREADS", text)
    with pytest.raises(ValueError, match="RINGLOOP_RESOLVER_THREADS must be a positive number"):
        ringloop.EventLoop("epoll")


def test_an_error_leaves_no_garbage(
    run: Run, loop: ringloop.EventLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors = []

    class NotFoundError(Exception):
        def __init__(self) -> None:
            errors.append(weakref.ref(self))

    def fail(*args: Any) -> None:
        raise NotFoundError

    async def main() -> None:
        monkeypatch.setattr(socket, "getaddrinfo", fail)
        try:
            await loop.getaddrinfo("name", 80)
        except NotFoundError:
            pass
        monkeypatch.undo()
        # The thread lets go of a job before it takes the next.
        await loop.getaddrinfo("localhost", 80)
        assert errors[0]() is None

    gc.disable()
    try:
        run(main())
    finally:
        gc.enable()


# -- the end -------------------------------------------------------------------------


def test_closing_the_loop_does_not_wait_for_a_look_up(
    loop: ringloop.EventLoop, stuck: StuckResolver
) -> None:
    async def main() -> None:
        await asyncio.to_thread(stuck.entered.acquire)

    task = loop.create_task(loop.getaddrinfo("stuck", 80))
    loop.run_until_complete(main())
    (thread,) = resolver_threads()
    task.cancel()
    loop.run_until_complete(asyncio.wait([task]))
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()
    assert thread.is_alive()
    stuck.go.set()
    thread.join(TIMEOUT)
    assert not thread.is_alive()


def test_a_loop_that_nobody_closes_is_collected_and_its_threads_end(driver: str) -> None:
    loop = ringloop.EventLoop(drivers.make(driver))
    loop.run_until_complete(loop.getaddrinfo("localhost", 80))
    (thread,) = resolver_threads()
    gone = weakref.ref(loop)
    with pytest.warns(ResourceWarning, match="unclosed event loop"):
        del loop
        wait_until(lambda: gone() is None)  # its thread may have had it a moment ago
    thread.join(TIMEOUT)
    assert not thread.is_alive()


@pytest.mark.parametrize("ending", ["loop.close()", "pass"], ids=["closed", "not-closed"])
def test_the_interpreter_exits_while_a_look_up_is_stuck(driver: str, ending: str) -> None:
    code = f"""
        import asyncio, socket, sys, threading, warnings
        import ringloop
        warnings.simplefilter("ignore", ResourceWarning)
        entered = threading.Event()
        def stuck(*args):
            entered.set()
            threading.Event().wait()
        loop = ringloop.EventLoop({driver!r})
        loop.run_until_complete(loop.getaddrinfo("localhost", "http"))
        socket.getaddrinfo = stuck
        task = loop.create_task(loop.getaddrinfo("name", 80))
        loop.run_until_complete(asyncio.to_thread(entered.wait))
        task.cancel()
        loop.run_until_complete(asyncio.wait([task]))
        {ending}
        print("the end")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "the end\n", "")


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_resolves_with_threads_of_its_own(
    run: Run, loop: ringloop.EventLoop, driver: str
) -> None:
    run(loop.getaddrinfo("localhost", 80))
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            assert resolver_threads() == []
            child_loop = ringloop.EventLoop(drivers.make(driver))
            found = child_loop.run_until_complete(child_loop.getaddrinfo("localhost", 80))
            assert found
            assert len(resolver_threads()) == 1
            child_loop.close()
            loop.close()
            status = 0
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0
    assert run(loop.getaddrinfo("localhost", 80))


# -- debug mode ----------------------------------------------------------------------


def test_debug_mode_logs_look_ups_and_the_slow_ones_louder(
    run: Run, loop: ringloop.EventLoop, caplog: pytest.LogCaptureFixture
) -> None:
    loop.set_debug(True)
    loop.slow_callback_duration = 1000
    with caplog.at_level(logging.DEBUG, logger="asyncio"):
        run(loop.getaddrinfo("localhost", 80, family=V4))
        loop.slow_callback_duration = -1
        run(loop.getaddrinfo("localhost", 81, family=V4))
    levels = {
        (record.levelname, record.getMessage().partition(",")[0])
        for record in caplog.records
        if record.getMessage().startswith("Getting address info")
    }
    assert levels == {
        ("DEBUG", "Getting address info localhost:80"),
        ("INFO", "Getting address info localhost:81"),
    }
