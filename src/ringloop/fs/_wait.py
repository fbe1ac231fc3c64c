"""Small waits of file operations."""

from __future__ import annotations

import types
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Generator


@types.coroutine
def one_turn() -> Generator[None, None, None]:
    """Let the loop go round once."""
    yield
