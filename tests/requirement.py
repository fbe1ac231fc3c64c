"""What a test does without something that it needs."""

from __future__ import annotations

import os

import pytest


def missing(reason: str) -> None:
    """Skip, or fail in CI."""
    if os.environ.get("CI"):
        pytest.fail(f"CI must test this, but {reason}")
    pytest.skip(reason)
