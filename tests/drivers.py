"""The drivers that tests run on, by name."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ringloop._driver.epoll import EpollDriver
from ringloop._driver.uring import UringDriver
from ringloop.testing.faulty import FaultyDriver

if TYPE_CHECKING:
    from ringloop._driver.base import Driver

REAL: tuple[str, ...] = ("uring", "epoll")
# Every queue and buffer so small that it overflows; short, late and split I/O.
FAULTY: tuple[str, ...] = ("tiny-uring", "faulty-1", "faulty-2")


def make(name: str) -> Driver:
    if name == "uring":
        return UringDriver()
    if name == "tiny-uring":
        return UringDriver(sq_entries=4, cq_entries=8, buffers=4, buffer_size=64)
    if name == "epoll":
        return EpollDriver()
    return FaultyDriver(seed=int(name.removeprefix("faulty-")))
