"""Which driver to use, found by trying, and the words for why not io_uring."""

from __future__ import annotations

import errno
import os
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ringloop._driver.epoll import EpollDriver
from ringloop._driver.self_test import self_test
from ringloop._driver.uring import UringDriver

if TYPE_CHECKING:
    from ringloop._driver.base import Driver

NAMES = ("auto", "uring", "epoll")


def _explain(error: OSError) -> str:
    """One sentence for a failed set-up, with the way out where there is one."""
    release = os.uname().release
    if error.errno == errno.ENOSYS:
        return "this kernel has no io_uring, or a seccomp filter hides it (ENOSYS)"
    if error.errno == errno.EPERM:
        try:
            disabled = Path("/proc/sys/kernel/io_uring_disabled").read_text().strip()
        except OSError:
            disabled = "0"
        if disabled in ("1", "2"):
            return (
                f"io_uring is disabled by the sysctl kernel.io_uring_disabled={disabled}; "
                "an administrator can set it to 0"
            )
        return (
            "io_uring is blocked (EPERM), as container runtimes do by default; "
            "allow io_uring_setup, io_uring_enter and io_uring_register in the seccomp profile"
        )
    if error.errno == errno.EINVAL:
        return f"Linux {release} is too old: ringloop uses io_uring from 6.1 on"
    if error.errno == errno.ENOMEM:
        return "no memory for the rings (ENOMEM): raise the limit of locked memory (ulimit -l)"
    number = error.errno or 0
    return (
        f"io_uring does not work here: {os.strerror(number)} ({error.filename or error.strerror})"
    )


@lru_cache(maxsize=1)
def _self_tested() -> str | None:
    missing = self_test()
    return f"this kernel's io_uring lacks {', '.join(missing)}" if missing else None


def why_not_uring() -> str | None:
    """Why io_uring cannot be used, in a sentence; None if it can.

    The self-test is made once a process, but where it fails it is made again the
    next time: a shortage of descriptors or memory passes.
    """
    try:
        return _self_tested()
    except OSError as error:
        return _explain(error)


def _wanted(driver: str) -> str:
    if driver == "auto":
        driver = os.environ.get("RINGLOOP_DRIVER") or "auto"
        where = "RINGLOOP_DRIVER"
    else:
        where = "driver"
    if driver not in NAMES:
        raise ValueError(f"{where} must be one of {', '.join(NAMES)}, not {driver!r}")
    return driver


def _choose(wanted: str) -> tuple[Driver, str | None]:
    """A driver, and why it is not io_uring's."""
    if wanted == "epoll":
        return EpollDriver(), "RINGLOOP_DRIVER or the program asks for epoll"
    reason = why_not_uring()
    if reason is None:
        try:
            return UringDriver(), None
        except OSError as error:  # blocked, or out of something, since the self-test
            reason = _explain(error)
    if wanted == "uring":
        raise RuntimeError(f"the io_uring driver cannot be used: {reason}")
    return EpollDriver(), reason


def open_driver(driver: str | Driver) -> Driver:
    """The driver of a new loop. RuntimeError if "uring" is asked for and cannot work."""
    if not isinstance(driver, str):
        return driver
    return _choose(_wanted(driver))[0]


def backend_info() -> dict[str, Any]:
    """The drivers' part of `ringloop.backend_info`."""
    wanted = _wanted("auto")
    found, reason = _choose(wanted)
    return {
        "driver": found.name,
        "requested": wanted,
        "reason": reason,
        "kernel": os.uname().release,
        "features": found.features(),
    }
