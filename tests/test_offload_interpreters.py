"""offload.to_interpreter(), where there are interpreters with a GIL of their own."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import pickle
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest

import offloaded
from requirement import missing
from ringloop import offload
from ringloop.offload import _interpreters
from waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

Run = Any
TIMEOUT_S = 20


@pytest.fixture
def run(interpreters: None, files_run: Run) -> Run:
    def run(main: Any, timeout: float = TIMEOUT_S) -> Any:
        return files_run(main, timeout)

    return run


@pytest.fixture
def interpreters() -> Iterator[None]:
    """That there are any; their threads end."""
    if sys.version_info < (3, 12):
        pytest.skip("before Python 3.12 all interpreters share one GIL")
    if sys.version_info < (3, 14) and importlib.util.find_spec("backports.interpreters") is None:
        missing("there is no backport of concurrent.interpreters: pip install '.[interpreters]'")
    before = set(threading.enumerate())
    yield
    wait_until(lambda: set(threading.enumerate()) <= before)


def test_a_result_comes_back(run: Run) -> None:
    async def main() -> None:
        assert await offload.to_interpreter(offloaded.square, 7) == 49
        assert await offload.to_interpreter(offloaded.pid) == os.getpid()
        data = os.urandom(1 << 22)
        assert await offload.to_interpreter(offloaded.same, data) == data

    run(main())


def test_errors_come_back(run: Run) -> None:
    async def main() -> None:
        with pytest.raises(LookupError, match="mine") as caught:
            await offload.to_interpreter(offloaded.fail, "mine")
        assert "in fail" in str(caught.value.__cause__)
        with pytest.raises(pickle.PicklingError, match=r"<lambda> .* another interpreter"):
            await offload.to_interpreter(lambda: None)
        with pytest.raises(pickle.PicklingError, match="the result, a function"):
            await offload.to_interpreter(offloaded.give_a_lambda)
        assert await offload.to_interpreter(offloaded.square, 2) == 4

    run(main())


def test_progress_comes_in_order_and_before_the_result(run: Run) -> None:
    async def main() -> None:
        seen: list[int] = []
        assert await offload.to_interpreter(offloaded.count, 500, progress=seen.append) == "counted"
        assert seen == list(range(500))

    run(main())


def test_a_cancelled_call_ends_when_its_function_does(run: Run) -> None:
    async def main() -> None:
        begun = asyncio.Event()
        task = asyncio.create_task(
            offload.to_interpreter(offloaded.until_cancelled, progress=lambda value: begun.set())
        )
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        # The same interpreter has the next one, which is not cancelled.
        assert await offload.to_interpreter(offloaded.count, 1) == "counted"

    run(main())


@pytest.mark.parametrize("turns", [0, 1, 2, 3, 5, 10])
def test_cancelling_at_any_turn_of_the_loop(run: Run, turns: int) -> None:
    async def main() -> None:
        limiter = asyncio.Semaphore(1)
        for _ in range(10):
            task = asyncio.create_task(offload.to_interpreter(offloaded.square, 3, limiter=limiter))
            for _ in range(turns):
                await asyncio.sleep(0)
            task.cancel()
            try:
                assert await task == 9
            except asyncio.CancelledError:
                pass
        assert await offload.to_interpreter(offloaded.square, 4, limiter=limiter) == 16

    run(main())


def test_many_calls_side_by_side(run: Run) -> None:
    async def main() -> None:
        limiter = asyncio.Semaphore(2)
        calls = (offload.to_interpreter(offloaded.square, i, limiter=limiter) for i in range(300))
        assert await asyncio.gather(*calls) == [i * i for i in range(300)]

    run(main())


def test_functions_of_the_main_script_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def function() -> None: ...

    function.__module__ = "__main__"
    with pytest.raises(ValueError, match="move it to a module"):
        asyncio.run(offload.to_interpreter(function))


def test_what_is_missing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "concurrent.interpreters", None)
    monkeypatch.setitem(sys.modules, "backports.interpreters", None)
    with pytest.raises(RuntimeError, match=r"needs Python 3\.14.* to_process\(\)"):
        _interpreters._interpreters()
    with pytest.raises(RuntimeError, match=r"needs Python 3\.14"):
        asyncio.run(offload.to_interpreter(offloaded.square, 3))
