"""New names in a directory: a few at a time, whatever becomes of those before."""

from __future__ import annotations

import asyncio
import os
import time
import weakref
from typing import TYPE_CHECKING, Any

import pytest

import ringloop
from machine import open_fds
from ringloop import fs
from ringloop.fs import _threads
from waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from pathlib import Path

    Run = Callable[..., Any]

AT_ONCE = 3


async def create(path: Path) -> None:
    async with fs.open(path, "xb"):
        pass


async def link(path: Path) -> None:
    await fs.symlink("target", path)


WAYS = {"open": create, "mkdir": fs.mkdir, "symlink": link}


@pytest.fixture(params=WAYS)
def make(request: pytest.FixtureRequest) -> Callable[[Path], Coroutine[Any, Any, None]]:
    return WAYS[request.param]


class Threads:
    """Stands where operations go to threads, and counts those that have begun."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.begun = 0
        self.refused: set[int] = set()
        self._submit = _threads.submit
        monkeypatch.setattr(_threads, "submit", self)

    def __call__(self, *job: Any) -> None:
        self.begun += 1
        if self.begun in self.refused:
            raise RuntimeError(f"no thread for {self.begun}")
        self._submit(*job)


async def tasks_that_began(makes: Coroutine[Any, Any, None], *more: Any) -> list[Any]:
    tasks = [asyncio.ensure_future(m) for m in (makes, *more)]
    await asyncio.sleep(0)
    return tasks


def live_operations() -> int:
    loop = asyncio.get_running_loop()
    return loop._live_operations() if isinstance(loop, ringloop.EventLoop) else 0


def test_a_few_in_a_directory_at_once(
    files_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Any
) -> None:
    threads = Threads(monkeypatch)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()

    async def main() -> None:
        at_rest = live_operations()
        paths = [tmp_path / name / str(i) for name in ("a", "b") for i in range(20)]
        tasks = await tasks_that_began(*[make(path) for path in paths])
        assert live_operations() - at_rest + threads.begun == 2 * AT_ONCE
        await asyncio.gather(*tasks)
        for name in ("a", "b"):
            assert len(os.listdir(tmp_path / name)) == 20

    files_run(main())


def test_what_is_there_is_opened_without_waiting_for_others(
    files_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = Threads(monkeypatch)
    for i in range(20):
        (tmp_path / str(i)).touch()

    async def open_it(path: Path) -> None:
        async with fs.open(path, "wb"):
            pass

    async def main() -> None:
        at_rest = live_operations()
        tasks = await tasks_that_began(*[open_it(tmp_path / str(i)) for i in range(20)])
        assert live_operations() - at_rest + threads.begun > AT_ONCE
        await asyncio.gather(*tasks)

    files_run(main())


def test_one_that_is_cancelled_before_it_began_is_not_made(
    files_run: Run, tmp_path: Path, make: Any
) -> None:
    async def main() -> None:
        tasks = await tasks_that_began(*[make(tmp_path / str(i)) for i in range(20)])
        given_up = {8, 9, 13, 18, 19}  # behind those that began
        for i in given_up:
            tasks[i].cancel()
        await asyncio.wait(tasks)
        assert {i for i, task in enumerate(tasks) if task.cancelled()} == given_up
        wanted = set(range(20)) - given_up
        assert set(os.listdir(tmp_path)) == {str(i) for i in wanted}
        await asyncio.gather(*[make(tmp_path / str(i)) for i in given_up])

    files_run(main())


def test_cancelled_ones_in_flight_hold_up_no_other(
    files_run: Run, tmp_path: Path, make: Any
) -> None:
    async def main() -> None:
        tasks = await tasks_that_began(*[make(tmp_path / str(i)) for i in range(20)])
        for task in tasks[:AT_ONCE]:
            task.cancel()
        await asyncio.wait(tasks)
        for task in tasks[AT_ONCE:]:
            task.result()

    files_run(main())


def test_errors_hold_up_no_other(files_run: Run, tmp_path: Path, make: Any) -> None:
    async def main() -> None:
        nowhere = [make(tmp_path / "none" / str(i)) for i in range(20)]
        for error in await asyncio.gather(*nowhere, return_exceptions=True):
            assert isinstance(error, FileNotFoundError)
        again = [make(tmp_path / str(i % 10)) for i in range(20)]
        errors = await asyncio.gather(*again, return_exceptions=True)
        assert sum(isinstance(error, FileExistsError) for error in errors) == 10

    files_run(main())


def test_one_that_finds_no_thread_fails_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Any
) -> None:
    threads = Threads(monkeypatch)
    threads.refused = {2, 4, 5, 9}

    async def main() -> None:
        making = [make(tmp_path / str(i)) for i in range(20)]
        errors = await asyncio.gather(*making, return_exceptions=True)
        assert [str(e) for e in errors if e] == [f"no thread for {i}" for i in (2, 4, 5, 9)]
        assert len(os.listdir(tmp_path)) == 16

    with asyncio.Runner(loop_factory=lambda: ringloop.EventLoop("epoll")) as runner:
        runner.run(asyncio.wait_for(main(), 10))


def test_operations_begin_while_callbacks_run(files_run: Run, tmp_path: Path) -> None:
    """A disk has to do before the loop waits: what many tasks ask for is not held back."""
    folders = [tmp_path / str(i) for i in range(8)]
    for folder in folders:
        folder.mkdir()
    begun = 0

    def look() -> None:
        nonlocal begun
        end = time.monotonic() + 5
        while begun < 4 and time.monotonic() < end:
            begun = sum((folder / "new").exists() for folder in folders)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        tasks = [asyncio.ensure_future(fs.mkdir(folder / "new")) for folder in folders]
        loop.call_soon(look)  # after the tasks' first steps, in the same iteration
        await asyncio.gather(*tasks)
        assert begun >= 4

    files_run(main())


@pytest.mark.parametrize("count", [AT_ONCE, 20])
def test_a_loop_that_is_closed_meanwhile_keeps_nothing(
    driver: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """Loops that come after it, maybe at the same address, begin at once."""
    before = open_fds()
    jobs: list[Any] = []
    closed: list[weakref.ref[ringloop.EventLoop]] = []
    for i in range(5):
        loop = ringloop.EventLoop(driver)
        loop.run_until_complete(asyncio.wait_for(create(tmp_path / str(i)), 5))
        with monkeypatch.context() as patch:
            patch.setattr(_threads, "submit", lambda *job: jobs.append(job))  # to slow threads
            tasks = [loop.create_task(create(tmp_path / f"{i}-{j}")) for j in range(count)]
            loop.call_soon(loop.call_soon, loop.stop)
            loop.run_forever()
            for task in tasks:
                task.cancel()
            loop.run_until_complete(asyncio.wait(tasks))
            loop.close()
        jobs.clear()
        closed.append(weakref.ref(loop))
        del loop, task, tasks
        wait_until(lambda: closed[-1]() is None)  # a thread may have had it a moment ago
    assert open_fds() == before
