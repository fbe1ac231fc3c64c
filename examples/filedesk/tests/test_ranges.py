"""The Range header."""

from __future__ import annotations

import pytest

from filedesk.ranges import RangeError, parse


@pytest.mark.parametrize(
    ("header", "found"),
    [
        (None, None),
        ("bytes=0-9", (0, 10)),
        ("bytes=0-0", (0, 1)),
        ("bytes=90-", (90, 100)),
        ("bytes=90-1000", (90, 100)),
        ("bytes=-10", (90, 100)),
        ("bytes=-1000", (0, 100)),
        ("bytes=-", None),
        ("bytes=9-0", None),
        ("bytes=0-1,5-6", None),
        ("lines=0-1", None),
        ("bytes=a-b", None),
        (f"bytes=-{'9' * 5000}", None),
    ],
)
def test_what_is_asked_for(header: str | None, found: tuple[int, int] | None) -> None:
    assert parse(header, 100) == found


@pytest.mark.parametrize("header", ["bytes=100-", "bytes=100-200", "bytes=-0"])
def test_nothing_is_there(header: str) -> None:
    with pytest.raises(RangeError):
        parse(header, 100)


def test_an_empty_file_has_no_range() -> None:
    with pytest.raises(RangeError):
        parse("bytes=0-", 0)
