"""The benchmark: ringloop beside its peers, and beside C as the limit, on this machine.

    python -m ringloop bench                          # the short set, a few minutes
    python -m ringloop bench --cell protocol:64x1024  # one cell
    python -m ringloop bench --page docs              # everything, and the page of results
    python -m ringloop bench --plot FROM.json         # draw the plot again

Each cell (a kind of server, a number of connections, a message size; or a kind of client
and a number of tasks) is measured in rounds; a round runs every peer once, in an order that
rotates, so that what changes on the machine meanwhile touches all of them. Server and load
generator have a core each, and every byte that comes back is compared.

This module is what the command line sees; it imports the rest only to run it.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from ringloop._extras import how_to_install

if TYPE_CHECKING:
    import argparse

__all__ = ["add_arguments", "main"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the benchmark's options to `parser`, whose result goes to `main`."""
    parser.add_argument(
        "--cell",
        action="append",
        metavar="KIND:NxBYTES",
        help="measure this cell, e.g. protocol:64x1024, or 'micro' for the micro-benchmarks, "
        "'memory' for memory, or alone 'files' for files; repeatable. Kinds: protocol, streams, "
        "stdlib_streams, readexactly, readline, sock, connect, udp, tls, tls_streams, uvicorn; "
        "and KIND:TASKS of the clients redis, aiomysql, asyncpg, nats",
    )
    parser.add_argument(
        "--full", action="store_true", help="the whole grid instead of the short set"
    )
    parser.add_argument(
        "--smoke", action="store_true", help="ten seconds, to see that everything works"
    )
    parser.add_argument(
        "--counters",
        action="store_true",
        help="then also count system calls (strace) and instructions (valgrind) a request",
    )
    parser.add_argument(
        "--latency",
        action="store_true",
        help="then also measure latency at half load, in an open loop of a fixed rate",
    )
    parser.add_argument("--peer", action="append", help="measure this peer; repeatable")
    parser.add_argument("--rounds", type=int, metavar="N", help="rounds a cell (default 5)")
    parser.add_argument(
        "--duration", type=float, metavar="S", help="seconds measured a round (default 1)"
    )
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE.json",
        help="where the results go, with the plot beside them as .svg "
        "(default: ringloop-bench-DATE.json)",
    )
    parser.add_argument(
        "--page",
        type=Path,
        metavar="FOLDER",
        help="write the page of results there, of the FILES or, without any, of all there is "
        "to measure, which takes half an hour",
    )
    parser.add_argument(
        "files", nargs="*", type=Path, metavar="FILE.json", help="earlier results, for --page"
    )
    parser.add_argument(
        "--plot", type=Path, metavar="FROM.json", help="only draw the plot of earlier results"
    )


def main(args: argparse.Namespace) -> int:
    """Run the benchmark; the exit status.

    0: measured. 1: an answer had wrong bytes (of any peer), a ringloop failed, or nothing
    could be measured. 130: interrupted. 2: unusable arguments, or a package is missing.
    """
    if args.files and not args.page:
        print("ringloop bench: files of results are for --page", file=sys.stderr)
        return 2
    for module in ("rich", "matplotlib") if args.plot or args.page else ("rich",):
        if importlib.util.find_spec(module) is None:
            print(f"ringloop bench needs {module}: {how_to_install('bench')}", file=sys.stderr)
            return 2
    # Here, as `ringloop run` shall start without them.
    from ringloop.bench import files, page_runs, run  # noqa: PLC0415

    if args.page:
        return page_runs.make(args)
    if args.cell == [files.CELL]:
        return files.benchmark(args)
    return run.redraw(args.plot) if args.plot else run.benchmark(args)
