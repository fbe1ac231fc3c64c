"""A Filedesk on each driver, in the test's own loop or as a process."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest

import ringloop
from desk import Desk
from filedesk.__main__ import Server
from filedesk.api import create_app
from filedesk.settings import Settings
from prerequisite import missing

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

EXAMPLE = Path(__file__).parent.parent


@pytest.fixture(params=["uring", "epoll"])
def driver(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    if name == "uring" and (found := ringloop.backend_info())["driver"] != "uring":
        missing(f"io_uring cannot be used: {found['reason']}")
    return name


@pytest.fixture
def run(driver: str) -> Iterator[Callable[..., Any]]:
    """Run a coroutine on a loop of that driver; a hang fails."""
    with asyncio.Runner(loop_factory=lambda: ringloop.EventLoop(driver)) as runner:
        yield lambda main: runner.run(asyncio.wait_for(main, 60))


@pytest.fixture
def serve(tmp_path: Path) -> Callable[..., Any]:
    """`async with serve() as desk`, with other settings if given."""

    @asynccontextmanager
    async def serving(**settings: Any) -> AsyncIterator[Desk]:
        app = create_app(Settings(**{"folder": str(tmp_path), **settings}))
        server = Server(app, "127.0.0.1", 0)
        task = asyncio.create_task(server.serve())
        while not server.started:
            assert not task.done(), "the server did not start"
            await asyncio.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        try:
            async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
                yield Desk(session)
        finally:
            app.state.services.live.stop()
            server.should_exit = True
            await asyncio.wait_for(task, 20)

    return serving


class Process:
    """`python -m filedesk`."""

    def __init__(self, driver: str, *arguments: str) -> None:
        environment = os.environ | {"RINGLOOP_DRIVER": driver, "PYTHONPATH": str(EXAMPLE)}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "filedesk", *arguments],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self._process.stdout is not None
        self.greeting = self._process.stdout.readline()
        found = re.search(r"http://\S+(?=,)", self.greeting)
        self.url = found[0] if found else ""

    def end(self, signum: int) -> tuple[int, str, float]:
        """Send a signal; the status, what it wrote to stderr, and the seconds that it took."""
        start = time.monotonic()
        self._process.send_signal(signum)
        _, errors = self._process.communicate(timeout=20)
        return self._process.returncode, errors, time.monotonic() - start

    def kill(self) -> None:
        """Whatever became of it, it ends."""
        if self._process.poll() is None:
            self.end(signal.SIGKILL)


@pytest.fixture
def start(driver: str, tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """Start a process, with the test's folder."""
    started: list[Process] = []

    def starting(*arguments: str) -> Process:
        process = Process(driver, *arguments, "--folder", str(tmp_path))
        started.append(process)
        assert process.greeting, process.end(signal.SIGTERM)
        return process

    yield starting
    for process in started:
        process.kill()
