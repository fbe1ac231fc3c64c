"""Names and addresses: loop.getaddrinfo() and loop.getnameinfo().

What needs no look-up is answered at once, by the same C function and so with the same
results and errors. The rest runs in threads of the loop's own, not in the default
executor: connecting must not wait until somebody's blocking work is done.

All bookkeeping is done in the loop's thread; a resolver thread only waits for a job,
runs it and reports back. The C library's resolver cannot be interrupted and may take
half a minute, so nobody ever waits for it: the threads are daemons, and closing the
loop leaves one that is busy to end by itself. (concurrent.futures would join it when
the interpreter exits.)

Nothing is cached: how long an answer holds is known to the resolver alone.
"""

from __future__ import annotations

import os
import socket
from collections import OrderedDict
from queue import SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    Job = tuple[asyncio.Future[Any], Callable[..., Any], tuple[Any, ...]]
    Address = tuple[Any, ...]

# A thread is made only when all others are busy, and sleeps while it waits for an
# answer. Many can be had at no cost; few are all stuck soon when a name server is down.
DEFAULT_THREADS = 16
THREADS_VARIABLE = "RINGLOOP_RESOLVER_THREADS"


def _max_threads() -> int:
    text = os.environ.get(THREADS_VARIABLE) or str(DEFAULT_THREADS)
    if not (text.isascii() and text.isdigit() and int(text) > 0):
        raise ValueError(f"{THREADS_VARIABLE} must be a positive number, not {text!r}")
    return int(text)


def _run(loop: asyncio.AbstractEventLoop, report: Callable[..., None], job: Job) -> None:
    future, function, args = job
    result = error = None
    try:
        result = function(*args)
    except BaseException as exc:
        error = exc
    try:
        loop.call_soon_threadsafe(report, future, result, error)
    except RuntimeError:
        pass  # the loop was closed meanwhile: nobody asks any more
    finally:
        del future, job, error  # the error refers to this frame


class _Worker:
    """A thread that runs one job after the other, until it is told to stop."""

    def __init__(self, number: int) -> None:
        self._jobs: SimpleQueue[Any] = SimpleQueue()
        name = f"ringloop-resolver-{number}"
        Thread(target=self._main, args=(self._jobs,), name=name, daemon=True).start()

    @staticmethod
    def _main(jobs: SimpleQueue[Any]) -> None:
        # It knows the loop only while a job runs: a loop that nobody closed is collected.
        while (job := jobs.get()) is not None:
            _run(*job)
            del job

    def run(self, loop: asyncio.AbstractEventLoop, report: Callable[..., None], job: Job) -> None:
        self._jobs.put((loop, report, job))

    def stop(self) -> None:
        """End once the job that runs is done."""
        self._jobs.put(None)


class _Pool:
    """Up to `size` threads, made when needed, and who waits for one."""

    def __init__(self, loop: asyncio.AbstractEventLoop, size: int) -> None:
        self._loop = loop
        self._size = size
        self._workers: list[_Worker] = []
        self._idle: list[_Worker] = []
        self._waiting: OrderedDict[asyncio.Future[Any], Job] = OrderedDict()

    async def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """What `function(*args)` gives or raises, in a thread.

        After a cancellation a call that has begun goes on, and nobody hears of its end.
        """
        future = self._loop.create_future()
        job = (future, function, args)
        if not self._idle and len(self._workers) < self._size:
            worker = _Worker(len(self._workers))
            self._workers.append(worker)
            self._idle.append(worker)
        if self._idle:
            self._start(self._idle.pop(), job)
        else:
            self._waiting[future] = job
        try:
            return await future
        finally:
            self._waiting.pop(future, None)
            del future, job  # an error refers to this frame, too

    def _start(self, worker: _Worker, job: Job) -> None:
        def report(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
            if self._waiting:
                self._start(worker, self._waiting.popitem(last=False)[1])
            else:
                self._idle.append(worker)
            if future.done():
                pass  # cancelled
            elif error is not None:
                future.set_exception(error)
            else:
                future.set_result(result)

        worker.run(self._loop, report, job)

    def close(self) -> None:
        """Have the threads end, without waiting.

        Not even for those without a job: when the interpreter exits and collects a loop
        that nobody closed, they get no chance to run any more.
        """
        for worker in self._workers:
            worker.stop()
        self._workers.clear()
        self._idle.clear()
        self._waiting.clear()


def _is_numeric_host(host: Any) -> bool:
    """An IP address as text, maybe with a zone; never true for what needs a look-up."""
    if isinstance(host, bytes):
        try:
            host = host.decode("ascii")
        except UnicodeDecodeError:
            return False
    if not isinstance(host, str):
        return False
    address, zone, _ = host.partition("%")
    for family in (socket.AF_INET6,) if zone else (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, address)
            return True
        except (OSError, ValueError):
            pass
    return False


def _is_numeric_port(port: Any) -> bool:
    if isinstance(port, str):
        return port.isascii() and port.isdigit()
    return port is None or isinstance(port, int) or (isinstance(port, bytes) and port.isdigit())


class ResolverMethods:
    """The getaddrinfo and getnameinfo of the event loop."""

    _debug: bool
    _getaddrinfo_debug: Callable[..., Any]
    _check_closed: Callable[[], None]

    def _init_resolver(self) -> None:
        self._resolver_threads = _max_threads()
        self._resolver: _Pool | None = None

    def _resolver_pool(self) -> _Pool:
        if self._resolver is None:
            self._resolver = _Pool(self, self._resolver_threads)  # type: ignore[arg-type]
        return self._resolver

    def _close_resolver(self) -> None:
        if self._resolver is not None:
            self._resolver.close()
            self._resolver = None

    async def getaddrinfo(
        self,
        host: bytes | str | None,
        port: bytes | str | int | None,
        *,
        family: int = 0,
        type: int = 0,
        proto: int = 0,
        flags: int = 0,
    ) -> list[Any]:
        """The addresses of a host and a service, as `socket.getaddrinfo()` has them.

        Raises what that raises: socket.gaierror when there are none, UnicodeError for
        a name that cannot be encoded, TypeError for a host of another type.
        """
        self._check_closed()
        look_up = self._getaddrinfo_debug if self._debug else socket.getaddrinfo
        args = (host, port, family, type, proto, flags)
        no_host = host is None or flags & socket.AI_NUMERICHOST or _is_numeric_host(host)
        no_service = flags & socket.AI_NUMERICSERV or _is_numeric_port(port)
        if no_host and no_service:
            return look_up(*args)
        return await self._resolver_pool().call(look_up, *args)  # type: ignore[no-any-return]

    async def getnameinfo(self, sockaddr: Address, flags: int = 0) -> tuple[str, str]:
        """The host and service of a socket address, as `socket.getnameinfo()` has them.

        Raises what that raises: socket.gaierror, and TypeError or OverflowError for
        something that is no address.
        """
        self._check_closed()
        numeric = socket.NI_NUMERICHOST | socket.NI_NUMERICSERV
        if flags & numeric == numeric:
            return socket.getnameinfo(sockaddr, flags)
        found: tuple[str, str]
        found = await self._resolver_pool().call(socket.getnameinfo, sockaddr, flags)
        return found
