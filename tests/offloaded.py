"""What the tests of ringloop.offload hand to threads, processes and clusters.

Works in a subinterpreter, too: there ringloop is a stand-in with `offload` alone.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any, NoReturn

from ringloop.offload import cancelled, report

if TYPE_CHECKING:
    from pathlib import Path

TIMEOUT_S = 20


def square(x: int) -> int:
    return x * x


def same(value: object) -> object:
    return value


def pid() -> int:
    return os.getpid()


def pid_after(delay_s: float) -> int:
    time.sleep(delay_s)
    return os.getpid()


def sleep(delay_s: float) -> None:
    time.sleep(delay_s)


def pid_when_there_is(path: Path) -> int:
    """For as long as the test likes."""
    report("begun")
    deadline = time.monotonic() + TIMEOUT_S
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return os.getpid()


def touch(path: Path) -> None:
    path.touch()


def ready_on(dask_worker: Any) -> int:
    """How many calls a worker of Dask has that wait for a thread."""
    return len(dask_worker.state.ready)


def report_pid_and_sleep() -> None:
    report(os.getpid())
    time.sleep(TIMEOUT_S)


def report_pid_and_hold_the_gil() -> None:
    report(os.getpid())
    re.match(r"(a+)+$", "a" * 60 + "b")


def count(n: int) -> str:
    for i in range(n):
        report(i)
    return "counted"


def until_cancelled() -> str:
    report("begun")
    deadline = time.monotonic() + TIMEOUT_S
    while not cancelled():
        assert time.monotonic() < deadline
        time.sleep(0.001)
    return "noticed"


def fail(message: str) -> NoReturn:
    raise LookupError(message)


class NoErrors(Exception):  # noqa: N818 - a collection, and empty: false
    def __len__(self) -> int:
        return 0


def fail_with_no_errors() -> NoReturn:
    raise NoErrors


class TwoArgumentsError(Exception):
    """Pickles, but cannot be loaded again: its arguments are not those of __init__."""

    def __init__(self, a: int, b: int) -> None:
        super().__init__(f"{a} and {b}")


def fail_with_two_arguments() -> NoReturn:
    raise TwoArgumentsError(1, 2)


def give_a_lambda() -> object:
    return lambda: None


def die(signal_number: int) -> None:
    os.kill(os.getpid(), signal_number)
    signal.pause()


def leave(status: int) -> None:
    os._exit(status)


def leave_a_child_behind() -> None:
    """Die, while a child has the sockets and pipes of this process and lives on."""
    child = os.fork()
    if child == 0:
        time.sleep(3)
        os._exit(0)
    report(child)
    os.kill(os.getpid(), signal.SIGKILL)


def spawn_a_process() -> str:
    done = subprocess.run([sys.executable, "-c", "print(1)"], capture_output=True, check=True)
    return done.stdout.decode().strip()
