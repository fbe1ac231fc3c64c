"""The benchmark reads strace's and callgrind's output, and leaves out what starting took."""

from __future__ import annotations

import pytest

from ringloop.bench import counters
from ringloop.bench.processes import PeerError

STRACE = """\
% time     seconds  usecs/call     calls    errors syscall
------ ----------- ----------- --------- --------- ----------------
 52.10    0.081234          16      5003           sendto
 47.80    0.071234          14      5123       120 recvfrom
  0.10    0.000012           0        45         1 epoll_pwait2
------ ----------- ----------- --------- --------- ----------------
100.00    0.152480          15     10171       121 total
"""


def test_calls_are_read_with_and_without_errors() -> None:
    assert counters.parse_strace(STRACE) == {"sendto": 5003, "recvfrom": 5123, "epoll_pwait2": 45}


def test_of_calls_only_the_further_ones_count() -> None:
    before = {"sendto": 1003, "mmap": 80}
    after = {"sendto": 5003, "mmap": 80, "brk": 2}
    assert counters.difference(before, after) == {"sendto": 4000, "mmap": 0, "brk": 2}


@pytest.mark.parametrize(
    ("profile", "instructions"),
    [
        ("events: Ir\nsummary: 311\n\nfn=(1) main\n12 300\n\ntotals: 312\n", 312),
        ("events: Ir\nsummary: 311\n\nfn=(1) main\n12 300\n", 311),
    ],
)
def test_instructions_are_the_totals(profile: str, instructions: int) -> None:
    assert counters.parse_callgrind(profile) == instructions


def test_a_profile_without_totals_is_an_error() -> None:
    with pytest.raises(PeerError, match="no totals"):
        counters.parse_callgrind("events: Ir\n")


def test_a_missing_tool_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None if name == "strace" else f"/bin/{name}")
    assert counters.missing() == {
        "system calls": "strace is not installed (Debian: apt install strace)"
    }
