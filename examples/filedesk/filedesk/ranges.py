"""The Range header of HTTP, for one range."""

from __future__ import annotations

import re


class RangeError(ValueError):
    """There is nothing in that range."""


def parse(header: str | None, size: int) -> tuple[int, int] | None:
    """Start and stop of the bytes asked for; None if it is all of them.

    What is not understood, or asks for several ranges, is ignored, as RFC 9110 wants it. Raise
    RangeError if the range lies outside.
    """
    found = re.fullmatch(r"bytes=\s*([0-9]{0,18})-([0-9]{0,18})\s*", header or "")
    if found is None or not (found[1] or found[2]):
        return None
    if not found[1]:
        start, stop = max(0, size - int(found[2])), size
    else:
        start, stop = int(found[1]), min(size, int(found[2]) + 1 if found[2] else size)
        if found[2] and int(found[2]) < start:
            return None
    if start >= stop:
        raise RangeError(header)
    return start, stop
