"""A hang ends the process, with the stacks of its threads and tasks."""

from __future__ import annotations

import asyncio
import faulthandler
import os
import sys
import threading
import time
from typing import Any, NoReturn

HANG_EXIT = 3
BEAT_S = 0.2


def stack(task: asyncio.Task[Any]) -> list[str]:
    """Where a task waits: its coroutine, and what each awaits in turn (the Task's own
    get_stack() ends with the first)."""
    lines = []
    awaited: Any = task.get_coro()
    while getattr(awaited, "cr_code", None) is not None:
        if awaited.cr_frame is not None:
            where = f"{awaited.cr_code.co_filename}:{awaited.cr_frame.f_lineno}"
            lines.append(f"  {where} in {awaited.cr_code.co_qualname}")
        awaited = awaited.cr_await
    lines.append(f"  {awaited!r}")
    return lines


def give_up(reason: str, loop: asyncio.AbstractEventLoop) -> NoReturn:
    """Print all stacks and end the process: what hangs would hang its clean-up, too."""
    sys.stdout.flush()
    print(f"HANG: {reason}", file=sys.stderr)
    sys.stderr.flush()
    faulthandler.dump_traceback(all_threads=True)
    for task in asyncio.all_tasks(loop):
        print(f"\n{task!r}\n" + "\n".join(stack(task)), file=sys.stderr)
    sys.stderr.flush()
    os._exit(HANG_EXIT)


class Watchdog:
    """Notices when the loop does not come back from a callback or a wait."""

    def __init__(self, loop: asyncio.AbstractEventLoop, limit_s: float) -> None:
        self._loop = loop
        self._limit_s = limit_s
        self._last = time.monotonic()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="soak-watchdog", daemon=True)
        self._beat()
        self._thread.start()

    def _beat(self) -> None:
        self._last = time.monotonic()
        if not self._stopped.is_set():
            self._loop.call_later(BEAT_S, self._beat)

    def _watch(self) -> None:
        while not self._stopped.wait(BEAT_S):
            silence = time.monotonic() - self._last
            if silence > self._limit_s:
                give_up(f"the loop ran no timer for {silence:.0f} s", self._loop)

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join()
