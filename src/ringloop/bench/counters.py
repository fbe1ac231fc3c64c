"""What does not depend on the time of day: system calls and instructions per request.

Each server runs twice under the tool, for a number of requests and for more of them; the
difference is what the further requests took, without start, connections and end. The tools
slow the server down many times, so it always finds all connections waiting for it: these are
figures of a saturated server.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from ringloop.bench import processes
from ringloop.bench.processes import PeerError
from ringloop.bench.results import Count

if TYPE_CHECKING:
    from ringloop.bench.cells import Cell
    from ringloop.bench.peers import Peer
    from ringloop.bench.processes import Bench

STRACE = "strace"
VALGRIND = "valgrind"
FURTHER_REQUESTS = {STRACE: 4000, VALGRIND: 2000}
LIMITS = ("--warmup", "0", "--duration", "120", "--stall", "30")
RARE = 0.005
"""Fewer calls to a request than this are not listed by name."""


def missing() -> dict[str, str]:
    """What cannot be counted here, and why."""
    what = {STRACE: "system calls", VALGRIND: "instructions"}
    return {
        text: f"{tool} is not installed (Debian: apt install {tool})"
        for tool, text in what.items()
        if shutil.which(tool) is None
    }


def count(bench: Bench, cell: Cell, peer: Peer) -> Count:
    """Of one peer in one cell, with the tools that are there."""
    calls = instructions = None
    try:
        if shutil.which(STRACE):
            before, after, requests = _twice(bench, cell, peer, STRACE)
            found = difference(parse_strace(before), parse_strace(after))
            calls = {name: number / requests for name, number in found.items()}
        if shutil.which(VALGRIND):
            before, after, requests = _twice(bench, cell, peer, VALGRIND)
            instructions = (parse_callgrind(after) - parse_callgrind(before)) / requests
    except PeerError as error:
        return Count(str(cell), peer.name, error=str(error))
    calls_sum = None if calls is None else sum(calls.values())
    listed = {name: number for name, number in (calls or {}).items() if number >= RARE}
    return Count(str(cell), peer.name, calls_sum, listed, instructions)


def _twice(bench: Bench, cell: Cell, peer: Peer, tool: str) -> tuple[str, str, int]:
    """The tool's output after some requests and after more, and how many more there were."""
    some = 2 * cell.connections + 500
    before, answers_before = _run(bench, cell, peer, tool, some)
    after, answers_after = _run(bench, cell, peer, tool, some + FURTHER_REQUESTS[tool])
    return before, after, answers_after - answers_before


def _run(bench: Bench, cell: Cell, peer: Peer, tool: str, requests: int) -> tuple[str, int]:
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "output"
        if tool == STRACE:
            under = [STRACE, "-c", "-f", "-o", str(output), "--"]
        else:
            under = [VALGRIND, "--tool=callgrind", "-q", f"--callgrind-out-file={output}"]
        with processes.server(bench, peer, cell, under) as (pid, port):
            limits = (*LIMITS, "--max-requests", str(requests))
            report = processes.load(bench, cell, pid, port, *limits)
        if report["error"]:
            raise PeerError(f"under {tool}: {report['error']}")
        if not output.is_file():
            raise PeerError(f"{tool} counted nothing: it may not be allowed to trace processes")
        return output.read_text(), report["answers"]


def parse_strace(summary: str) -> dict[str, int]:
    """Calls by name, from the table of `strace -c`."""
    row = re.compile(r"\s*[\d.]+\s+[\d.]+\s+\d+\s+(\d+)\s+(?:\d+\s+)?([a-z]\w*)")
    found = (row.fullmatch(line) for line in summary.splitlines())
    return {match[2]: int(match[1]) for match in found if match and match[2] != "total"}


def parse_callgrind(profile: str) -> int:
    """Instructions, from the totals of a callgrind profile."""
    totals = re.findall(r"^(?:totals|summary): (\d+)", profile, re.MULTILINE)
    if not totals:
        raise PeerError("callgrind's profile has no totals")
    return int(totals[-1])


def difference(before: dict[str, int], after: dict[str, int]) -> dict[str, int]:
    return {name: number - before.get(name, 0) for name, number in after.items()}
