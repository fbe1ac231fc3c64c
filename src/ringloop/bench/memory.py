"""Memory of a server's process: at rest, and for each connection that is open and idle.

Each connection has had one answer before. What the kernel keeps for it is not counted: it
is the same for every loop.
"""

from __future__ import annotations

import resource
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ringloop.bench import processes
from ringloop.bench.cells import Cell
from ringloop.bench.processes import PeerError
from ringloop.bench.results import MemoryRound

if TYPE_CHECKING:
    from ringloop.bench.peers import Peer
    from ringloop.bench.processes import Bench

KINDS = {"TCP": "protocol", "TLS": "tls"}
MESSAGE_BYTES = 64
CONNECTIONS = 10_000
PROBE = 100
"""So many first, to see whether there is memory for all."""
MEMORY_SHARE = 0.3
"""Of what is free, that one server may take."""
OTHER_FDS = 200
SETTLE_S = 0.2


def cell(kind: str, connections: int) -> Cell:
    return Cell(KINDS[kind], connections, MESSAGE_BYTES)


def measure(bench: Bench, kind: str, peer: Peer, number: int, connections: int) -> MemoryRound:
    """With as many connections as asked for, or as the limits of fds and memory allow."""
    try:
        _, fds = resource.getrlimit(resource.RLIMIT_NOFILE)
        if fds != resource.RLIM_INFINITY:
            connections = min(connections, fds - OTHER_FDS)
        if connections > PROBE:
            before, after = _hold(bench, kind, peer, PROBE)
            each = max(1.0, (after - before) / PROBE)
            connections = min(connections, int(available_bytes() * MEMORY_SHARE / each))
        before, after = _hold(bench, kind, peer, connections)
    except PeerError as error:
        return MemoryRound(kind, peer.name, number, error=str(error))
    return MemoryRound(kind, peer.name, number, connections, before, (after - before) / connections)


def _hold(bench: Bench, kind: str, peer: Peer, connections: int) -> tuple[int, int]:
    """Resident bytes before there is any connection, and with all of them."""
    what = cell(kind, connections)
    with processes.server(bench, peer, what) as (pid, port):
        time.sleep(SETTLE_S)
        before = resident_bytes(pid)
        with processes.held(bench, what, port):
            time.sleep(SETTLE_S)
            return before, resident_bytes(pid)


def resident_bytes(pid: int) -> int:
    return _kilobytes(Path(f"/proc/{pid}/status"), "VmRSS") * 1024


def available_bytes() -> int:
    return _kilobytes(Path("/proc/meminfo"), "MemAvailable") * 1024


def _kilobytes(path: Path, name: str) -> int:
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise PeerError(f"{path} cannot be read: {error.strerror}") from error
    for line in lines:
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    raise PeerError(f"{path} does not tell {name}")
