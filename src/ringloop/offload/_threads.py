"""Calls in threads: for what blocks, or computes without holding the GIL."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar, TypeVarTuple

from ringloop.offload import _worker
from ringloop.offload._kept import of_loop
from ringloop.offload._wait import outlast

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

MAX_THREADS = 40  # they mostly wait: what asyncio, trio and AnyIO allow is of this size


class _Thread:
    """A thread that does one job after another.

    A daemon, so that one that was abandoned does not keep the interpreter from ending.
    """

    def __init__(self) -> None:
        self.jobs: SimpleQueue[Callable[[], bool] | None] = SimpleQueue()
        self.thread = threading.Thread(target=self._run, name="ringloop-offload", daemon=True)
        self.thread.start()

    def _run(self) -> None:
        while (job := self.jobs.get()) is not None:
            if not job():
                return
            del job


class _Threads:
    """The threads of a loop; touched from the loop's own thread only."""

    def __init__(self) -> None:
        self.limiter = asyncio.Semaphore(MAX_THREADS)
        self.threads: set[_Thread] = set()
        self.idle: list[_Thread] = []
        self.closed = False

    def start(self, job: Callable[[], bool]) -> _Thread:
        thread = self.idle.pop() if self.idle else _Thread()
        self.threads.add(thread)
        thread.jobs.put(job)
        return thread

    def finished(self, thread: _Thread) -> None:
        if self.closed or len(self.idle) >= MAX_THREADS:
            self.threads.discard(thread)
            thread.jobs.put(None)
        else:
            self.idle.append(thread)

    def stop(self) -> None:
        """Have all threads end, a busy one after its job.

        It may report that to a loop that closes before it gets to it.
        """
        for thread in self.threads:
            thread.jobs.put(None)

    def __del__(self) -> None:
        self.stop()

    async def aclose(self) -> None:
        self.closed = True
        self.stop()
        for thread in self.idle:
            thread.thread.join()  # it has nothing left to do
        self.idle.clear()


class _Call:
    """A call on its way through a thread."""

    def __init__(
        self,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        progress: Callable[[Any], object] | None,
    ) -> None:
        self.loop = asyncio.get_running_loop()
        self.done: asyncio.Future[None] = self.loop.create_future()
        self.caller = contextvars.copy_context()
        self.function = function
        self.args = args
        self.progress = progress
        self.is_cancelled = False
        self.result: Any = None
        self.error: BaseException | None = None

    # In the thread:

    def run(self, finish: Callable[[], None]) -> bool:
        """Do the work; False if the loop is closed, so that nobody waits."""
        context = self.caller.copy()
        context.run(_worker.current.set, self)
        try:
            self.result = context.run(self.function, *self.args)
        except BaseException as error:
            self.error = error
        try:
            self.loop.call_soon_threadsafe(finish)
        except RuntimeError:
            return False
        return True

    def report(self, value: Any) -> None:
        if self.progress is not None:
            try:
                self.loop.call_soon_threadsafe(self._deliver, value, context=self.caller)
            except RuntimeError:
                pass  # the loop is closed

    def cancelled(self) -> bool:
        return self.is_cancelled

    # On the loop:

    def _deliver(self, value: Any) -> None:
        if self.progress is not None:
            self.progress(value)

    def cancel(self) -> None:
        self.is_cancelled = True

    def abandon(self) -> None:
        self.is_cancelled = True
        self.progress = None


async def to_thread(
    function: Callable[[*Ts], T],
    /,
    *args: *Ts,
    limiter: asyncio.Semaphore | None = None,
    progress: Callable[[Any], object] | None = None,
    abandon_on_cancel: bool = False,
) -> T:
    """Call `function(*args)` in a thread, with a copy of the caller's context.

    A thread cannot be stopped. When the caller is cancelled, `offload.cancelled()` becomes
    true in the thread, and the call ends (in CancelledError) when the function does. With
    `abandon_on_cancel` it ends at once; the function goes on, and nobody learns how it
    ended. Its place in the limiter is free only when the thread is.

    `limiter` says how many may run at once (by default 40 in a loop), `progress` is called
    on the loop with what the function gives to `offload.report()`. Raises what the function
    raises.
    """
    threads = await of_loop(_Threads)
    limiter = threads.limiter if limiter is None else limiter
    await limiter.acquire()
    call = _Call(function, args, progress)
    done = call.done

    def finish() -> None:
        limiter.release()
        threads.finished(thread)
        if not done.done():
            done.set_result(None)

    try:
        thread = threads.start(partial(call.run, finish))
    except BaseException:
        limiter.release()
        raise
    cancelled = None
    try:
        if abandon_on_cancel:
            try:
                await asyncio.shield(done)
            except asyncio.CancelledError:
                call.abandon()
                raise
        elif (cancelled := await outlast(done, call.cancel)) is not None:
            raise cancelled
        if call.error is not None:
            raise call.error
        return call.result  # type: ignore[no-any-return]
    finally:
        del call, cancelled  # a traceback refers to this frame
