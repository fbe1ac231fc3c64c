"""A watchdog for event loops: who holds one up, seen while it happens.

A thread asks the loop now and then to call it back. What does not come within the
threshold is a stall: the thread looks at the stack of the loop's thread at once, while
whoever blocks it is still there. The loop itself does nothing but answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import sys
import threading
import time
import traceback
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

logger = logging.getLogger("ringloop.debug")

ASKS_PER_THRESHOLD = 4


@dataclasses.dataclass(frozen=True)
class Stall:
    """A time in which a loop did not come round.

    `task` is the name and coroutine of the task that ran, None between tasks; `stack` is
    that of the loop's thread, innermost last, both as they were at the threshold. The stack
    is empty if the thread is not known: a loop that was given, is no asyncio.BaseEventLoop
    and has not come round since.
    `length_s` is how long the stall has lasted at least: up to a fourth of the threshold
    was not seen. `is_over` is true in the second report, which has the whole length.
    """

    task: str | None
    stack: traceback.StackSummary
    length_s: float
    is_over: bool

    def __str__(self) -> str:
        where = f" in {self.task}" if self.task else ""
        if self.is_over:
            return f"the loop was stalled for {self.length_s:.3f} s{where}"
        stack = "".join(self.stack.format())
        return f"the loop has been stalled for {self.length_s:.3f} s{where}, now at\n{stack}"


def _log(stall: Stall) -> None:
    """Log a stall as a warning of the logger "ringloop.debug"."""
    logger.warning("%s", stall)


class _Watchdog:
    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        threshold_s: float,
        report: Callable[[Stall], object],
    ) -> None:
        self.loop = loop
        self.threshold_s = threshold_s
        self.report = report
        self.stopped = threading.Event()
        self.answered = threading.Event()
        self.answered_at = 0.0
        # The loop's answers tell; before the first one only a loop that runs here is known.
        runs_here = asyncio._get_running_loop() is loop
        self.loops_thread = threading.get_ident() if runs_here else 0
        self.thread = threading.Thread(target=self._run, name="ringloop-stalls", daemon=True)

    def stop(self) -> None:
        self.stopped.set()
        self.answered.set()
        self.thread.join()

    def _answer(self) -> None:
        self.loops_thread = threading.get_ident()
        self.answered_at = time.monotonic()
        self.answered.set()

    def _run(self) -> None:
        while not self.stopped.wait(self.threshold_s / ASKS_PER_THRESHOLD):
            if not self.loop.is_running():
                continue
            asked_at = time.monotonic()
            self.answered.clear()
            if self.stopped.is_set():
                return  # nobody answers any more: the loop's thread may be waiting for this one
            try:
                self.loop.call_soon_threadsafe(self._answer)
            except RuntimeError:
                return  # it was closed
            if not self.answered.wait(self.threshold_s) and not self.stopped.is_set():
                self._stalled(asked_at)

    def _stalled(self, asked_at: float) -> None:
        # A loop that has stopped is not stalled, and its answer is not to come.
        thread = self.loops_thread or getattr(self.loop, "_thread_id", None) or 0
        frame = sys._current_frames().get(thread)
        if not self.loop.is_running():
            return
        stack = traceback.StackSummary() if frame is None else traceback.extract_stack(frame)
        del frame
        task = asyncio.current_task(self.loop)
        name = None
        if task is not None:
            coroutine = getattr(task.get_coro(), "__qualname__", "?")
            name = f"{task.get_name()} ({coroutine})"
        del task
        stall = Stall(name, stack, time.monotonic() - asked_at, is_over=False)
        self._tell(stall)
        while not self.answered.wait(self.threshold_s):
            if not self.loop.is_running():
                return
        if not self.stopped.is_set():
            length_s = self.answered_at - asked_at
            self._tell(dataclasses.replace(stall, length_s=length_s, is_over=True))

    def _tell(self, stall: Stall) -> None:
        try:
            self.report(stall)
        except Exception:
            logger.exception("the report of a stall raised")


@contextlib.contextmanager
def watch_stalls(
    loop: asyncio.AbstractEventLoop | None = None,
    *,
    threshold_s: float = 0.25,
    report: Callable[[Stall], object] = _log,
) -> Iterator[None]:
    """Have stalls of a loop reported while they last, and once more when they are over.

    A stall is a time longer than `threshold_s` in which the loop, by default the running
    one, does not come round, because a callback or a step of a task goes on and on. Waiting
    for events is none. `report` is called with a `Stall` in a thread of its own, at the
    threshold and at the end.

    Works on any asyncio event loop, and costs it four callbacks a threshold. What holds the
    GIL all the time also holds up this: its stall is seen when it is over, or not at all.
    Raises ValueError if `threshold_s` is not positive, RuntimeError if no loop was given and
    none runs.
    """
    if not threshold_s > 0:
        raise ValueError(f"threshold_s must be positive, not {threshold_s}")
    watchdog = _Watchdog(loop or asyncio.get_running_loop(), threshold_s, report)
    watchdog.thread.start()
    try:
        yield
    finally:
        watchdog.stop()
