"""The run: which peers can take part, the rounds in turn, and what comes of them."""

from __future__ import annotations

import contextlib
import datetime
import importlib.util
import os
import resource
import socket
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from ringloop._extras import how_to_install
from ringloop.bench import (
    affinity,
    compiler,
    counters,
    machine,
    memory,
    open_loop,
    processes,
    report,
)
from ringloop.bench.cells import FULL, SHORT, SMOKE, Cell
from ringloop.bench.peers import EPOLL, PEERS, Peer
from ringloop.bench.processes import Bench, PeerError
from ringloop.bench.results import MicroRound, Results, Round

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Sequence

MICRO = "micro"
MEMORY = "memory"
INTERRUPTED = 130
"""Exit status."""
INSTALL = how_to_install("bench")
OPEN_FILES = 20480
SERVICE_TIMEOUT_S = 2.0


@dataclass(frozen=True)
class Plan:
    cells: list[Cell]
    peers: list[Peer]
    rounds: int
    smoke: bool
    with_micro: bool
    with_counters: bool
    with_latency: bool
    memory_connections: int
    """0: no memory is measured."""

    def peers_of(self, cell: Cell) -> list[Peer]:
        return [peer for peer in self.peers if peer.takes_part(cell)]

    @property
    def loops(self) -> list[Peer]:
        return [peer for peer in self.peers if peer.is_loop]

    @property
    def latency_cells(self) -> list[Cell]:
        return [c for c in self.cells if self.with_latency and not c.kind.service]

    @property
    def counter_cells(self) -> list[Cell]:
        return [c for c in self.cells if self.with_counters and not c.kind.service]

    def probed(self, cell: Cell) -> list[Peer]:
        """Who takes part in all but the closed loop: in a smoke test those that start at once."""
        return [peer for peer in self.peers_of(cell) if not self.smoke or peer.program]

    @property
    def memory_peers(self) -> dict[str, list[Peer]]:
        if not self.memory_connections:
            return {}
        return {kind: self.probed(memory.cell(kind, 1)) for kind in memory.KINDS}


def benchmark(args: argparse.Namespace) -> int:
    """Measure, show, save; the exit status."""
    console = Console(width=None if sys.stdout.isatty() else 120)
    try:
        plan, bench, output = _plan(args), _bench(args), output_asked(args, "bench")
    except ValueError as error:
        print(f"ringloop bench: {error}", file=sys.stderr)
        return 2

    _raise_open_files_limit()
    results = Results(machine.describe(), _settings(plan, bench))
    report.print_header(console, results, bench.cores)
    interrupted = False
    with affinity.pinned(bench.cores.harness):
        try:
            _measure(console, plan, bench, results)
        except KeyboardInterrupt:
            interrupted = True
            console.print("[bold]Interrupted.[/] What follows was measured until then.")
    report.print_summary(console, results)
    _save(console, results, output)
    return INTERRUPTED if interrupted else _exit_status(results)


def redraw(source: Path) -> int:
    """Draw the plot of results saved earlier, beside them; the exit status."""
    from ringloop.bench import plot  # noqa: PLC0415 - matplotlib may be missing otherwise

    try:
        print(plot.draw(Results.load(source), source.with_suffix(".svg")))
    except (OSError, ValueError) as error:
        print(f"ringloop bench --plot {source}: {error}", file=sys.stderr)
        return 2
    return 0


# --- what to do


def _plan(args: argparse.Namespace) -> Plan:
    for name in args.peer or ():
        if name not in PEERS:
            raise ValueError(f"there is no peer {name!r}; there are {', '.join(PEERS)}")
    asked = list(dict.fromkeys(args.cell or ()))
    if args.cell:
        cells = [Cell.parse(text) for text in asked if text not in (MICRO, MEMORY)]
    else:
        cells = SMOKE if args.smoke else FULL if args.full else SHORT
    return Plan(
        cells=cells,
        peers=[p for p in PEERS.values() if not args.peer or p.name in args.peer],
        rounds=rounds_asked(args),
        smoke=args.smoke,
        with_micro=not args.cell or MICRO in asked,
        with_counters=args.counters or args.smoke,
        with_latency=args.latency or args.smoke,
        memory_connections=(
            memory.PROBE if args.smoke else memory.CONNECTIONS if MEMORY in asked else 0
        ),
    )


def rounds_asked(args: argparse.Namespace) -> int:
    rounds: int = (1 if args.smoke else 5) if args.rounds is None else args.rounds
    if not 1 <= rounds <= 100:
        raise ValueError("--rounds goes from 1 to 100")
    return rounds


def _bench(args: argparse.Namespace) -> Bench:
    duration_s = (0.2 if args.smoke else 1.0) if args.duration is None else args.duration
    if not 0.05 <= duration_s <= 60:
        raise ValueError("--duration goes from 0.05 to 60 seconds")
    return Bench(
        cores=affinity.choose(),
        programs={},
        warmup_s=0.1 if args.smoke else 0.3,
        duration_s=duration_s,
        micro_window_s=duration_s / 5,
    )


def output_asked(args: argparse.Namespace, what: str) -> Path:
    now = datetime.datetime.now()
    path: Path = args.output or Path(f"ringloop-{what}-{now:%Y%m%d-%H%M%S}.json")
    if path.suffix != ".json":
        raise ValueError(f"--output takes a name that ends in .json, not {str(path)!r}")
    if not os.access(path.parent, os.W_OK):
        raise ValueError(f"--output: nothing can be written to the folder {str(path.parent)!r}")
    return path


def _settings(plan: Plan, bench: Bench) -> dict[str, object]:
    return {
        "rounds": plan.rounds,
        "warmup_s": bench.warmup_s,
        "duration_s": bench.duration_s,
        "micro_window_s": bench.micro_window_s,
        "server_core": bench.cores.server,
        "load_core": bench.cores.load,
    }


def _raise_open_files_limit() -> None:
    """For cells with many connections; what is started inherits it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


# --- doing it


def _measure(console: Console, asked: Plan, bench: Bench, results: Results) -> None:
    plan = _possible(asked, bench, results)
    report.print_not_run(console, results)
    with report.Progress(console, _steps(plan)) as progress:
        for cell in plan.cells:
            for number, peer in _turns(plan.rounds, plan.peers_of(cell)):
                with progress.step(f"{cell.title}, round {number + 1}, {peer.name}"):
                    # Who failed once in a cell is not asked again: it may take long to fail.
                    if not results.error(str(cell), peer.name):
                        results.closed.append(_closed_round(bench, cell, peer, number))
            report.print_cell(console, results, cell)
            if cell in plan.latency_cells:
                _measure_latency(plan, bench, results, progress, cell)
                report.print_latency(console, results, cell)
            if cell in plan.counter_cells:
                for peer in plan.probed(cell):
                    with progress.step(f"{cell.title}, counters, {peer.name}"):
                        if not results.error(str(cell), peer.name):
                            results.counts.append(counters.count(bench, cell, peer))
                report.print_counts(console, results, cell)
        if plan.with_micro:
            for number, peer in _turns(plan.rounds, plan.loops):
                with progress.step(f"micro-benchmarks, round {number + 1}, {peer.name}"):
                    results.micro.append(_micro_round(bench, peer, number))
            report.print_micro(console, results)
        if plan.memory_connections:
            _measure_memory(plan, bench, results, progress)
            report.print_memory(console, results)


def _steps(plan: Plan) -> int:
    rounds = sum(len(plan.peers_of(cell)) for cell in plan.cells)
    rounds += 2 * sum(len(plan.probed(cell)) for cell in plan.latency_cells)
    rounds += plan.with_micro * len(plan.loops)
    rounds += sum(len(peers) for peers in plan.memory_peers.values())
    return plan.rounds * rounds + sum(len(plan.probed(cell)) for cell in plan.counter_cells)


def _measure_latency(
    plan: Plan, bench: Bench, results: Results, progress: report.Progress, cell: Cell
) -> None:
    peers = plan.probed(cell)
    rates = open_loop.rates(results, cell, peers)
    for number, peer in _turns(plan.rounds, peers):
        for common in (False, True):
            with progress.step(f"{cell.title}, latency, round {number + 1}, {peer.name}"):
                if peer.name in rates:
                    rate = rates[peer.name][common]
                    found = open_loop.measure(bench, cell, peer, number, rate, common)
                    results.open.append(found)


def _measure_memory(plan: Plan, bench: Bench, results: Results, progress: report.Progress) -> None:
    for kind, peers in plan.memory_peers.items():
        for number, peer in _turns(plan.rounds, peers):
            with progress.step(f"memory, {kind}, round {number + 1}, {peer.name}"):
                if not any(
                    r.error for r in results.memory if (r.kind, r.peer) == (kind, peer.name)
                ):
                    found = memory.measure(bench, kind, peer, number, plan.memory_connections)
                    results.memory.append(found)


def _possible(plan: Plan, bench: Bench, results: Results) -> Plan:
    """What of it can be run here; why the rest cannot is noted."""
    cells = []
    for cell in plan.cells:
        why = _missing(cell)
        if why:
            results.not_run[cell.kind.title] = why
        else:
            cells.append(cell)
    if plan.with_counters:
        results.not_run |= counters.missing()
    if plan.memory_connections or any(not cell.kind.service for cell in cells):
        try:
            bench.programs.update(compiler.build())
        except compiler.CompilerError as error:
            results.not_run["all servers"] = str(error)
            cells = [cell for cell in cells if cell.kind.service]
            plan = replace(plan, memory_connections=0)
    if plan.with_latency and bench.cores.shared:
        results.not_run["latency"] = "it needs two cores: the load generator never sleeps"
        plan = replace(plan, with_latency=False)
    peers = [peer for peer in plan.peers if _can_run(bench, peer, results)]
    return replace(plan, cells=cells, peers=peers)


def _missing(cell: Cell) -> str | None:
    """Of what it needs, in words."""
    for module in cell.kind.modules:
        if importlib.util.find_spec(module) is None:
            return f"{module} is not installed: {INSTALL}"
    service = cell.kind.service
    if service:
        host, port = service.address
        try:
            socket.create_connection((host, port), SERVICE_TIMEOUT_S).close()
        except OSError as error:
            return (
                f"no {service.name} at {host}, port {port} ({error.strerror or error}): start "
                f"one, or set {service.host_variable} and {service.port_variable}"
            )
    return None


def _can_run(bench: Bench, peer: Peer, results: Results) -> bool:
    """Start the peer's plainest server once; if it cannot, note why."""
    why = None
    if peer.version is None:
        why = f"not installed: {INSTALL}"
    elif peer.program and not bench.programs:
        return False  # noted already, or not asked for
    else:
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(processes.server(bench, peer, Cell("protocol", 1, 1024)))
            except PeerError as error:
                why = str(error)
    if why:
        results.not_run[peer.name] = why
    return why is None


def _turns(rounds: int, peers: Sequence[Peer]) -> Iterator[tuple[int, Peer]]:
    """Every peer once a round, in an order that rotates."""
    for number in range(rounds):
        for position in range(len(peers)):
            yield number, peers[(position + number) % len(peers)]


def _closed_round(bench: Bench, cell: Cell, peer: Peer, number: int) -> Round:
    found: dict[str, Any] = {}
    try:
        if cell.kind.service:
            found = processes.client(bench, peer, cell)
        else:
            with processes.server(bench, peer, cell) as (pid, port):
                found = processes.load(bench, cell, pid, port)
                found.pop("answers", None)  # all; the window's count here
    except PeerError as error:
        found["error"] = str(error)  # of the server: it says more than what the load saw
    return Round(str(cell), peer.name, number, **found)


def _micro_round(bench: Bench, peer: Peer, number: int) -> MicroRound:
    try:
        return MicroRound(peer.name, number, processes.micro(bench, peer))
    except PeerError as error:
        return MicroRound(peer.name, number, error=str(error))


# --- what comes of it


def _save(console: Console, results: Results, path: Path) -> None:
    if not (results.closed or results.micro or results.memory):
        return
    results.save(path)
    console.print(f"Results: {path}")
    if not results.closed:
        return
    if importlib.util.find_spec("matplotlib") is None:
        console.print(
            f"No plot, matplotlib is missing: {INSTALL}, then ringloop bench --plot {path}",
            markup=False,
        )
        return
    from ringloop.bench import plot  # noqa: PLC0415 - matplotlib may be missing

    console.print(f"Plot:    {plot.draw(results, path.with_suffix('.svg'))}")


def _exit_status(results: Results) -> int:
    wrong = any(r.wrong for r in results.closed) or any(r.wrong for r in results.open)
    ringloop_failed = any(PEERS[peer].is_ringloop for _, peer, _ in results.failures)
    ringloop_broken = EPOLL in results.not_run  # epoll is there everywhere
    nothing = not (results.closed or results.micro or results.memory)
    return int(wrong or ringloop_failed or ringloop_broken or nothing)
