"""What `--page` measures when it is given no results, and putting together what it is given."""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from ringloop.bench import files, page, run
from ringloop.bench.results import Results

RUNS: list[dict[str, Any]] = [
    {
        "cell": ["protocol:64x1024", "readexactly:64x1024", "tls:32x1024"],
        "latency": True,
        "counters": True,
    },
    {"cell": ["sock:64x1024", "tls_streams:32x1024", "uvicorn:64x12"], "counters": True},
    {"cell": ["protocol:1000x256", "protocol:64x65536", "protocol:8x262144", "protocol:1x1024"]},
    {"cell": ["streams:64x1024", "stdlib_streams:64x1024", "readline:64x1024"]},
    {"cell": ["connect:64x64", "udp:64x64", "tls:32x65536"]},
    {"cell": ["redis:64", "aiomysql:64", "asyncpg:64", "nats:64"]},
    {"cell": [run.MICRO]},
    {"cell": [run.MEMORY], "rounds": 1},
    {"cell": [files.CELL], "rounds": 3, "peer": None},
]
ORDER = [
    "protocol:1000x256",
    "protocol:64x1024",
    "protocol:64x65536",
    "protocol:8x262144",
    "protocol:1x1024",
    "sock:64x1024",
    "streams:64x1024",
    "stdlib_streams:64x1024",
    "readexactly:64x1024",
    "readline:64x1024",
    "connect:64x64",
    "udp:64x64",
    "tls:32x1024",
    "tls:32x65536",
    "tls_streams:32x1024",
    "uvicorn:64x12",
]
"""Of the cells on the page; others come after them."""


def make(args: argparse.Namespace) -> int:
    """Measure if need be, merge, write the page; the exit status."""
    status = 0
    try:
        # First, as it would be a pity after half an hour.
        args.page.mkdir(parents=True, exist_ok=True)
        if not os.access(args.page, os.W_OK):
            raise PermissionError("nothing can be written to this folder")
        with tempfile.TemporaryDirectory() as folder:
            sources = list(args.files)
            if not sources:
                sources, status = _measure(args, Path(folder))
            if not sources:
                return status
            results = Results.merge([Results.load(path) for path in sources])
        places = {cell: number for number, cell in enumerate(ORDER)}
        results.closed.sort(key=lambda r: places.get(r.cell, len(places)))  # which is stable
        print(page.write(results, args.page))
    except (OSError, ValueError) as error:
        print(f"ringloop bench --page {args.page}: {error}", file=sys.stderr)
        return 2
    return status


def _measure(args: argparse.Namespace, folder: Path) -> tuple[list[Path], int]:
    """The files of all runs, and the worst exit status."""
    sources, worst = [], 0
    for number, settings in enumerate(RUNS):
        output = folder / f"{number}.json"
        changed = vars(args) | settings | {"output": output}
        measure = files.benchmark if settings["cell"] == [files.CELL] else run.benchmark
        try:
            status = measure(argparse.Namespace(**changed))
        except KeyboardInterrupt:
            status = run.INTERRUPTED
        except Exception as error:
            # What the others found goes on the page all the same.
            cells = ", ".join(settings["cell"])
            print(f"ringloop bench --page: {cells}: {error}", file=sys.stderr)
            status = 1
        worst = max(worst, status)
        if output.exists():
            sources.append(output)
        if status == run.INTERRUPTED:
            break
    return sources, worst
