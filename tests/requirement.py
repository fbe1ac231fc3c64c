"""What a test does without something that it needs."""

from __future__ import annotations

import os
from typing import NoReturn

import pytest

from ringloop._driver.choose import why_not_uring


def missing(reason: str) -> NoReturn:
    """Skip, or fail in CI."""
    if os.environ.get("CI"):
        pytest.fail(f"CI must test this, but {reason}")
    pytest.skip(reason)


def needs_uring() -> None:
    if (reason := why_not_uring()) is not None:
        missing(reason)
