"""Fixtures: every test that can, runs on both drivers and leaves nothing behind."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import warnings
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

import drivers
import ringloop
from machine import open_fds
from requirement import needs_uring
from ringloop._driver.choose import why_not_uring
from ringloop._tls import choose
from ringloop._tls.openssl import why_not_direct

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

T = TypeVar("T")


def pytest_configure() -> None:
    """A shell's background job ignores SIGINT, and so would every program that tests start."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_report_header() -> str:
    reason = why_not_uring()
    return "io_uring: " + (f"not tested, {reason}" if reason else "tested, and epoll")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Under the address sanitizer (tools/sanitize) freed memory is not given back at once."""
    if "libasan" in os.environ.get("LD_PRELOAD", ""):
        reason = "the address sanitizer keeps what is freed: the process's size says nothing"
        for item in items:
            if item.get_closest_marker("measures_memory"):
                item.add_marker(pytest.mark.skip(reason=reason))


def pytest_collection_finish() -> None:
    """Each test collects garbage, and should not look at the tests themselves each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def no_old_garbage() -> None:
    """Nor at what the modules before have imported, Dask and matplotlib among them."""
    gc.collect()
    gc.freeze()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Each test that asks for a driver gets both; some modules the faulty ones, too."""
    if "driver" in metafunc.fixturenames:
        names = drivers.REAL
        if getattr(metafunc.module, "ON_FAULTY_DRIVERS", False):
            names += drivers.FAULTY
        metafunc.parametrize("driver", names, indirect=True)


@pytest.fixture
def driver(request: pytest.FixtureRequest) -> str:
    """The driver under test. Without io_uring its part is skipped, but in CI it fails."""
    name: str = request.param
    if "uring" in name:
        needs_uring()
    return name


@pytest.fixture
def loop(driver: str) -> Iterator[ringloop.EventLoop]:
    """A loop of that driver. Afterwards no operation, fd or unclosed thing may be left."""
    gc.collect()
    before = open_fds()
    loop = ringloop.EventLoop(drivers.make(driver))
    at_rest = loop._live_operations()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ResourceWarning)
        yield loop
        if not loop.is_closed():
            # What was closed last needs its last completions.
            for _ in range(10):
                loop.run_until_complete(asyncio.sleep(0))
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.run_until_complete(loop.shutdown_default_executor())
            # The signal socket's watch is there from the first run on.
            left = loop._live_operations() - at_rest - 1
            loop.close()
            assert left == 0, f"{left} operations were left in flight"
        gc.collect()
    unclosed = [str(w.message) for w in caught if issubclass(w.category, ResourceWarning)]
    assert not unclosed, unclosed
    after = open_fds()
    leaked = {fd: what for fd, what in after.items() if before.get(fd) != what}
    assert not leaked, f"file descriptors were left open: {leaked}"


@pytest.fixture(params=["direct", "memory"])
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The TLS engine under test."""
    name: str = request.param
    reason = why_not_direct()
    if name == "direct" and reason is not None:
        pytest.skip(reason)
    monkeypatch.setattr(choose, "engine_info", lambda: (name, None))
    return name


@pytest.fixture
def run(loop: ringloop.EventLoop) -> Callable[..., Any]:
    """Run a coroutine on the loop; a hang fails after `timeout` seconds."""

    def run(main: Coroutine[Any, Any, T], timeout: float = 10) -> T:
        return loop.run_until_complete(asyncio.wait_for(main, timeout))

    return run


@pytest.fixture(params=[*drivers.REAL, "asyncio"])
def files_run(request: pytest.FixtureRequest) -> Iterator[Callable[..., Any]]:
    """`run` for files: on the ring, in threads on epoll, in threads on asyncio's own loop.

    Afterwards no file descriptor may be left open, and nothing unclosed.
    """
    name: str = request.param
    if name == "uring":
        needs_uring()
    gc.collect()
    before = open_fds()

    def factory() -> asyncio.AbstractEventLoop:
        return asyncio.new_event_loop() if name == "asyncio" else ringloop.EventLoop(name)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ResourceWarning)
        with asyncio.Runner(loop_factory=factory) as runner:

            def run(main: Coroutine[Any, Any, T], timeout: float = 10) -> T:
                return runner.run(asyncio.wait_for(main, timeout))

            yield run
        gc.collect()
    unclosed = [str(w.message) for w in caught if issubclass(w.category, ResourceWarning)]
    assert not unclosed, unclosed
    after = open_fds()
    leaked = {fd: what for fd, what in after.items() if before.get(fd) != what}
    assert not leaked, f"file descriptors were left open: {leaked}"
