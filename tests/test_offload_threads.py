"""offload.to_thread(): results, limits, progress, and what cancelling does."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

import offloaded
import ringloop
from requirement import needs_uring
from ringloop import offload
from waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

Run = Any
TIMEOUT_S = 10

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


@pytest.fixture
def run(no_threads_left: None, files_run: Run) -> Run:
    return files_run


@pytest.fixture
def no_threads_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    wait_until(lambda: set(threading.enumerate()) <= before)


def test_a_result_comes_back_from_another_thread(run: Run) -> None:
    async def main() -> None:
        assert await offload.to_thread(offloaded.square, 7) == 49
        assert await offload.to_thread(threading.get_ident) != threading.get_ident()

    run(main())


def test_threads_are_used_again(run: Run) -> None:
    async def main() -> None:
        assert len({await offload.to_thread(threading.get_ident) for _ in range(20)}) == 1

    run(main())


def test_an_exception_comes_back_itself(run: Run) -> None:
    error = LookupError("mine")

    def fail() -> None:
        raise error

    async def main() -> None:
        with pytest.raises(LookupError) as caught:
            await offload.to_thread(fail)
        assert caught.value is error

    run(main())


def test_stop_iteration_becomes_a_runtime_error(run: Run) -> None:
    async def main() -> None:
        with pytest.raises(RuntimeError, match="StopIteration"):
            await offload.to_thread(next, iter(()))
        assert await offload.to_thread(offloaded.square, 2) == 4

    run(main())


def test_the_context_is_a_copy_of_the_callers(run: Run) -> None:
    def look() -> str:
        before = variable.get()
        variable.set("the thread's")
        return before

    async def main() -> None:
        variable.set("the caller's")
        assert await offload.to_thread(look) == "the caller's"
        assert variable.get() == "the caller's"

    run(main())


def test_progress_comes_in_order_and_before_the_result(run: Run) -> None:
    async def main() -> None:
        seen: list[Any] = []
        names: set[str] = set()

        def progress(value: int) -> None:
            seen.append((value, threading.get_ident()))
            names.add(variable.get())

        variable.set("the caller's")
        assert await offload.to_thread(offloaded.count, 1000, progress=progress) == "counted"
        assert seen == [(i, threading.get_ident()) for i in range(1000)]
        assert names == {"the caller's"}

    run(main())


def test_progress_that_raises_is_the_loops_affair(run: Run) -> None:
    async def main() -> None:
        errors: list[dict[str, Any]] = []
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda loop, context: errors.append(context))

        def progress(value: int) -> None:
            raise LookupError(value)

        assert await offload.to_thread(offloaded.count, 2, progress=progress) == "counted"
        assert [error["exception"].args for error in errors] == [(0,), (1,)]

    run(main())


def test_what_is_not_offloaded_may_ask_and_report_too() -> None:
    offload.report(1)
    assert not offload.cancelled()


def test_a_cancelled_call_ends_when_its_function_does(run: Run) -> None:
    async def main() -> None:
        ended: list[str] = []
        begun = asyncio.Event()

        def work() -> None:
            ended.append(offloaded.until_cancelled())

        task = asyncio.create_task(offload.to_thread(work, progress=lambda value: begun.set()))
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert ended == ["noticed"]

    run(main())


def test_a_call_that_is_cancelled_twice_still_waits(run: Run) -> None:
    async def main() -> None:
        go = threading.Event()
        task = asyncio.create_task(offload.to_thread(go.wait))
        for _ in range(3):
            await asyncio.sleep(0.01)
            task.cancel()
        await asyncio.sleep(0.01)
        assert not task.done()
        go.set()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(main())


def test_an_abandoned_call_ends_at_once_and_keeps_its_place_in_the_limiter(run: Run) -> None:
    async def main() -> None:
        go = threading.Event()
        limiter = asyncio.Semaphore(1)
        reports: list[Any] = []

        def work() -> None:
            go.wait()
            offload.report("late")
            assert offload.cancelled()

        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await offload.to_thread(
                    work, limiter=limiter, progress=reports.append, abandon_on_cancel=True
                )
        assert limiter.locked()
        go.set()
        assert await offload.to_thread(offloaded.square, 3, limiter=limiter) == 9
        assert reports == []

    run(main())


def test_an_error_of_an_abandoned_call_is_nobodys(run: Run) -> None:
    async def main() -> None:
        go = threading.Event()

        def work() -> None:
            go.wait()
            raise LookupError

        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await offload.to_thread(work, abandon_on_cancel=True)
        go.set()

    run(main())


@pytest.mark.parametrize("loop_kind", ["uring", "epoll", "asyncio"])
@pytest.mark.parametrize("shut_down", [True, False])
def test_a_thread_ends_that_reports_when_the_loop_runs_no_more(
    no_threads_left: None, monkeypatch: pytest.MonkeyPatch, loop_kind: str, shut_down: bool
) -> None:
    if loop_kind == "uring":
        needs_uring()
    loop = asyncio.new_event_loop() if loop_kind == "asyncio" else ringloop.EventLoop(loop_kind)
    go = threading.Event()
    reported = threading.Event()
    call_soon_threadsafe = loop.call_soon_threadsafe

    def report(*args: Any, **kwargs: Any) -> asyncio.Handle:
        handle = call_soon_threadsafe(*args, **kwargs)
        reported.set()
        return handle

    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await offload.to_thread(go.wait, abandon_on_cancel=True)

    monkeypatch.setattr(loop, "call_soon_threadsafe", report)
    try:
        loop.run_until_complete(main())
        if shut_down:
            loop.run_until_complete(loop.shutdown_asyncgens())
        go.set()
        assert reported.wait(TIMEOUT_S)
    finally:
        go.set()
        loop.close()


@pytest.mark.parametrize("turns", range(6))
@pytest.mark.parametrize("abandon", [False, True])
def test_cancelling_at_any_turn_of_the_loop_loses_no_place(
    run: Run, turns: int, abandon: bool
) -> None:
    async def main() -> None:
        limiter = asyncio.Semaphore(2)
        for _ in range(20):
            task = asyncio.create_task(
                offload.to_thread(offloaded.square, 3, limiter=limiter, abandon_on_cancel=abandon)
            )
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            try:
                assert await task == 9
            except asyncio.CancelledError:
                pass
        # Both places are there.
        barrier = threading.Barrier(2, timeout=TIMEOUT_S)
        calls = [offload.to_thread(barrier.wait, limiter=limiter) for _ in range(2)]
        assert sorted(await asyncio.gather(*calls)) == [0, 1]

    run(main())


def test_a_thousand_calls_through_a_limiter_of_four(run: Run) -> None:
    async def main() -> None:
        limiter = asyncio.Semaphore(4)
        lock = threading.Lock()
        now = most = 0

        def work(i: int) -> int:
            nonlocal now, most
            with lock:
                now += 1
                most = max(most, now)
            time.sleep(0.0002)
            with lock:
                now -= 1
            return i

        calls = [offload.to_thread(work, i, limiter=limiter) for i in range(1000)]
        assert await asyncio.gather(*calls) == list(range(1000))
        assert most == 4

    run(main(), 30)


def test_first_come_first_served(run: Run) -> None:
    async def main() -> None:
        limiter = asyncio.Semaphore(1)
        order: list[int] = []
        await asyncio.gather(
            *(offload.to_thread(order.append, i, limiter=limiter) for i in range(200))
        )
        assert order == list(range(200))

    run(main())


def test_waiting_calls_that_are_cancelled_let_the_others_pass(run: Run) -> None:
    async def main() -> None:
        limiter = asyncio.Semaphore(1)
        go = threading.Event()
        first = asyncio.create_task(offload.to_thread(go.wait, limiter=limiter))
        rest = [
            asyncio.create_task(offload.to_thread(offloaded.square, i, limiter=limiter))
            for i in range(100)
        ]
        await asyncio.sleep(0)
        for task in rest[::2]:
            task.cancel()
        go.set()
        assert await first
        results = await asyncio.gather(*rest, return_exceptions=True)
        assert results[1::2] == [i * i for i in range(100)][1::2]
        assert all(isinstance(result, asyncio.CancelledError) for result in results[::2])

    run(main())


def test_the_default_limit(run: Run) -> None:
    async def main() -> None:
        barrier = threading.Barrier(40, timeout=TIMEOUT_S)
        places = await asyncio.gather(*(offload.to_thread(barrier.wait) for _ in range(80)))
        assert sorted(places) == sorted([*range(40)] * 2)

    run(main())


@pytest.mark.parametrize("make", [ringloop.new_event_loop, asyncio.new_event_loop])
def test_a_loop_that_is_closed_with_a_call_in_flight(
    make: Callable[[], asyncio.AbstractEventLoop], no_threads_left: None
) -> None:
    go = threading.Event()
    loop = make()
    loop.set_exception_handler(lambda loop, context: None)  # the task is destroyed, as it should
    task = loop.create_task(offload.to_thread(go.wait))
    loop.run_until_complete(offload.to_thread(offloaded.square, 3))
    loop.close()
    go.set()
    del loop, task  # and with the loop go its idle threads


def test_a_loop_may_be_used_again_after_its_shutdown(no_threads_left: None) -> None:
    loop = asyncio.new_event_loop()
    assert loop.run_until_complete(offload.to_thread(offloaded.square, 3)) == 9
    loop.run_until_complete(loop.shutdown_asyncgens())
    with pytest.warns(ResourceWarning, match="shutdown_asyncgens"):
        assert loop.run_until_complete(offload.to_thread(offloaded.square, 4)) == 16
    loop.close()
