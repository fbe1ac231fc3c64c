"""ringloop.debug.watch_stalls(): stalls are told while they last, and only stalls."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

import ringloop
from ringloop import debug
from ringloop.debug import _stalls

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ringloop.debug import Stall

Run = Any
TIMEOUT_S = 10


@pytest.fixture
def run(no_threads_left: None, files_run: Run) -> Run:
    return files_run


@pytest.fixture
def no_threads_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


class Blocker:
    """Holds up the loop until the report of that has come, and notes the reports of that.

    A machine that is busy elsewhere may hold up the loop anywhere.
    """

    def __init__(self) -> None:
        self.seen = threading.Event()
        self.stalls: list[Stall] = []

    def report(self, stall: Stall) -> None:
        if any(frame.name == "block" for frame in stall.stack):
            self.stalls.append(stall)
            self.seen.set()

    def block(self) -> None:
        assert self.seen.wait(TIMEOUT_S), "nobody told of the stall while it lasted"
        self.seen.clear()

    async def until_over(self) -> None:
        while not self.stalls or not self.stalls[-1].is_over:
            await asyncio.sleep(0.01)


def test_a_stall_is_told_while_it_lasts_and_when_it_is_over(run: Run) -> None:
    async def main() -> None:
        blocker = Blocker()

        async def guilty() -> None:
            start = time.monotonic()
            blocker.block()
            assert time.monotonic() - start >= 0.2

        with debug.watch_stalls(threshold_s=0.2, report=blocker.report):
            await asyncio.sleep(0.02)  # between two looks of the watch
            await asyncio.create_task(guilty(), name="the culprit")
            await blocker.until_over()
        first, last = blocker.stalls
        assert not first.is_over
        assert 0.2 <= first.length_s <= last.length_s
        for stall in (first, last):
            assert stall.task is not None
            assert stall.task.startswith("the culprit (")
            assert "guilty" in stall.task
            names = [frame.name for frame in stall.stack]
            assert names.index("guilty") < names.index("block")
        assert "stalled for" in str(first)
        assert "in block" in str(first)

    run(main())


def test_a_callback_that_blocks_has_no_task(run: Run) -> None:
    async def main() -> None:
        blocker = Blocker()
        with debug.watch_stalls(threshold_s=0.2, report=blocker.report):
            asyncio.get_running_loop().call_soon(blocker.block)
            await blocker.until_over()
        assert [stall.task for stall in blocker.stalls] == [None, None]

    run(main())


def test_the_length_is_that_of_the_stall(run: Run) -> None:
    async def main() -> None:
        blocker = Blocker()

        def block() -> None:
            blocker.block()
            time.sleep(0.3)

        with debug.watch_stalls(threshold_s=0.2, report=blocker.report):
            await asyncio.sleep(0.02)  # between two looks of the watch
            start = time.monotonic()
            block()
            await blocker.until_over()
            up_to_s = time.monotonic() - start
        first, last = blocker.stalls
        assert first.length_s + 0.3 <= last.length_s < up_to_s

    run(main())


def test_each_stall_is_told_once(run: Run) -> None:
    async def main() -> None:
        blocker = Blocker()
        with debug.watch_stalls(threshold_s=0.2, report=blocker.report):
            for _ in range(3):
                blocker.block()
                await blocker.until_over()
                blocker.seen.clear()
        assert [stall.is_over for stall in blocker.stalls] == [False, True] * 3

    run(main(), 20)


def test_waiting_and_small_steps_are_no_stalls(run: Run) -> None:
    async def stalls() -> list[Stall]:
        told: list[Stall] = []
        with debug.watch_stalls(threshold_s=0.2, report=told.append):
            await asyncio.sleep(0.7)
            start = time.monotonic()
            while time.monotonic() < start + 0.5:
                await asyncio.sleep(0)
        return told

    async def main() -> None:
        # A machine that is busy elsewhere may hold up anybody, but not three times.
        assert not (await stalls() and await stalls() and await stalls())

    run(main())


def test_a_loop_that_does_not_run_is_not_stalled(no_threads_left: None) -> None:
    stalls: list[Stall] = []
    loop = asyncio.new_event_loop()
    with debug.watch_stalls(loop, threshold_s=0.3, report=stalls.append):
        time.sleep(0.4)
        start = time.monotonic()
        loop.run_until_complete(asyncio.sleep(0.2))
        late_s = time.monotonic() - start - 0.2
        time.sleep(0.8)
        loop.close()
        time.sleep(0.1)
    assert stalls == [] or late_s > 0.1


def test_a_stall_before_the_first_answer_has_the_stack_of_the_loops_own_thread(
    no_threads_left: None, driver: str
) -> None:
    blocker = Blocker()
    begun = threading.Event()
    ready = threading.Event()

    async def guilty() -> None:
        begun.set()
        blocker.block()

    loop = ringloop.EventLoop(driver)
    thread = threading.Thread(target=lambda: (ready.wait(), loop.run_until_complete(guilty())))
    thread.start()
    with debug.watch_stalls(loop, threshold_s=0.2, report=blocker.report):
        ready.set()
        assert begun.wait(TIMEOUT_S)
        thread.join(TIMEOUT_S)
    loop.close()
    assert "guilty" in [frame.name for frame in blocker.stalls[0].stack]


def test_a_stop_as_the_watchdog_asks_waits_for_no_answer() -> None:
    """It comes from the loop's thread, which then waits for the watchdog's."""

    class Loop:
        def is_running(self) -> bool:
            watchdog.stopped.set()
            watchdog.answered.set()
            return True

        def call_soon_threadsafe(self, callback: object) -> None:
            raise AssertionError("asked after the stop")

    loop: Any = Loop()
    watchdog = _stalls._Watchdog(loop, 2, lambda stall: None)
    watchdog._run()


def test_the_end_of_watching_in_the_middle_of_a_stall(run: Run) -> None:
    async def main() -> None:
        blocker = Blocker()
        with debug.watch_stalls(threshold_s=0.2, report=blocker.report):
            await asyncio.sleep(0.02)
            blocker.block()
        await asyncio.sleep(0.1)
        assert [stall.is_over for stall in blocker.stalls] in ([False], [False, True])

    run(main())


def test_stalls_are_logged_by_default(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        with debug.watch_stalls(threshold_s=0.2):
            deadline = time.monotonic() + TIMEOUT_S
            while not caplog.records:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            while len(caplog.records) < 2:
                await asyncio.sleep(0.01)

    run(main())
    first, second, *_ = caplog.records
    assert first.name == "ringloop.debug"
    assert first.levelno == logging.WARNING
    assert "test_stalls_are_logged_by_default" in first.getMessage()
    assert second.getMessage().startswith("the loop was stalled for ")


def test_a_report_that_raises_ends_nothing(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        reported: list[Stall] = []

        def report(stall: Stall) -> None:
            reported.append(stall)
            raise LookupError("mine")

        with debug.watch_stalls(threshold_s=0.2, report=report):
            deadline = time.monotonic() + TIMEOUT_S
            while not reported:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            while len(reported) < 2:
                await asyncio.sleep(0.01)

    run(main())
    assert {str(record.exc_info and record.exc_info[1]) for record in caplog.records} == {"mine"}


def test_what_cannot_be_watched(run: Run) -> None:
    with (
        pytest.raises(ValueError, match="must be positive, not 0"),
        debug.watch_stalls(threshold_s=0),
    ):
        pass
    with pytest.raises(RuntimeError, match="no running event loop"), debug.watch_stalls():
        pass
