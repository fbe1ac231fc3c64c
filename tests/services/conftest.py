"""The servers that these tests start are in sessions of their own: nobody else ends them."""

from __future__ import annotations

import signal
from typing import NoReturn


def pytest_configure() -> None:
    signal.signal(signal.SIGTERM, interrupt)


def interrupt(*_signal: object) -> NoReturn:
    """Who stops the tests has them clean up; make sends the signal a second time."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise KeyboardInterrupt
