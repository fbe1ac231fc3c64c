"""Workers that are kept from call to call, and the calls that they take."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, TypeVar

from ringloop.offload._channel import Channel, pack, unpack
from ringloop.offload._wait import outlast

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable

GRACE_S = 5  # for an idle worker to end by itself


class WorkerDiedError(RuntimeError):
    """A worker ended in the middle of a call, which may have been done in part."""


class Worker(ABC):
    """Something that does calls, one at a time, at the other end of a channel."""

    channel: Channel
    ended: asyncio.Future[str]  # how it ended, in words
    killed = False  # it may take a moment to end, or never hear of another call

    def can_work(self) -> bool:
        return not (self.killed or self.channel.is_lost or self.ended.done())

    @abstractmethod
    def stop(self) -> None:
        """Have the call that is under way end as soon as can be."""

    @abstractmethod
    def kill(self) -> None:
        """End the worker now if that can be done, else when its call is over."""


W = TypeVar("W", bound=Worker)


async def introduce(worker: W, ours: socket.socket, advice: str) -> W:
    """Join a started worker to its channel; gives it when it is ready.

    Raises WorkerDiedError with `advice` if it ends instead.
    """
    channel = worker.channel
    ready = channel.answer
    assert ready is not None
    cancelled = None
    try:
        await channel.loop.create_unix_connection(lambda: channel, sock=ours)
    except asyncio.CancelledError as error:
        cancelled = error
    else:
        cancelled = await outlast(ready, worker.kill)
        if cancelled is None and ready.result() is not None:
            return worker
    worker.kill()
    channel.hang_up()
    cancelled = await outlast(worker.ended) or cancelled
    if cancelled is not None:
        raise cancelled
    raise WorkerDiedError(f"the worker {worker.ended.result()} as it started. {advice}".strip())


class Pool:
    """Starts workers when there is more to do than workers are idle.

    `where` is where they work, for messages; `start` starts one.
    """

    def __init__(self, size: int, where: str, start: Callable[[], Awaitable[Worker]]) -> None:
        if size < 1:
            raise ValueError(f"a pool needs one worker or more, not {size}")
        self.size = size
        self.where = where
        self.start = start
        self.limiter = asyncio.Semaphore(size)
        self.idle: list[Worker] = []
        self.workers: set[Worker] = set()
        self.starting: set[asyncio.Task[Worker]] = set()
        self.unclaimed: list[asyncio.Task[Worker]] = []  # those whose call was cancelled
        self.closed = False

    async def run(
        self,
        limiter: asyncio.Semaphore | None,
        function: Callable[..., Any],
        args: tuple[Any, ...],
        progress: Callable[[Any], object] | None,
    ) -> Any:
        async with limiter or self.limiter:
            self._check_open()
            # Not before it is this call's turn: arguments may be large, and callers many.
            call = pack(function, args, progress is not None, self.where)
            worker = await self._take()
            try:
                self._check_open()  # it may have been closed while the worker started
                answer = worker.channel.call(call, progress)
                del call
                cancelled = await outlast(answer, worker.stop)
                if (outcome := answer.result()) is None or worker.killed:
                    worker.kill()
                    cancelled = await outlast(worker.ended) or cancelled
            finally:
                self._give_back(worker)
        try:
            if cancelled is not None:
                raise cancelled
            if outcome is None:
                self._check_open()
                name = getattr(function, "__qualname__", repr(function))
                raise WorkerDiedError(f"the worker {worker.ended.result()} during {name}()")
            return unpack(outcome)
        finally:
            del cancelled, worker

    def _check_open(self) -> None:
        if self.closed:
            raise RuntimeError("the pool is closed")

    async def _take(self) -> Worker:
        while self.idle:
            worker = self.idle.pop()
            if worker.can_work():
                return worker
        if self.unclaimed:
            starting = self.unclaimed.pop(0)
        else:
            starting = asyncio.create_task(self._start())
            self.starting.add(starting)
            starting.add_done_callback(self._started)
        try:
            return await asyncio.shield(starting)
        except asyncio.CancelledError:
            # The next call has it: callers with little patience would never get one else.
            self.unclaimed.append(starting)
            if starting.done():
                self._started(starting)
            raise

    async def _start(self) -> Worker:
        worker = await self.start()
        self.workers.add(worker)
        worker.ended.add_done_callback(lambda _: self._forget(worker))
        return worker

    def _started(self, starting: asyncio.Task[Worker]) -> None:
        self.starting.discard(starting)
        if starting in self.unclaimed:
            self.unclaimed.remove(starting)
            if not starting.cancelled() and starting.exception() is None:
                self._give_back(starting.result())

    def _give_back(self, worker: Worker) -> None:
        if not worker.can_work():
            worker.kill()
        elif self.closed or len(self.idle) >= self.size:
            worker.channel.hang_up()
        else:
            self.idle.append(worker)

    def _forget(self, worker: Worker) -> None:
        self.workers.discard(worker)
        if worker in self.idle:
            self.idle.remove(worker)

    async def aclose(self) -> None:
        """End all workers, and wait until they have ended. Calls under way are stopped."""
        self.closed = True
        for worker in self.workers.difference(self.idle):
            worker.kill()
        for worker in self.idle:
            worker.channel.hang_up()
        cancelled = None
        try:
            if self.starting:
                await asyncio.wait(self.starting)
            if self.workers:
                await asyncio.wait([w.ended for w in self.workers], timeout=GRACE_S)
        except asyncio.CancelledError as error:
            cancelled = error
        for worker in list(self.workers):
            worker.kill()
            cancelled = await outlast(worker.ended) or cancelled
        if cancelled is not None:
            raise cancelled
