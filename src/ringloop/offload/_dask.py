"""The same calls on a Dask cluster."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import itertools
import pickle
import uuid
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ringloop._extras import how_to_install
from ringloop.offload import _worker
from ringloop.offload._wait import outlast

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

T = TypeVar("T")

# -- on a worker of the cluster ------------------------------------------------------


class _DaskWork:
    """A call whose reports travel as events of a topic."""

    def __init__(self, topic: str, call: int) -> None:
        self.topic = topic
        self.call = call

    def report(self, value: Any) -> None:
        from distributed import get_worker  # noqa: PLC0415 - an extra

        body = pickle.dumps(value, pickle.HIGHEST_PROTOCOL)
        get_worker().log_event(self.topic, (self.call, body))

    def cancelled(self) -> bool:
        return False  # Dask does not tell a function that runs


def _reporting(topic: str, call: int, function: Callable[..., Any], *args: Any) -> Any:
    reset = _worker.current.set(_DaskWork(topic, call))
    try:
        return function(*args)
    finally:
        _worker.current.reset(reset)


# -- at the caller -------------------------------------------------------------------


def _futures(value: Any) -> Any:
    """An argument with Dask's own futures in place of our handles."""
    if isinstance(value, Remote):
        return value.future
    if type(value) in (list, tuple):
        return type(value)(_futures(item) for item in value)
    if type(value) is dict:
        return {key: _futures(item) for key, item in value.items()}
    return value


class Remote(Generic[T]):
    """A result that stays on the cluster until it is asked for.

    Give it to further calls as an argument, or in a list, tuple or dict: they get the
    result itself, without a way through this process. The cluster forgets it when this
    object is gone.
    """

    def __init__(self, dask: Dask, future: Any) -> None:
        self.dask = dask
        self.future = future

    async def get(self) -> T:
        """Wait for the result and fetch it. Raises what the function raised.

        Cancelling this does not cancel the work.
        """
        return await asyncio.shield(self.dask._fetch(self.future))

    async def cancel(self) -> None:
        """Forget the result, and the work if it has not begun."""
        await self.dask._cancel(self.future)


class Dask:
    """Calls on a Dask cluster; from `from_dask()`. To be used on one loop."""

    def __init__(self, client: Any) -> None:
        self.client = client
        # One topic for all calls: the scheduler remembers some events of each.
        self.topic = f"ringloop-offload-{uuid.uuid4().hex}"
        self.calls = itertools.count()
        self.reports: dict[int, Callable[[bytes], None]] | None = None

    def submit(self, function: Callable[..., T], /, *args: Any) -> Remote[T]:
        """Start `function(*args)` on the cluster, and leave the result there."""
        # Not pure: with equal calls one future, cancelling one would cancel the others.
        future = self.client.submit(function, *map(_futures, args), pure=False)
        return Remote(self, future)

    async def run(
        self,
        function: Callable[..., T],
        /,
        *args: Any,
        limiter: asyncio.Semaphore | None = None,
        progress: Callable[[Any], object] | None = None,
    ) -> T:
        """Call `function(*args)` on the cluster; arguments may be `Remote`.

        When the caller is cancelled, so is the call: it does not begin any more, once its
        worker was told. What runs already goes on to its end, for Dask does not stop it,
        but its result is dropped.

        `limiter` says how many may be on the cluster at once, waiting ones included (by
        default any number: the cluster has a queue). `progress` is called on the loop with
        what the function gives to `offload.report()`; it needs ringloop on the workers.
        Raises what the function raises, and distributed's exceptions if the cluster fails.
        """
        async with limiter or contextlib.nullcontext():
            with self._listening(progress) as call:
                if call is None:
                    remote = self.submit(function, *args)
                else:
                    remote = self.submit(_reporting, self.topic, call, function, *args)
                fetching = self._fetch(remote.future)
                cancelling: list[asyncio.Future[Any]] = []
                cancelled = await outlast(
                    fetching, lambda: cancelling.append(self._cancel(remote.future))
                )
                for future in cancelling:
                    await outlast(future)
        try:
            if cancelled is not None:
                fetching.cancelled() or fetching.exception()  # not to be logged
                raise cancelled
            return fetching.result()  # type: ignore[no-any-return]
        finally:
            del cancelled

    @contextlib.contextmanager
    def _listening(self, progress: Callable[[Any], object] | None) -> Any:
        """Have reports of a call go to `progress`; gives the call's number, or None."""
        if progress is None:
            yield None
            return
        loop = asyncio.get_running_loop()
        context = contextvars.copy_context()
        if self.reports is None:
            self.reports = {}
            self.client.subscribe_topic(self.topic, self._received)
        call = next(self.calls)

        def report(body: bytes) -> None:
            loop.call_soon_threadsafe(_load_and_call, progress, body, context=context)

        self.reports[call] = report
        try:
            yield call
        finally:
            del self.reports[call]

    def _received(self, event: tuple[float, tuple[int, bytes]]) -> None:
        # On the client's loop, which may be in another thread.
        call, body = event[1]
        report = self.reports and self.reports.get(call)
        if report:
            report(body)

    def _fetch(self, future: Any) -> asyncio.Future[Any]:
        # Never to be cancelled: the client has one task for all that are fetched together.
        return self._on_clients_loop(self.client.gather(future, asynchronous=True))

    def _cancel(self, future: Any) -> asyncio.Future[Any]:
        return self._on_clients_loop(self.client.cancel([future], asynchronous=True, force=True))

    def _on_clients_loop(self, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Future[Any]:
        if self.client.asynchronous:
            return asyncio.ensure_future(coroutine)
        loop = self.client.loop.asyncio_loop
        return asyncio.wrap_future(asyncio.run_coroutine_threadsafe(coroutine, loop))


def _load_and_call(progress: Callable[[Any], object], body: bytes) -> None:
    progress(pickle.loads(body))


def from_dask(client: Any) -> Dask:
    """Calls on the cluster of a `distributed.Client`, made with asynchronous=True or without.

    Raises RuntimeError if distributed is not installed, TypeError for anything else than
    a client.
    """
    try:
        from distributed import Client  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise RuntimeError(f"from_dask() needs distributed: {how_to_install('dask')}") from error
    if not isinstance(client, Client):
        raise TypeError(f"from_dask() needs a distributed.Client, not a {type(client).__name__}")
    return Dask(client)
