"""Waiting for what comes by itself, with an end to the patience."""

from __future__ import annotations

import gc
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

TIMEOUT_S = 20


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait for what no event tells, and for what garbage collection brings about."""
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that"
        gc.collect()
        time.sleep(0.001)
