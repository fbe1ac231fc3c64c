"""The processes in which the tests run: started, watched, cut off, and what they said."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import threading
    from collections.abc import Iterator

CHILD = Path(__file__).with_name("child.py")
POLL_S = 0.05
STACKS_GRACE_S = 10.0  # for faulthandler to write the stacks, before SIGKILL
TAIL_LINES = 60
# After a test that hung or crashed the rest of its class goes on in a new process, so that
# one bad test does not hide the others; a class that keeps failing so is given up.
MAX_PROCESSES = 6


@dataclass(frozen=True)
class Settings:
    """What all children of one run have in common."""

    loop: str
    driver: str | None
    package: str
    hang_timeout_s: float
    stop: threading.Event


@dataclass
class Test:
    """What became of one test. Outcomes: pass, fail, error, skip, hang, crash, not run."""

    id: str
    outcome: str = "not run"
    seconds: float = 0.0
    detail: str = "never ran"
    expected: str | None = None  # the reason in expected.toml, if it was to fail


@dataclass
class ClassRun:
    """One test class: its tests, the loops it made, and problems that are of no one test."""

    module: str
    name: str
    tests: list[Test]
    loops_made: int = 0
    stock_loops_made: int = 0
    complete: bool = False  # one process went through all of it
    problems: list[str] = field(default_factory=list)

    @property
    def id(self) -> str:
        """The id of the class as expected.toml has it."""
        return f"{self.module}.{self.name}"


@dataclass
class Ending:
    """How a process ended: in words, or None where it ended well, and what it said."""

    trouble: str | None
    hung: bool
    events: list[dict[str, Any]]
    output: str


def run_class(run: ClassRun, settings: Settings) -> ClassRun:
    """Run the tests of a class, in one process unless some hang or crash; fills `run` in."""
    tests = {test.id.rsplit(".", 1)[1]: test for test in run.tests}
    remaining = list(tests)
    for attempt in range(MAX_PROCESSES):
        if settings.stop.is_set() or not remaining:
            break
        ending = run_child(settings, "run", run.module, run.name, *remaining)
        skipped = None
        stuck = None
        for event in ending.events:
            match event["event"]:
                case "start":
                    stuck = event["test"]
                case "result":
                    test = tests[event["test"]]
                    test.outcome = event["outcome"]
                    test.seconds = event["seconds"]
                    test.detail = event["detail"]
                    stuck = None
                    remaining.remove(event["test"])
                case "class":
                    skipped = event.get("skip", skipped)
                    if "problem" in event:
                        run.problems.append(event["problem"])
                case "end":
                    run.loops_made += event["made"]
                    run.stock_loops_made += event["stock"]
        if ending.trouble is None:
            run.complete = attempt == 0
            if skipped is not None:
                for name in remaining:
                    tests[name].outcome = "skip"
                    tests[name].detail = skipped
            break
        trouble = f"{ending.trouble}; its last output:\n{ending.output}"
        if stuck is None:  # before the first test, between two, or after the last
            run.problems.append(trouble)
            break
        tests[stuck].outcome = "hang" if ending.hung else "crash"
        tests[stuck].detail = trouble
        remaining.remove(stuck)
    return run


def run_child(settings: Settings, *arguments: str) -> Ending:
    """Run child.py in a directory of its own, and cut it off when nothing happens any more."""
    with _scratch() as scratch:
        results = scratch / "results"
        results.touch()
        cwd = scratch / "cwd"
        cwd.mkdir()
        with (scratch / "output").open("w+b") as output:
            process = subprocess.Popen(
                [
                    sys.executable,
                    CHILD,
                    settings.loop,
                    results,
                    settings.package,
                    *arguments,
                ],
                cwd=cwd,
                env=_environment(settings),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                process_group=0,  # so that what the tests start can be ended with it
            )
            reason_cut = _watch(process, results, settings)
            output.seek(0)
            text = output.read().decode(errors="replace")
        events = [json.loads(line) for line in results.read_bytes().splitlines()]
    trouble = reason_cut or _death(process.returncode)
    if trouble is None and (not events or events[-1]["event"] != "end"):
        trouble = "the process exited before its tests were done"
    tail = "\n".join(text.splitlines()[-TAIL_LINES:])
    return Ending(trouble, reason_cut is not None, events, tail)


def _watch(process: subprocess.Popen[bytes], results: Path, settings: Settings) -> str | None:
    """Wait for the end of the process, which is reaped; says why it was cut off, if it was.

    The clock starts anew with every event, so it is the single test that is timed.
    """
    said = 0
    deadline = time.monotonic() + settings.hang_timeout_s
    reason = None
    while not _has_exited(process.pid):
        size = results.stat().st_size
        if size != said:
            said = size
            deadline = time.monotonic() + settings.hang_timeout_s
        if settings.stop.is_set():
            reason = "the run was interrupted"
        elif time.monotonic() > deadline:
            reason = f"cut off: nothing happened for {settings.hang_timeout_s:g} s"
        if reason:
            _cut_off(process.pid)
            break
        time.sleep(POLL_S)
    # The child is not reaped yet, so the number of its group cannot have passed to others.
    # SIGTERM leaves multiprocessing's resource tracker alive, to do its clean-up and end.
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL if reason else signal.SIGTERM)
    process.wait()
    return reason


def _cut_off(pid: int) -> None:
    """End a hung child, which first writes the stacks of its threads (faulthandler)."""
    os.kill(pid, signal.SIGABRT)
    deadline = time.monotonic() + STACKS_GRACE_S
    while time.monotonic() < deadline and not _has_exited(pid):
        time.sleep(POLL_S)


def _has_exited(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _death(returncode: int) -> str | None:
    if returncode == 0:
        return None
    if returncode < 0:
        return f"the process died of {signal.Signals(-returncode).name}"
    return f"the process exited with status {returncode}"


def _environment(settings: Settings) -> dict[str, str]:
    """The caller's, but for what would change how asyncio or the loop runs."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("PYTHONASYNCIODEBUG", "PYTHONDEVMODE", "RINGLOOP_DRIVER")
    }
    if settings.driver is not None:
        environment["RINGLOOP_DRIVER"] = settings.driver
    return environment


@contextlib.contextmanager
def _scratch() -> Iterator[Path]:
    path = tempfile.mkdtemp(prefix="conformance-")
    try:
        yield Path(path)
    finally:
        # What a test left running may still write here.
        shutil.rmtree(path, ignore_errors=True)
