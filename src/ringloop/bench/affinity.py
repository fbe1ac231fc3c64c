"""Which core does what: the server has one to itself, load and harness stay off it."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True)
class Cores:
    server: int
    load: int
    harness: frozenset[int]

    @property
    def shared(self) -> bool:
        """There is only one core: throughput and latency then say little."""
        return self.server == self.load


def _siblings(core: int) -> set[int]:
    """The hardware threads of the same physical core."""
    path = Path(f"/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list")
    siblings = {core}
    with contextlib.suppress(OSError):
        for part in path.read_text().strip().split(","):
            first, _, last = part.partition("-")
            siblings.update(range(int(first), int(last or first) + 1))
    return siblings


def choose() -> Cores:
    """From the cores that this process may use: two physical ones if there are."""
    allowed = os.sched_getaffinity(0)
    server = max(allowed)  # core 0 often has the interrupts
    elsewhere = allowed - _siblings(server) or allowed - {server} or allowed
    load = max(elsewhere)
    return Cores(server, load, frozenset(elsewhere - {load} or {load}))


@contextlib.contextmanager
def pinned(cores: frozenset[int]) -> Iterator[None]:
    """Bind this thread, and what it starts, to `cores`; put it back afterwards."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
