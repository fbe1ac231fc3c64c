"""Latency at half load: requests come at a fixed rate, whether the server is ready or not.

Each peer gets half of what it did itself in the closed loop, and then all get the same
rate, half of what the slowest did. A latency counts from the time the request was due.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ringloop.bench import processes
from ringloop.bench.processes import PeerError
from ringloop.bench.results import OpenRound

if TYPE_CHECKING:
    from ringloop.bench.cells import Cell
    from ringloop.bench.peers import Peer
    from ringloop.bench.processes import Bench
    from ringloop.bench.results import Results

SHARE = 0.5
"""Of the closed loop's rate."""


def rates(results: Results, cell: Cell, peers: list[Peer]) -> dict[str, tuple[float, float]]:
    """For each peer that can do the cell: its own rate, and the common one."""
    found = {}
    for peer in peers:
        capacity = results.spread(str(cell), peer.name, lambda r: r.requests_per_s)
        if capacity:
            found[peer.name] = capacity.median * SHARE
    common = min(found.values(), default=0)
    return {name: (own, common) for name, own in found.items()}


def measure(
    bench: Bench, cell: Cell, peer: Peer, number: int, rate: float, common: bool
) -> OpenRound:
    found: dict[str, Any] = {}
    try:
        with processes.server(bench, peer, cell) as (pid, port):
            found = processes.load(bench, cell, pid, port, "--rate", str(rate))
            for name in ("answers", "load_cpu_seconds", "resent"):
                found.pop(name, None)
    except PeerError as error:
        found["error"] = str(error)
    return OpenRound(str(cell), peer.name, number, rate, common, **found)
