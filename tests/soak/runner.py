"""The run: scenarios at random, some of them cancelled, and a look around between rounds."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import random
import sys
import tempfile
import threading
import traceback
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import drivers
import ringloop
from certificates import Contexts
from soak import others, streams
from soak.display import Board
from soak.health import Health
from soak.scene import EXECUTOR_THREADS, EndedEarly, Scene, Tally, Tools
from soak.talk import BROKEN, relevant
from soak.watchdog import Watchdog, give_up

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Scenario = Callable[[Scene], Awaitable[None]]

CONCURRENT = 16  # scenarios at the same time, each with some connections
ROUND_S = 4.0
ROUNDS_MIN = 4
CANCELLED = 0.12  # share of the scenarios
EXECUTOR_MAX = 4

# How often each is chosen, in comparison with the others.
SCENARIOS: dict[Scenario, int] = {
    streams.tcp: 8,
    streams.unix: 8,
    streams.tls: 5,
    streams.start_tls: 2,
    streams.pair: 6,
    others.datagrams: 3,
    others.sock_datagrams: 2,
    others.children: 2,
    others.pipes: 3,
    others.timers: 2,
    others.threads: 1,
    others.executor: 2,
    others.names: 1,
    others.signals: 1,
    others.other_loops: 1,
}

# asyncio's own write pipe takes readiness where there is none for the reader's end.
NEEDS_EXACT_READINESS = (others.children, others.pipes)


def scenarios_for(driver: str) -> dict[Scenario, int]:
    borrowed = ringloop.EventLoop._make_write_pipe_transport.__module__.startswith("asyncio")
    if driver.startswith("faulty") and borrowed:
        return {s: n for s, n in SCENARIOS.items() if s not in NEEDS_EXACT_READINESS}
    return SCENARIOS


@dataclass(frozen=True)
class Settings:
    driver: str
    seconds: float
    seed: int
    hang_after_s: float = 60.0


class Soak:
    """One run on one driver."""

    def __init__(self, settings: Settings, scenarios: dict[Scenario, int] | None = None) -> None:
        self.settings = settings
        self._scenarios = scenarios or scenarios_for(settings.driver)
        self._random = random.Random(settings.seed)
        self.tally = Tally()
        self._cut: set[asyncio.Task[None]] = set()
        self._tools: Tools
        self.health: Health
        self.board = Board(self)

    def run(self) -> bool:
        """True if nothing was wrong. The rest is in `tally`."""
        loop = ringloop.EventLoop(drivers.make(self.settings.driver))
        loop.set_exception_handler(self.tally.on_exception)
        executor = concurrent.futures.ThreadPoolExecutor(EXECUTOR_MAX, EXECUTOR_THREADS)
        loop.set_default_executor(executor)
        try:
            with tempfile.TemporaryDirectory() as directory, _Complaints(self.tally):
                folder = Path(directory)
                tls = Contexts(folder)
                self._tools = Tools(
                    self.settings.driver, loop, self.tally, folder, tls.server, tls.client
                )
                with self.board:
                    loop.run_until_complete(self._main(loop))
                    loop.run_until_complete(loop.shutdown_default_executor())
        finally:
            loop.close()
        return not self.tally.failures

    async def _main(self, loop: ringloop.EventLoop) -> None:
        watchdog = Watchdog(loop, self.settings.hang_after_s)
        self.health = Health(loop)
        end = loop.time() + self.settings.seconds
        round_s = min(ROUND_S, self.settings.seconds / ROUNDS_MIN)
        while loop.time() < end and not self.tally.failures:
            await self._round(loop, min(end, loop.time() + round_s))
            if not self.tally.failures:
                self.tally.failures += await self.health.look()
            self.board.line()
        if not self.tally.failures:
            self.tally.failures += self.health.trends()
        watchdog.stop()

    async def _round(self, loop: ringloop.EventLoop, until: float) -> None:
        running: set[asyncio.Task[None]] = set()
        while True:
            busy = loop.time() < until and not self.tally.failures
            while busy and len(running) < CONCURRENT:
                running.add(self._start(loop))
            if not running:
                return
            done, running = await asyncio.wait(
                running, timeout=0.1, return_when=asyncio.FIRST_COMPLETED
            )
            for task in done:
                self._ended(task)
            self.board.update()
            if loop.time() > until + self.settings.hang_after_s:
                names = ", ".join(task.get_name() for task in running)
                give_up(f"these did not end: {names}", loop)

    def _start(self, loop: ringloop.EventLoop) -> asyncio.Task[None]:
        scenario = self._random.choices(
            list(self._scenarios), weights=list(self._scenarios.values())
        )[0]
        name = getattr(scenario, "__name__", repr(scenario))
        scene = Scene(name, self._random.getrandbits(32), self._tools)
        task = loop.create_task(_play(scenario, scene), name=f"{name} (seed {scene.seed})")
        self.tally.started += 1
        if self._random.random() < CANCELLED:
            self._cut.add(task)
            loop.call_later(self._random.choice((0, 0.001, 0.01, 0.05)), task.cancel)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        cut = task in self._cut
        self._cut.discard(task)
        name = task.get_name().partition(" ")[0]
        self.tally.by_scenario[name] = self.tally.by_scenario.get(name, 0) + 1
        self.tally.finished += 1
        if task.cancelled():
            self.tally.cancelled += 1
            if not cut:
                self.tally.fail(f"{task.get_name()} was cancelled by nobody")
            return
        exc = task.exception()
        # What is cut closes its server before its clients hear that they are cancelled, too.
        tolerated = (*BROKEN, EndedEarly)
        if exc is None or (cut and all(isinstance(e, tolerated) for e in relevant(exc))):
            return
        self.tally.fail(f"{task.get_name()}\n" + "".join(traceback.format_exception(exc)))


async def _play(scenario: Scenario, scene: Scene) -> None:
    await scenario(scene)


class _Complaints(logging.Handler):
    """Whatever Python has to complain about meanwhile is a failure."""

    def __init__(self, tally: Tally) -> None:
        super().__init__(logging.ERROR)
        self._tally = tally

    def emit(self, record: logging.LogRecord) -> None:
        self._tally.fail(f"logged: {self.format(record)}")

    def _unraisable(self, what: Any) -> None:
        lines = traceback.format_exception(what.exc_type, what.exc_value, what.exc_traceback)
        self._tally.fail(f"{what.err_msg} {what.object!r}\n" + "".join(lines))

    def _in_thread(self, what: Any) -> None:
        lines = traceback.format_exception(what.exc_type, what.exc_value, what.exc_traceback)
        self._tally.fail(f"exception in {what.thread!r}\n" + "".join(lines))

    def _warning(self, message: Warning | str, *_where: object) -> None:
        self._tally.fail(f"warning: {message!r}")

    def __enter__(self) -> None:
        self._hooks = sys.unraisablehook, threading.excepthook
        sys.unraisablehook, threading.excepthook = self._unraisable, self._in_thread
        self._warnings = warnings.catch_warnings()
        self._warnings.__enter__()
        warnings.simplefilter("always", ResourceWarning)
        warnings.showwarning = self._warning  # type: ignore[assignment]
        logging.getLogger("asyncio").addHandler(self)

    def __exit__(self, *_exc: object) -> None:
        logging.getLogger("asyncio").removeHandler(self)
        self._warnings.__exit__(None, None, None)
        sys.unraisablehook, threading.excepthook = self._hooks
