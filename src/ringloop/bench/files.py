"""Files: ringloop.fs beside synchronous code, aiofiles, an executor, and C as the limit.

    python -m ringloop bench --cell files --rounds 5

Each row is measured in rounds, and a round runs every peer once, in an order that
rotates. Each peer has a process of its own (`file_peers.py`). Ratios are taken within
a round, as the machine changes between them; shown are medians, lowest and highest. At
the end stands what `ringloop.fs` is to reach, and whether it does.

The files are temporary ones, in the folder that TMPDIR names.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from ringloop.bench import compiler, file_peers, file_words, machine, run
from ringloop.bench.file_peers import LATE, ROWS
from ringloop.bench.results import NO_DIRECT, LateRound, Results

if TYPE_CHECKING:
    import argparse

CELL = "files"
C_URING = "c-uring"
OURS = "ringloop-uring"
PEERS = ("sync", C_URING, OURS, "ringloop-epoll", "aiofiles", "executor", "executor-64")
LATE_MS = 20
# Row, peer, and at least how many times its rate.
BARS = (
    ("small", "aiofiles", 10),
    ("small", "sync", 1),
    ("read_many", "sync", 1.5),
    ("pread", "executor", 10),
    ("chunks", "aiofiles", 4),
    ("chunks", "sync", 0.7),
    ("lines", "aiofiles", 20),
    ("lines", "sync", 0.5),
    ("writes", "aiofiles", 20),
    ("writes", "sync", 0.5),
    ("fsync", "executor", 1),
    ("fsync", "executor-64", 1),
    ("direct", C_URING, 0.9),
)
TIMEOUT_S = 120
SMALL_FILES, SMALL_BYTES = 10_000, 4096
BIG_BYTES = 64 << 20
TEXT_BYTES = 100 << 20

Rates = dict[str, dict[str, list[float]]]


def prepare(folder: Path, scale: int) -> None:
    """The files to read; they are in the page cache afterwards."""
    (folder / "small").mkdir()
    for i in range(SMALL_FILES // scale):
        (folder / "small" / str(i)).write_bytes(os.urandom(SMALL_BYTES))
    (folder / "big").write_bytes(os.urandom(BIG_BYTES // scale))
    with (folder / "text").open("w") as text:
        written = 0
        while written < TEXT_BYTES // scale:
            written += text.write("".join("x" * (19 + i % 120) + "\n" for i in range(1000)))


def _in_c(row: str, folder: Path, new: str) -> list[str] | None:
    """The command that does in C what the row is about; new files go to `new`."""
    small, big, text = (str(folder / name) for name in ("small", "big", "text"))
    many, in_order = "files_uring", "files_in_order"
    count = len(list(Path(small).iterdir()))
    opened = (many, "open", small, file_peers.BLOCK, file_peers.TASKS, count)
    commands: dict[str, tuple[object, ...]] = {
        "small": opened,
        "read_many": opened,
        "pread": (many, "cached", big, file_peers.BLOCK, file_peers.TASKS, file_peers.PREADS),
        "direct": (many, "direct", big, file_peers.BLOCK, file_peers.TASKS, file_peers.DIRECT),
        "chunks": (in_order, "chunks", big, file_peers.CHUNK),
        "lines": (in_order, "lines", text),
        "writes": (in_order, "writes", folder / "written", len(file_peers.LINE), file_peers.WRITES),
        "fsync": (many, "fsync", new, len(file_peers.LINE), file_peers.TASKS, file_peers.SYNCED),
    }
    if row not in commands:
        return None
    program, *arguments = commands[row]
    return [str(compiler.build()[str(program)]), *map(str, arguments)]


def measure(peer: str, row: str, folder: Path) -> Any:
    """What `file_peers.py` prints: None if this peer has no such row."""
    # A folder for each peer's new files, and nothing is removed before the end: ext4 without
    # a journal is slow to create for minutes after others were removed, which would say more
    # of the peers that came before.
    new = tempfile.mkdtemp(prefix="new-", dir=folder)
    if peer == C_URING:
        program = _in_c(row, folder, new)
        return float(subprocess.check_output(program, text=True)) if program else None
    command = [sys.executable, "-P", str(Path(__file__).with_name("file_peers.py"))]
    done = subprocess.run(
        [*command, peer, row, str(folder), new],
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{peer}, {row}: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout)


def measure_row(row: str, rounds: int, folder: Path, results: Results) -> None:
    """All rounds of all peers that have it, into the results."""
    rates: dict[str, list[float]] = {peer: [] for peer in PEERS}
    for number in range(rounds):
        for i in range(len(PEERS)):
            peer = PEERS[(i + number) % len(PEERS)]
            found = measure(peer, row, folder)
            if found is not None and row == LATE:
                rates[peer].append(found.pop(LATE)["p999_ms"])
                results.late += [
                    LateRound(beside, peer, number, **late) for beside, late in found.items()
                ]
            elif found is not None:
                rates[peer].append(found)
    results.files[row] = {peer: found for peer, found in rates.items() if found}


def show(console: Console, row: str, rates: dict[str, list[float]]) -> None:
    base = next(iter(rates))  # synchronous code, or C
    table = Table(title=f"{row}: {ROWS[row]}", title_justify="left")
    middle = "ms" if row == LATE else "a second"
    for heading in ("", middle, "lowest", "highest", f"of {base}"):
        table.add_column(heading, justify="left" if not heading else "right")
    for peer, found in rates.items():
        ratios = [a / b for a, b in zip(found, rates[base], strict=True)]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        values = (statistics.median(found), min(found), max(found))
        digits = file_words.digits(row)
        table.add_row(peer, *[f"{value:,.{digits}f}" for value in values], spread)
    console.print(table)


def show_late(console: Console, results: Results) -> None:
    peers, rows = file_words.late_by_row(results)
    table = Table(title=file_words.LATE_BY_ROW, title_justify="left")
    for heading in ("", *peers):
        table.add_column(heading, justify="right" if heading else "left")
    for row, figures in rows.items():
        table.add_row(row, *figures)
    console.print(table)


def show_bars(console: Console, results: Rates) -> None:
    """What is to be reached by ringloop-uring, and what was."""
    table = Table(title=f"{OURS}, medians", title_justify="left")
    for heading in ("row", "at least", "measured", ""):
        table.add_column(heading, justify="right" if heading == "measured" else "left")
    for row, peer, least in BARS:
        if row not in results:
            table.add_row(row, f"{least} of {peer}", "not run", "")
            continue
        pairs = zip(results[row][OURS], results[row][peer], strict=True)
        ratio = statistics.median(a / b for a, b in pairs)
        table.add_row(row, f"{least} of {peer}", f"{ratio:.2f}", "" if ratio >= least else "MISSED")
    ours, theirs = (statistics.median(results[LATE][peer]) for peer in (OURS, "aiofiles"))
    missed = ours > LATE_MS or ours > theirs
    wanted = f"at most {LATE_MS} ms and aiofiles' {theirs:.1f}"
    table.add_row(LATE, wanted, f"{ours:.1f}", "MISSED" if missed else "")
    console.print(table)


def benchmark(args: argparse.Namespace) -> int:
    """Measure, show, save; the exit status."""
    try:
        if args.peer:
            raise ValueError("--cell files takes no --peer: its bars are ratios between its peers")
        rounds = run.rounds_asked(args)
        output = run.output_asked(args, "files")
    except ValueError as error:
        print(f"ringloop bench: {error}", file=sys.stderr)
        return 2
    console = Console(width=None if sys.stdout.isatty() else 120)
    results = Results(machine.describe(), {"rounds": rounds})
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder, 20 if args.smoke else 1)
        results.file_system = machine.file_system(folder)
        if results.file_system:
            console.print(file_words.place(results.file_system))
        rows = list(ROWS)
        if why := file_peers.why_not_direct(str(folder / "big")):
            rows.remove("direct")
            results.not_run[NO_DIRECT] = f"O_DIRECT is refused here: {why}"
            console.print(f"The row direct is not run: O_DIRECT is refused here: {why}.")
        for row in rows:
            measure_row(row, rounds, folder, results)
            show(console, row, results.files[row])
    show_late(console, results)
    show_bars(console, results.files)
    results.save(output)
    console.print(f"Results: {output}")
    return 0
