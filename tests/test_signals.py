"""Signals: handlers in the loop, KeyboardInterrupt at once, and nobody else's wake-up fd lost."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
import random
import select
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

import ringloop

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

TIMEOUT_S = 20


@pytest.fixture(autouse=True)
def signals_as_before() -> Iterator[None]:
    """Whatever a failing test leaves behind must not make others fail."""
    before = {n: signal.getsignal(n) for n in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)}
    signal.set_wakeup_fd(-1)
    yield
    signal.set_wakeup_fd(-1)
    for number, handler in before.items():
        signal.signal(number, handler)


def wakeup_fd() -> int:
    """The wake-up fd that is set now."""
    fd = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(fd)
    return fd


def next_signal(loop: ringloop.EventLoop, number: signal.Signals) -> asyncio.Future[None]:
    """A future that the handler of the next such signal resolves."""
    future: asyncio.Future[None] = loop.create_future()
    loop.add_signal_handler(number, lambda: future.done() or future.set_result(None))
    return future


# -- handlers ------------------------------------------------------------------------


def test_a_handler_runs_in_the_loop_with_its_arguments(
    loop: ringloop.EventLoop, run: Callable[..., Any]
) -> None:
    async def main() -> None:
        seen: list[Any] = []
        done = loop.create_future()

        def handler(*args: Any) -> None:
            seen.extend((args, asyncio.get_running_loop()))
            done.set_result(None)

        loop.add_signal_handler(signal.SIGUSR1, handler, 1, "two")
        signal.raise_signal(signal.SIGUSR1)
        assert seen == []  # not in the middle of this coroutine
        await done
        assert seen == [(1, "two"), loop]
        assert loop.remove_signal_handler(signal.SIGUSR1)
        assert not loop.remove_signal_handler(signal.SIGUSR1)

    run(main())


def test_a_signal_wakes_an_idle_loop(loop: ringloop.EventLoop, run: Callable[..., Any]) -> None:
    received = next_signal(loop, signal.SIGUSR1)
    thread = threading.Thread(target=lambda: os.kill(os.getpid(), signal.SIGUSR1))
    loop.call_soon(thread.start)
    run(received)
    thread.join()
    loop.remove_signal_handler(signal.SIGUSR1)


def test_a_new_handler_replaces_the_old_and_others_are_untouched(
    loop: ringloop.EventLoop, run: Callable[..., Any]
) -> None:
    async def main() -> None:
        seen: list[str] = []
        loop.add_signal_handler(signal.SIGUSR1, seen.append, "old")
        loop.add_signal_handler(signal.SIGUSR1, seen.append, "new")
        loop.add_signal_handler(signal.SIGUSR2, seen.append, "other")
        signal.raise_signal(signal.SIGUSR1)
        signal.raise_signal(signal.SIGUSR2)
        while len(seen) < 2:
            await asyncio.sleep(0)
        assert seen == ["new", "other"]
        loop.remove_signal_handler(signal.SIGUSR1)
        signal.raise_signal(signal.SIGUSR2)
        while len(seen) < 3:
            await asyncio.sleep(0)
        assert seen == ["new", "other", "other"]
        loop.remove_signal_handler(signal.SIGUSR2)

    run(main())


def test_removing_a_handler_gives_the_signal_its_default_back(
    loop: ringloop.EventLoop,
) -> None:
    loop.add_signal_handler(signal.SIGUSR1, int)
    loop.add_signal_handler(signal.SIGINT, int)
    assert signal.getsignal(signal.SIGUSR1) is not signal.SIG_DFL
    assert loop.remove_signal_handler(signal.SIGUSR1)
    assert loop.remove_signal_handler(signal.SIGINT)
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_signals_between_two_runs_are_not_lost(
    loop: ringloop.EventLoop, run: Callable[..., Any]
) -> None:
    received = next_signal(loop, signal.SIGUSR1)
    run(asyncio.sleep(0))
    signal.raise_signal(signal.SIGUSR1)
    run(received)
    loop.remove_signal_handler(signal.SIGUSR1)


def test_a_signal_before_the_first_run_is_not_lost(
    loop: ringloop.EventLoop, run: Callable[..., Any]
) -> None:
    received = next_signal(loop, signal.SIGUSR1)
    signal.raise_signal(signal.SIGUSR1)
    run(received)
    loop.remove_signal_handler(signal.SIGUSR1)


def test_a_thousand_signals_each_reach_the_handler(
    loop: ringloop.EventLoop, run: Callable[..., Any]
) -> None:
    async def main() -> None:
        count = 0

        def handler() -> None:
            nonlocal count
            count += 1

        loop.add_signal_handler(signal.SIGUSR1, handler)
        for i in range(1, 1001):
            signal.raise_signal(signal.SIGUSR1)
            while count < i:
                await asyncio.sleep(0)
        loop.remove_signal_handler(signal.SIGUSR1)
        assert count == 1000

    run(main())


@pytest.mark.parametrize(
    ("number", "error"),
    [(signal.SIGKILL, RuntimeError), (0, ValueError), (10_000, ValueError), ("x", TypeError)],
)
def test_signals_that_cannot_be_handled_are_refused(
    loop: ringloop.EventLoop, number: Any, error: type[Exception]
) -> None:
    with pytest.raises(error):
        loop.add_signal_handler(number, int)


def test_a_coroutine_function_is_no_handler(loop: ringloop.EventLoop) -> None:
    async def handler() -> None: ...

    with pytest.raises(TypeError, match="coroutines cannot be used"):
        loop.add_signal_handler(signal.SIGUSR1, handler)


def test_an_exception_in_a_handler_reaches_the_exception_handler(
    loop: ringloop.EventLoop, run: Callable[..., Any]
) -> None:
    async def main() -> None:
        caught = loop.create_future()
        loop.set_exception_handler(lambda _, context: caught.set_result(context["exception"]))
        loop.add_signal_handler(signal.SIGUSR1, lambda: 1 / 0)
        signal.raise_signal(signal.SIGUSR1)
        assert isinstance(await caught, ZeroDivisionError)
        loop.remove_signal_handler(signal.SIGUSR1)

    run(main())


@pytest.mark.parametrize("when", ["run", "add"])
def test_a_signal_while_the_loop_takes_the_wakeup_fd_is_not_lost(
    loop: ringloop.EventLoop, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    set_wakeup_fd = signal.set_wakeup_fd
    todo = [signal.SIGUSR1]

    def set_and_disturb(fd: int, **options: Any) -> int:
        before = set_wakeup_fd(fd, **options)
        while todo:
            signal.raise_signal(todo.pop())
        return before

    received = next_signal(loop, signal.SIGUSR1)
    monkeypatch.setattr(signal, "set_wakeup_fd", set_and_disturb)
    if when == "add":
        loop.add_signal_handler(signal.SIGUSR2, int)
    loop.run_until_complete(asyncio.wait_for(received, TIMEOUT_S))
    assert not todo
    for number in (signal.SIGUSR1, signal.SIGUSR2):
        loop.remove_signal_handler(number)


def test_a_loop_closed_in_another_thread_is_closed_though_its_handlers_cannot_be_removed(
    driver: str,
) -> None:
    loop = ringloop.EventLoop(driver)
    loop.add_signal_handler(signal.SIGUSR1, int)
    said: list[str] = []

    def close() -> None:
        with pytest.raises(ValueError, match="main thread") as caught:
            loop.close()
        said.append(str(caught.value))

    thread = threading.Thread(target=close)
    thread.start()
    thread.join(TIMEOUT_S)
    signal.set_wakeup_fd(-1)
    assert len(said) == 1
    assert loop.is_closed()
    with pytest.raises(RuntimeError, match="closed"):
        loop.call_soon(int)


def test_closing_the_loop_removes_its_handlers(driver: str) -> None:
    loop = ringloop.EventLoop(driver)
    loop.add_signal_handler(signal.SIGUSR1, int)
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL


# -- the wake-up fd ------------------------------------------------------------------


@pytest.fixture
def outer_fd() -> Iterator[int]:
    """Code around the loop has a wake-up fd of its own."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    signal.set_wakeup_fd(ours.fileno())
    yield ours.fileno()
    signal.set_wakeup_fd(-1)
    ours.close()
    theirs.close()


def test_the_wakeup_fd_is_the_loops_while_it_runs_and_then_the_outer_again(
    loop: ringloop.EventLoop, run: Callable[..., Any], outer_fd: int
) -> None:
    async def main() -> int:
        return wakeup_fd()

    for _ in range(3):
        assert run(main()) not in (-1, outer_fd)
        assert wakeup_fd() == outer_fd


def test_the_wakeup_fd_stays_the_loops_when_a_handler_is_removed_in_it(
    loop: ringloop.EventLoop, run: Callable[..., Any], outer_fd: int
) -> None:
    """Without it, Ctrl-C between two looks at the signals would wait for the next event."""

    async def main() -> None:
        before = wakeup_fd()
        loop.add_signal_handler(signal.SIGUSR1, int)
        loop.remove_signal_handler(signal.SIGUSR1)
        assert wakeup_fd() == before

    run(main())
    assert wakeup_fd() == outer_fd


def test_the_outer_wakeup_fd_comes_back_when_the_handlers_are_gone(
    loop: ringloop.EventLoop, run: Callable[..., Any], outer_fd: int
) -> None:
    async def add() -> None:
        loop.add_signal_handler(signal.SIGUSR1, int)

    async def remove() -> None:
        loop.remove_signal_handler(signal.SIGUSR1)

    run(add())
    assert wakeup_fd() != outer_fd  # kept for the next run, so that no signal is lost
    run(remove())
    assert wakeup_fd() == outer_fd


@pytest.mark.parametrize("removed", ["in a run", "by close"])
def test_a_closed_loop_leaves_no_wakeup_fd_behind(driver: str, removed: str) -> None:
    """Signal numbers must not be written to whatever has the number next."""
    loop = ringloop.EventLoop(driver)

    async def add() -> None:
        loop.add_signal_handler(signal.SIGUSR1, int)

    async def remove() -> None:
        if removed == "in a run":
            loop.remove_signal_handler(signal.SIGUSR1)

    loop.run_until_complete(add())
    loop.run_until_complete(remove())
    loop.close()
    assert signal.set_wakeup_fd(-1) == -1


def test_two_loops_in_turn_take_the_wakeup_fd_in_turn(
    loop: ringloop.EventLoop, run: Callable[..., Any], driver: str
) -> None:
    other = ringloop.EventLoop(driver)
    for chosen in (loop, other, loop):
        received = next_signal(chosen, signal.SIGUSR1)
        signal.raise_signal(signal.SIGUSR1)
        chosen.run_until_complete(asyncio.wait_for(received, TIMEOUT_S))
        chosen.remove_signal_handler(signal.SIGUSR1)
    other.close()


def test_an_outer_wakeup_fd_that_was_closed_meanwhile_harms_no_later_run(
    loop: ringloop.EventLoop, driver: str
) -> None:
    other = ringloop.EventLoop(driver)
    other.add_signal_handler(signal.SIGUSR1, int)

    async def close_other() -> None:
        other.close()

    loop.run_until_complete(close_other())
    loop.run_until_complete(asyncio.sleep(0))
    assert wakeup_fd() == -1


def test_a_loop_in_another_thread_touches_no_signals(driver: str, outer_fd: int) -> None:
    running, over = threading.Event(), threading.Event()
    errors: list[str] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        with pytest.raises(RuntimeError) as caught:
            loop.add_signal_handler(signal.SIGUSR1, int)
        errors.append(str(caught.value))
        running.set()
        assert await loop.run_in_executor(None, over.wait, TIMEOUT_S)

    def target() -> None:
        ringloop.run(main(), driver=driver)

    thread = threading.Thread(target=target)
    thread.start()
    assert running.wait(TIMEOUT_S)
    assert wakeup_fd() == outer_fd
    assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL
    over.set()
    thread.join(TIMEOUT_S)
    assert wakeup_fd() == outer_fd
    assert len(errors) == 1
    assert "main thread" in errors[0]
    gc.collect()


# -- KeyboardInterrupt ---------------------------------------------------------------


class Program:
    """A program in a process of its own, which says dots, and is sent SIGINT."""

    def __init__(self, tmp_path: Path, driver: str, body: str) -> None:
        script = tmp_path / "program.py"
        script.write_text(textwrap.dedent(body))
        self.process = subprocess.Popen(
            [sys.executable, str(script)],
            env={**os.environ, "RINGLOOP_DRIVER": driver},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert self.process.stdout is not None
        self.stdout = self.process.stdout.fileno()

    def expect(self, text: bytes, timeout: float = TIMEOUT_S) -> float:
        """Wait until the program writes `text`; how long that took."""
        start = time.monotonic()
        received = b""
        while received != text:
            left = start + timeout - time.monotonic()
            ready = select.select([self.stdout], [], [], max(left, 0))[0]
            piece = os.read(self.stdout, len(text) - len(received)) if ready else b""
            if not piece:
                self.process.kill()
                _, stderr = self.process.communicate()
                pytest.fail(f"got {received!r} in place of {text!r}\n{stderr.decode()}")
            received += piece
            assert text.startswith(received)
        return time.monotonic() - start

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)

    def finish(self) -> tuple[int, str, str]:
        try:
            stdout, stderr = self.process.communicate(timeout=TIMEOUT_S)
        finally:
            self.process.kill()
        return self.process.returncode, stdout.decode(), stderr.decode()


@pytest.mark.parametrize("schedule", ["call_soon", "call_later"])
def test_sigint_after_the_last_look_at_the_signals_does_not_wait_for_an_event(
    loop: ringloop.EventLoop, schedule: str
) -> None:
    """raise(3) is the callback itself: nothing looks between it and the loop's wait.

    (os.kill and signal.raise_signal would look themselves.)
    """
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    interrupt = getattr(ctypes.CDLL(None), "raise")
    watchdog = loop.call_later(TIMEOUT_S, loop.stop)
    if schedule == "call_soon":
        loop.call_soon(interrupt, int(signal.SIGINT))
    else:
        loop.call_later(0.001, interrupt, int(signal.SIGINT))
    start = loop.time()
    with pytest.raises(KeyboardInterrupt):
        loop.run_forever()
    assert loop.time() - start < TIMEOUT_S / 2
    watchdog.cancel()


@pytest.mark.parametrize("busy", ["idle", "busy before"])
def test_sigint_interrupts_an_idle_loop_at_once_whenever_it_comes(
    driver: str, tmp_path: Path, busy: str
) -> None:
    """Also in the moment between the last look at the signals and the wait."""
    count = 300
    program = Program(
        tmp_path,
        driver,
        f"""
        import asyncio, os, random, signal, ringloop

        rng = random.Random(1)
        loop = ringloop.new_event_loop()

        def spin(n):
            if n:
                loop.call_soon(spin, n - 1)

        mask = {{signal.SIGINT}}
        signal.pthread_sigmask(signal.SIG_BLOCK, mask)
        for _ in range({count}):
            if {busy == "busy before"}:
                spin(rng.randrange(1000))
            os.write(1, b".")  # the next one may come
            try:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, mask)
                loop.run_forever()
            except KeyboardInterrupt:
                signal.pthread_sigmask(signal.SIG_BLOCK, mask)
        os.write(1, b"!")
        loop.close()
        """,
    )
    rng = random.Random(2)
    slowest = 0.0
    program.expect(b".")
    for i in range(count):
        until = time.perf_counter() + rng.random() * 300e-6
        while time.perf_counter() < until:
            pass
        program.interrupt()
        slowest = max(slowest, program.expect(b"." if i < count - 1 else b"!", timeout=5))
    assert program.finish() == (0, "", "")
    assert slowest < 2


def test_sigint_cancels_the_main_task_and_then_raises_keyboard_interrupt(
    driver: str, tmp_path: Path
) -> None:
    program = Program(
        tmp_path,
        driver,
        """
        import asyncio, os, ringloop

        async def main():
            os.write(1, b".")
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                await asyncio.sleep(0)  # there is time to clean up
                os.write(1, b"cancelled,")
                raise

        try:
            ringloop.run(main())
        except KeyboardInterrupt:
            os.write(1, b"interrupted")
        """,
    )
    program.expect(b".")
    program.interrupt()
    assert program.finish() == (0, "cancelled,interrupted", "")


def test_an_uncaught_keyboard_interrupt_ends_the_program_as_the_shell_expects(
    driver: str, tmp_path: Path
) -> None:
    program = Program(
        tmp_path,
        driver,
        """
        import asyncio, os, ringloop

        async def main():
            os.write(1, b".")
            await asyncio.sleep(3600)

        ringloop.run(main())
        """,
    )
    program.expect(b".")
    program.interrupt()
    status, _, stderr = program.finish()
    assert status == -signal.SIGINT
    assert stderr.rstrip().endswith("KeyboardInterrupt")


def test_a_handler_for_sigint_takes_the_place_of_keyboard_interrupt(
    driver: str, tmp_path: Path
) -> None:
    program = Program(
        tmp_path,
        driver,
        """
        import asyncio, os, signal, ringloop

        async def main():
            done = asyncio.Event()
            asyncio.get_running_loop().add_signal_handler(signal.SIGINT, done.set)
            os.write(1, b".")
            await done.wait()
            os.write(1, b"stopped")

        ringloop.run(main())
        """,
    )
    program.expect(b".")
    program.interrupt()
    assert program.finish() == (0, "stopped", "")


def test_sigint_interrupts_a_loop_that_never_sleeps(driver: str, tmp_path: Path) -> None:
    program = Program(
        tmp_path,
        driver,
        """
        import asyncio, os, ringloop

        loop = ringloop.new_event_loop()

        def spin():
            loop.call_soon(spin)

        loop.call_soon(spin)
        loop.call_soon(os.write, 1, b".")
        try:
            loop.run_forever()
        except KeyboardInterrupt:
            os.write(1, b"interrupted")
        loop.close()
        """,
    )
    program.expect(b".")
    program.interrupt()
    assert program.finish() == (0, "interrupted", "")
