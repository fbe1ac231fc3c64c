"""What the terminal and the page say alike of files: where they were, digits, lateness by row."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

from ringloop.bench.file_peers import LATE, ROWS

if TYPE_CHECKING:
    from ringloop.bench.results import Results

IN_MEMORY = ("tmpfs", "ramfs")
LATE_BY_ROW = (
    "How late the ticks were that fell due while a row ran, in ms: p99.9 (highest), and of how "
    "many ticks. Medians over the rounds, but for the highest; of up to 1,000 ticks the p99.9 is "
    "the latest"
)


def place(file_system: str) -> str:
    """Where the files were, and what that takes from the figures."""
    if file_system in IN_MEMORY:
        return (
            f"The files were on {file_system}: there is no disk behind it, so the rows of fsync "
            "and of O_DIRECT mean little."
        )
    return f"The files were on {file_system}."


def digits(row: str) -> int:
    """Of a row's figures, after the point."""
    return 1 if row == LATE else 0


def late_by_row(results: Results) -> tuple[list[str], dict[str, list[str]]]:
    """The peers, and for each row what stands below them."""
    peers = list(dict.fromkeys(r.peer for r in results.late))
    measured = {r.row for r in results.late}
    rows = {row: [_late(results, row, peer) for peer in peers] for row in ROWS if row in measured}
    return peers, rows


def _late(results: Results, row: str, peer: str) -> str:
    found = [r for r in results.late if (r.row, r.peer) == (row, peer)]
    if not found:
        return "-"
    p999_ms = statistics.median(r.p999_ms for r in found)
    highest_ms = max(r.max_ms for r in found)
    ticks = statistics.median(r.ticks for r in found)
    return f"{p999_ms:.1f} ({highest_ms:.1f}) of {ticks:.0f}"
