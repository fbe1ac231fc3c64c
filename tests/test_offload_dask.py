"""offload.from_dask(), on a real cluster of this machine."""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import inspect
import os
import sys
import threading
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest

import offloaded
from requirement import missing, needs_uring
from ringloop import offload

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

Run = Any
TIMEOUT_S = 60
THREADS = 4  # of the worker

# What Dask and Tornado warn of is theirs.
pytestmark = pytest.mark.filterwarnings("ignore")


def dask_module() -> Any:
    """distributed, whose own types are in part only."""
    return importlib.import_module("distributed")


@pytest.fixture(scope="module", autouse=True)
def dask_is_there() -> None:
    if importlib.util.find_spec("distributed") is None:
        missing("distributed is not installed: pip install '.[dask]'")


@pytest.fixture(scope="module")
def cluster(dask_is_there: None) -> Iterator[Any]:
    """A scheduler in a thread of this process, and a worker in another process."""
    once = {"distributed.scheduler.allowed-failures": 0}  # a call that kills is not repeated
    with (
        importlib.import_module("dask").config.set(once),
        dask_module().LocalCluster(
            n_workers=1, threads_per_worker=THREADS, processes=True, dashboard_address=None
        ) as cluster,
    ):
        yield cluster


@pytest.fixture(params=["blocking client", "asynchronous client"])
def run(request: pytest.FixtureRequest, cluster: Any, loop_factory: Any) -> Run:
    """Run a function of an `offload.Dask` on every loop, through both kinds of client."""

    @asynccontextmanager
    async def connected() -> AsyncIterator[offload.Dask]:
        if request.param == "asynchronous client":
            async with dask_module().Client(cluster.scheduler_address, asynchronous=True) as client:
                yield offload.from_dask(client)
        else:
            yield offload.from_dask(blocking)

    blocking = dask_module().Client(cluster) if request.param == "blocking client" else None

    def run(main: Any) -> None:
        async def connect() -> None:
            async with asyncio.timeout(TIMEOUT_S), connected() as dask:
                await main(dask)

        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(connect())

    request.addfinalizer(lambda: blocking and blocking.close())
    return run


@pytest.fixture(params=["uring", "epoll", "asyncio"])
def loop_factory(request: pytest.FixtureRequest) -> Any:
    import ringloop  # noqa: PLC0415

    name: str = request.param
    if name == "asyncio":
        return asyncio.new_event_loop
    if name == "uring":
        needs_uring()
    return lambda: ringloop.EventLoop(name)


def test_a_result_comes_back_from_the_cluster(run: Run) -> None:
    async def main(dask: offload.Dask) -> None:
        assert await dask.run(offloaded.square, 7) == 49
        assert await dask.run(offloaded.pid) != os.getpid()

    run(main)


def test_an_exception_comes_back(run: Run) -> None:
    async def main(dask: offload.Dask) -> None:
        with pytest.raises(LookupError, match="mine"):
            await dask.run(offloaded.fail, "mine")
        remote = dask.submit(offloaded.fail, "kept")
        with pytest.raises(LookupError, match="kept"):
            await remote.get()

    run(main)


def test_data_stays_on_the_cluster_until_it_is_asked_for(run: Run) -> None:
    async def main(dask: offload.Dask) -> None:
        numbers = dask.submit(range, 1000)
        total = dask.submit(sum, numbers)
        pair = dask.submit(offloaded.same, {"both": [numbers, total]})
        assert await total.get() == 499500
        assert await dask.run(sum, numbers) == 499500
        assert await pair.get() == {"both": [range(1000), 499500]}

    run(main)


def test_progress_comes_in_order_and_before_the_result(run: Run) -> None:
    async def main(dask: offload.Dask) -> None:
        ours: list[int] = []
        others: list[int] = []
        results = await asyncio.gather(
            dask.run(offloaded.count, 100, progress=ours.append),
            dask.run(offloaded.count, 50, progress=others.append),
        )
        assert [*results] == ["counted", "counted"]
        assert ours == list(range(100))
        assert others == list(range(50))

    run(main)


async def calls_that_wait(dask: offload.Dask, count: int) -> None:
    """Until so many calls wait for a thread of the worker."""
    while True:
        found = dask.client.run(offloaded.ready_on)
        if inspect.isawaitable(found):
            found = await found
        if sum(found.values()) == count:
            return
        await asyncio.sleep(0.01)


def test_a_cancelled_call_that_waits_does_not_begin(run: Run, tmp_path: Path) -> None:
    async def main(dask: offload.Dask) -> None:
        go, mark = tmp_path / "go", tmp_path / "mark"
        taken: asyncio.Queue[Any] = asyncio.Queue()
        places = [
            asyncio.create_task(
                dask.run(offloaded.pid_when_there_is, go, progress=taken.put_nowait)
            )
            for _ in range(THREADS)
        ]
        for _ in places:
            await taken.get()
        task = asyncio.create_task(dask.run(offloaded.touch, mark))
        await calls_that_wait(dask, 1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await calls_that_wait(dask, 0)  # Dask's worker is told a moment later
        go.touch()
        await asyncio.gather(*places)
        assert await dask.run(offloaded.square, 2) == 4
        assert not mark.exists()

    run(main)


def test_a_cancelled_call_that_runs_ends_here(run: Run, tmp_path: Path) -> None:
    async def main(dask: offload.Dask) -> None:
        go = tmp_path / "go"
        begun = asyncio.Event()
        task = asyncio.create_task(
            dask.run(offloaded.pid_when_there_is, go, progress=lambda _: begun.set())
        )
        await begun.wait()
        start = time.monotonic()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert time.monotonic() - start < offloaded.TIMEOUT_S / 2
        go.touch()
        assert await dask.run(offloaded.square, 2) == 4

    run(main)


def test_equal_calls_do_not_share_their_fate(run: Run, tmp_path: Path) -> None:
    async def main(dask: offload.Dask) -> None:
        go = tmp_path / "go"
        calls = (dask.run(offloaded.pid_when_there_is, go) for _ in range(2))
        one, two = map(asyncio.create_task, calls)
        await asyncio.sleep(0.1)  # they run now, more or less
        one.cancel()
        go.touch()
        assert await two > 0
        with pytest.raises(asyncio.CancelledError):
            await one

    run(main)


def test_a_handle_that_is_cancelled(run: Run) -> None:
    async def main(dask: offload.Dask) -> None:
        remote = dask.submit(offloaded.square, 3)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await remote.get()  # which leaves the work alone
        assert await remote.get() == 9
        await remote.cancel()
        with pytest.raises(Exception, match="cancelled"):
            await remote.get()

    run(main)


def test_two_hundred_calls_through_a_limiter_of_four(run: Run) -> None:
    async def main(dask: offload.Dask) -> None:
        limiter = asyncio.Semaphore(4)
        most = 0

        async def call(i: int) -> int:
            nonlocal most
            result = await dask.run(offloaded.square, i, limiter=limiter)
            there = list(dask.client.futures.values())
            most = max(most, sum(future.status == "pending" for future in there))
            return result

        assert await asyncio.gather(*map(call, range(200))) == [i * i for i in range(200)]
        assert not limiter.locked()
        assert most <= 4

    run(main)


def test_a_worker_that_dies(run: Run, cluster: Any) -> None:
    async def main(dask: offload.Dask) -> None:
        with pytest.raises(Exception, match="leave"):
            await dask.run(offloaded.leave, 3)
        assert await dask.run(offloaded.square, 2) == 4

    run(main)


def test_a_whole_cluster_on_the_loop(loop_factory: Any) -> None:
    """Scheduler, worker and client on one ringloop."""

    async def main() -> None:
        async with (
            asyncio.timeout(TIMEOUT_S),
            dask_module().LocalCluster(
                n_workers=1, processes=False, asynchronous=True, dashboard_address=None
            ) as cluster,
            dask_module().Client(cluster, asynchronous=True) as client,
        ):
            dask = offload.from_dask(client)
            threads = await asyncio.gather(*(dask.run(threading.get_ident) for _ in range(20)))
            assert threading.get_ident() not in threads

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(main())


def test_what_is_no_client_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TypeError, match=r"needs a distributed\.Client, not a str"):
        offload.from_dask("tcp://127.0.0.1:8786")
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(RuntimeError, match=r"pip install '\.\[dask\]'"):
        offload.from_dask(None)
