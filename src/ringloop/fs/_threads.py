"""The threads that do what would block, where no ring can: a small pool of its own.

Not the loop's default executor: whoever fills that one would stop all files, too. The
threads are daemons, so that one that waits for the other end of a FIFO does not keep
the interpreter from ending.
"""

from __future__ import annotations

import asyncio
import os
import threading
import weakref
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")
Job = tuple[asyncio.AbstractEventLoop, "Callable[[], None]", "Callable[[], None]"]

MAX_THREADS = 8
_pools: weakref.WeakSet[Pool] = weakref.WeakSet()


class Pool:
    """Threads that are started when there is more to do than threads are idle."""

    def __init__(self, max_threads: int) -> None:
        self.max_threads = max_threads
        self.begin()
        _pools.add(self)

    def begin(self) -> None:
        """Without threads; also in a forked child, which has none of the parent's."""
        self.jobs: SimpleQueue[Job | None] = SimpleQueue()
        self.idle = threading.Semaphore(0)
        self.threads = 0

    def submit(self, job: Job) -> None:
        if not self.idle.acquire(blocking=False) and self.threads < self.max_threads:
            try:
                threading.Thread(target=self._work, name="ringloop-fs", daemon=True).start()
                self.threads += 1
            except RuntimeError:  # no more threads for this process, or it ends
                if not self.threads:
                    raise
        self.jobs.put(job)

    def _work(self) -> None:
        while True:
            job = self.jobs.get()
            if job is None:
                return
            loop, execute, finish = job
            execute()
            del job, execute  # what they refer to is the caller's alone when it goes on
            try:
                loop.call_soon_threadsafe(finish)
            except RuntimeError:
                pass  # the loop was closed meanwhile: nobody waits
            del loop, finish
            self.idle.release()


_pool = Pool(MAX_THREADS)


def submit(
    loop: asyncio.AbstractEventLoop, execute: Callable[[], None], finish: Callable[[], None]
) -> None:
    """Have a thread call `execute`, and then the loop `finish`. Neither may raise."""
    _pool.submit((loop, execute, finish))


async def run(
    function: Callable[..., T],
    *args: Any,
    dropped: Callable[[T], object] | None = None,
    pool: Pool | None = None,
) -> T:
    """Call a blocking function in a thread of the pool.

    Cancelling does not stop the thread: what it gives then goes to `dropped`.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[None] = loop.create_future()
    outcome: list[Any] = []  # the result, or None and an exception

    def execute() -> None:
        try:
            outcome.append(function(*args))
        except BaseException as exc:
            outcome.extend((None, exc))

    def drop() -> None:
        if len(outcome) == 1 and dropped is not None:
            dropped(outcome[0])

    def finish() -> None:
        if future.done():
            drop()
        else:
            future.set_result(None)

    (pool or _pool).submit((loop, execute, finish))
    try:
        await future
    except BaseException:
        future.cancel()
        if not future.cancelled():
            drop()  # it came just before
        raise
    if len(outcome) == 2:
        raise outcome.pop()
    result: T = outcome.pop()  # the thread has `outcome` for a moment yet
    return result


def submit_alone(
    loop: asyncio.AbstractEventLoop, execute: Callable[[], None], finish: Callable[[], None]
) -> None:
    """The same in a thread of its own, for what may wait for ever: a FIFO's other end."""
    alone = Pool(1)
    alone.submit((loop, execute, finish))
    alone.jobs.put(None)  # the thread ends


def _after_fork_in_child() -> None:
    for pool in _pools:
        pool.begin()


os.register_at_fork(after_in_child=_after_fork_in_child)
