"""Calls in other processes: for what computes in Python, or must be stopped when it is late."""

from __future__ import annotations

import asyncio
import atexit
import errno
import fcntl
import multiprocessing
import multiprocessing.process
import multiprocessing.util  # before our own atexit below, which must run before its
import os
import signal
import socket
import weakref
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar, TypeVarTuple

from ringloop.offload import _worker
from ringloop.offload._channel import Channel
from ringloop.offload._kept import of_loop
from ringloop.offload._pool import Pool, Worker, WorkerDiedError, introduce
from ringloop.offload._wait import in_new_thread

if TYPE_CHECKING:
    from collections.abc import Callable
    from multiprocessing.process import BaseProcess
    from types import TracebackType

T = TypeVar("T")
Ts = TypeVarTuple("Ts")
StartMethod = Literal["forkserver", "spawn"]


def cpus() -> int:
    """How many CPUs this process may use."""
    return len(os.sched_getaffinity(0))


# -- in the worker -------------------------------------------------------------------


def _main(ours: socket.socket) -> None:
    # Ctrl-C goes to all processes of a terminal: what becomes of the call is the caller's.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None
    # The other end of this pipe is the parent's alone. When that dies the kernel sends
    # SIGIO, which ends this process whatever it is doing, even with the GIL held.
    fcntl.fcntl(parent.sentinel, fcntl.F_SETOWN, os.getpid())
    flags = fcntl.fcntl(parent.sentinel, fcntl.F_GETFL)
    fcntl.fcntl(parent.sentinel, fcntl.F_SETFL, flags | os.O_ASYNC)
    _worker.serve(ours.fileno())


# -- in the caller's process ---------------------------------------------------------

Started = tuple["BaseProcess", socket.socket, int]


def _start(method: StartMethod) -> Started:
    """Start a process, which takes milliseconds; for the first one a fork server, too."""
    context: Any = multiprocessing.get_context(method)
    ours, theirs = socket.socketpair()
    with theirs:
        try:
            process = context.Process(target=_main, args=(theirs,), name="ringloop-offload")
            process.start()
            # Else multiprocessing would look after it, too, whenever it starts another, in
            # that one's thread: it would take the exit status, or read from a closed fd.
            multiprocessing.process._children.discard(process)  # type: ignore[attr-defined]
        except BaseException:
            ours.close()
            raise
    assert process.pid is not None
    try:
        return process, ours, os.pidfd_open(process.pid)
    except BaseException as error:
        ours.close()
        process.kill()
        process.join()
        if isinstance(error, ProcessLookupError):  # the fork server has taken its exit status
            raise WorkerDiedError("the worker process ended at once") from error
        if isinstance(error, OSError) and error.errno in (errno.ENOSYS, errno.EPERM):
            raise RuntimeError(
                "other processes need pidfd_open(): Linux 5.3 or newer, and a seccomp profile "
                f"that allows it ({error})"
            ) from error
        raise


def _destroy(process: BaseProcess, pidfd: int) -> None:
    """For a worker whose loop is gone: blocks for a moment."""
    _kill(pidfd)
    os.close(pidfd)
    process.join()
    process.close()


def _kill(pidfd: int) -> None:
    try:
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    except ProcessLookupError:
        pass  # it has ended


def _in_words(status: int | None) -> str:
    if status is None:
        return "ended"
    if status >= 0:
        return f"ended with status {status}"
    if status == -signal.SIGKILL:
        return "was killed by SIGKILL, as the kernel does when memory runs out,"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:  # one of the many real-time signals
        return f"was killed by signal {-status}"


class ProcessWorker(Worker):
    def __init__(self, channel: Channel, process: BaseProcess, pidfd: int, watched: int) -> None:
        self.channel = channel
        self.loop = channel.loop
        self.ended = self.loop.create_future()
        self.process = process
        self.pidfd = pidfd
        self.watched = watched
        self.destroy = weakref.finalize(self, _destroy, process, pidfd)
        self.destroy.atexit = False  # it would come after multiprocessing's, which waits
        _workers.add(self)
        self.loop.add_reader(watched, self._died)

    def stop(self) -> None:
        self.kill()

    def kill(self) -> None:
        self.killed = True
        if not self.ended.done():
            _kill(self.pidfd)

    def _died(self) -> None:
        self.loop.remove_reader(self.watched)
        self.destroy.detach()
        os.close(self.pidfd)
        status = self.process.exitcode
        try:
            self.process.close()
        except ValueError:
            pass  # somebody else took its exit status, so multiprocessing thinks it lives
        self.channel.drain_and_end()
        self.ended.set_result(_in_words(status))


_workers: weakref.WeakSet[ProcessWorker] = weakref.WeakSet()


@atexit.register
def _destroy_all() -> None:
    for worker in list(_workers):
        if worker.destroy.detach() is not None:  # calling it does nothing so late
            _destroy(worker.process, worker.pidfd)


def _after_fork_in_child() -> None:
    for worker in list(_workers):
        worker.destroy.detach()  # they are the parent's
    _workers.clear()


os.register_at_fork(after_in_child=_after_fork_in_child)


async def _start_worker(method: StartMethod) -> ProcessWorker:
    started: list[Started] = []
    try:
        await in_new_thread(lambda: started.append(_start(method)))
    except asyncio.CancelledError:
        for process, ours, pidfd in started:
            ours.close()
            await in_new_thread(partial(_destroy, process, pidfd))
        raise
    except (EOFError, ConnectionError) as error:
        raise WorkerDiedError(f"the fork server could not start. {GUARD}") from error
    process, ours, pidfd = started[0]
    # A child of a child's may outlive it and keep its sentinel, but not that of the fork
    # server, which knows the exit status; that is not known at once to the pidfd.
    watched = pidfd if method == "spawn" else process.sentinel
    worker = ProcessWorker(Channel(), process, pidfd, watched)
    return await introduce(worker, ours, GUARD)


GUARD = (
    "See what it wrote to stderr; if the main script runs the program when it is imported, "
    'put that under `if __name__ == "__main__":`'
)


class ProcessPool:
    """Processes that are kept from call to call; `async with` ends them.

    They are started when they are needed, at most `max_workers` at once (by default as
    many as there are CPUs), by multiprocessing's "forkserver" or "spawn"; "fork" would copy
    a running loop, and is refused with ValueError. To be used on one loop.
    """

    def __init__(
        self, max_workers: int | None = None, *, start_method: StartMethod = "forkserver"
    ) -> None:
        if start_method not in ("forkserver", "spawn"):
            raise ValueError(
                f'start_method must be "forkserver" or "spawn", not {start_method!r}: '
                "a forked child would have a copy of the running loop, and of locks that "
                "other threads hold"
            )
        self._pool = Pool(
            cpus() if max_workers is None else max_workers,
            "another process",
            lambda: _start_worker(start_method),
        )

    async def run(
        self,
        function: Callable[[*Ts], T],
        /,
        *args: *Ts,
        progress: Callable[[Any], object] | None = None,
    ) -> T:
        """Call `function(*args)` in one of the processes; as `to_process()`."""
        return await self._pool.run(None, function, args, progress)  # type: ignore[no-any-return]

    async def aclose(self) -> None:
        """End the processes. Calls under way are stopped, and raise RuntimeError."""
        await self._pool.aclose()

    async def __aenter__(self) -> ProcessPool:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()


def _pool_of_loop() -> Pool:
    return ProcessPool()._pool


async def to_process(
    function: Callable[[*Ts], T],
    /,
    *args: *Ts,
    limiter: asyncio.Semaphore | None = None,
    progress: Callable[[Any], object] | None = None,
) -> T:
    """Call `function(*args)` in another process, kept for the next call.

    When the caller is cancelled, the process is killed, and the call ends (in
    CancelledError) when it is dead; the next call has a new one. Processes end with the
    loop's shutdown, and with this process however it ends.

    `limiter` says how many may run at once (by default as many as there are CPUs),
    `progress` is called on the loop with what the function gives to `offload.report()`.

    Raises what the function raises, with the traceback there as its `__cause__`;
    pickle.PicklingError if function, arguments or result cannot be pickled; RemoteError for
    an exception that cannot; WorkerDiedError if the process ends before the call does.
    """
    pool = await of_loop(_pool_of_loop)
    return await pool.run(limiter, function, args, progress)  # type: ignore[no-any-return]
