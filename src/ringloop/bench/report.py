"""What the terminal shows: progress, a table for each cell, and at the end how ringloop did."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import rich.progress
from rich import box
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from ringloop.bench.micro import MICROS
from ringloop.bench.peers import C_URING, EPOLL, PEERS, URING, UVLOOP
from ringloop.bench.results import BUSY_MACHINE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.console import Console

    from ringloop.bench.affinity import Cores
    from ringloop.bench.cells import Cell
    from ringloop.bench.results import Results, Round, Spread

FULL_CORE = 0.97
NONE = Text("-", style="dim")
COLUMNS = ["CPU", "range", "/uvloop", "/c-uring", "req/s ", "p50", "p99", "busy", "load"]
COMPARISONS = [(URING, UVLOOP), (EPOLL, UVLOOP), (URING, EPOLL), (URING, C_URING)]


class Progress:
    """A bar over all steps, with what is being measured; tables go above it."""

    def __init__(self, console: Console, steps: int) -> None:
        self._bar = rich.progress.Progress(
            rich.progress.BarColumn(),
            rich.progress.MofNCompleteColumn(),
            rich.progress.TimeRemainingColumn(),
            rich.progress.TextColumn("{task.description}"),
            console=console,
            transient=True,
            auto_refresh=False,  # on few cores it would take time from the load generator
        )
        self._task = self._bar.add_task("", total=steps)

    def __enter__(self) -> Progress:
        self._bar.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._bar.stop()

    @contextlib.contextmanager
    def step(self, description: str) -> Iterator[None]:
        self._bar.update(self._task, description=description, refresh=True)
        yield
        self._bar.advance(self._task)


def print_header(console: Console, results: Results, cores: Cores) -> None:
    machine, settings = results.machine, results.settings
    rounds = "1 round" if settings["rounds"] == 1 else f"{settings['rounds']} rounds"
    console.print(
        f"Linux {machine['kernel']} on {machine['cpu']} ({machine['cores']} cores), "
        f"{machine['python']}; {rounds} of {settings['duration_s']:g} s",
        highlight=False,
    )
    if cores.shared:
        console.print(
            "[yellow]One core only: server and load generator share it, so throughput and "
            "latency say little; CPU a request still does."
        )
    else:
        console.print(f"Server on core {cores.server}, load generator on core {cores.load}.")
    if machine["load_average"] > BUSY_MACHINE:
        console.print(
            f"[yellow]Other programs are running (load average {machine['load_average']:.1f}): "
            "the figures will scatter."
        )


def print_cell(console: Console, results: Results, cell: Cell) -> None:
    """The table of one cell: medians over its rounds."""
    name = str(cell)
    what = "client" if cell.kind.service else "server"
    table = _table(f"{cell.title} (CPU of the {what} and latency in µs)")
    table.add_column("peer", no_wrap=True)
    for heading in COLUMNS:
        table.add_column(heading, justify="right", no_wrap=True)
    for peer in _peers_of(name, results):
        if results.error(name, peer):
            figures = [Text("failed", style="red")]
        elif peer in results.not_run:
            figures = [Text("not run", style="dim")]
        else:
            figures = _row(results, name, peer)
        table.add_row(peer, *figures, style="bold" if PEERS[peer].is_ringloop else "")
    console.print(table)
    for found in results.closed:
        if found.cell == name and found.error:
            _print_failure(console, found.peer, found.error)
    if any(_limited_by_load(r) for r in results.closed if r.cell == name and not r.error):
        console.print(
            "* The load generator's core was full and the server's was not: "
            "the server could do more requests than this.",
            style="dim",
        )


def _table(title: str) -> Table:
    return Table(title=escape(title), box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False)


def _print_failure(console: Console, peer: str, error: str) -> None:
    console.print(f"[red]{peer} failed:[/] {escape(error)}", highlight=False)


def _peers_of(cell: str, results: Results) -> list[str]:
    """Also those that could not be run."""
    found = {r.peer for r in results.closed if r.cell == cell} | results.not_run.keys()
    return [peer for peer in PEERS if peer in found]


def _limited_by_load(found: Round) -> bool:
    return found.load_share >= FULL_CORE > found.cpu_share


def _row(results: Results, cell: str, peer: str) -> list[Text]:
    """What stands under `COLUMNS`."""

    def median(figure: Callable[[Round], float]) -> float:
        spread = results.spread(cell, peer, figure)
        assert spread  # there is a round without an error
        return spread.median

    cpu = results.spread(cell, peer, lambda r: r.cpu_us)
    assert cpu
    rounds = results.rounds(cell, peer).values()
    limited = any(_limited_by_load(r) for r in rounds)
    driven = all(r.latency_us for r in rounds)  # by the load generator
    return [
        Text(f"{cpu.median:.2f}"),
        Text(f"{cpu.low:.2f}-{cpu.high:.2f}", style="dim"),
        _ratio(results.cpu_ratio(cell, peer, UVLOOP)),
        _ratio(results.cpu_ratio(cell, peer, C_URING)),
        Text(f"{median(lambda r: r.requests_per_s):,.0f}{'*' if limited else ' '}"),
        Text(f"{median(lambda r: r.latency_us['p50']):,.0f}") if driven else NONE,
        Text(f"{median(lambda r: r.latency_us['p99']):,.0f}") if driven else NONE,
        Text(f"{median(lambda r: r.cpu_share):.0%}"),
        Text(f"{median(lambda r: r.load_share):.0%}") if driven else NONE,
    ]


def _ratio(spread: Spread | None) -> Text:
    return Text(f"{spread.median:.2f}") if spread else NONE


def print_micro(console: Console, results: Results) -> None:
    """Rates of the micro-benchmarks, with their ratio to uvloop's."""
    table = _table("Micro-benchmarks: thousands a second of CPU time (times uvloop's)")
    table.add_column("peer", no_wrap=True)
    for micro in MICROS:
        table.add_column(micro, justify="right")
    for peer in PEERS:
        if not any(r.peer == peer for r in results.micro):
            continue
        row = []
        for micro in MICROS:
            rate = results.rate(peer, micro)
            ratio = results.rate_ratio(peer, UVLOOP, micro)
            digits = 0 if rate and rate.median >= 1e4 else 1
            text = Text(f"{rate.median / 1e3:,.{digits}f}") if rate else NONE.copy()
            if ratio:
                text.append(f" ({ratio.median:.2f})", style="dim")
            row.append(text)
        table.add_row(peer, *row, style="bold" if PEERS[peer].is_ringloop else "")
    console.print(table)
    for r in results.micro:
        if r.error:
            _print_failure(console, r.peer, r.error)


def print_counts(console: Console, results: Results, cell: Cell) -> None:
    """Of one cell, with the system calls by name."""
    if not (found := {c.peer: c for c in results.counts if c.cell == str(cell)}):
        return
    base = found.get(UVLOOP)
    table = _table(f"{cell.title}: system calls and instructions (in user space) a request")
    table.add_column("peer", no_wrap=True)
    for heading in ("calls", "instructions", "/uvloop"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("calls by name")
    for peer in PEERS:
        if not (count := found.get(peer)):
            continue
        if count.error:
            table.add_row(peer, Text("failed", style="red"))
            continue
        names = sorted(count.by_name.items(), key=lambda item: -item[1])
        calls, instructions = count.system_calls, count.instructions
        ratio = None
        if instructions and base and base.instructions:
            ratio = instructions / base.instructions
        table.add_row(
            peer,
            NONE if calls is None else f"{calls:.2f}",
            NONE if instructions is None else f"{instructions:,.0f}",
            NONE if ratio is None else f"{ratio:.2f}",
            ", ".join(f"{name} {number:.2f}" for name, number in names),
            style="bold" if PEERS[peer].is_ringloop else "",
        )
    console.print(table)
    for count in found.values():
        if count.error:
            _print_failure(console, count.peer, count.error)


def print_latency(console: Console, results: Results, cell: Cell) -> None:
    """Medians over the rounds, of both rates."""
    name = str(cell)
    if not (found := [r for r in results.open if r.cell == name]):
        return
    common = next((r.rate for r in found if r.common), 0)
    table = _table(
        f"{cell.title}: latency in µs at half of a peer's own rate, and at {common:,.0f} a second"
    )
    table.add_column("peer", no_wrap=True)
    for heading in ("a second", "p50", "p99", "p99.9", "| p50", "p99", "p99.9"):
        table.add_column(heading, justify="right", no_wrap=True)
    for peer in [peer for peer in PEERS if any(r.peer == peer for r in found)]:
        row = [f"{next(r.rate for r in found if r.peer == peer and not r.common):,.0f}"]
        for shared in (False, True):
            for percentile in ("p50", "p99", "p999"):
                spread = results.latency(name, peer, shared, percentile)
                row.append(f"{spread.median:,.0f}" if spread else "failed")
        table.add_row(peer, *row, style="bold" if PEERS[peer].is_ringloop else "")
    console.print(table)


def print_memory(console: Console, results: Results) -> None:
    kinds = list(dict.fromkeys(r.kind for r in results.memory))
    table = _table("Memory of the process: at rest, and for each idle connection")
    table.add_column("peer", no_wrap=True)
    table.add_column("at rest", justify="right")
    for kind in kinds:
        table.add_column(f"{kind} connection", justify="right")
        table.add_column("of", justify="right")
    for peer in PEERS:
        rest = results.memory_at_rest(peer)
        if rest is None:
            continue
        row = [f"{rest.median / 2**20:.1f} MiB"]
        for kind in kinds:
            each = results.memory_of(kind, peer)
            counts = [r.connections for r in results.memory if (r.kind, r.peer) == (kind, peer)]
            row += (
                [f"{each.median / 1024:.1f} KiB", f"{min(counts):,}"] if each else [str(NONE)] * 2
            )
        table.add_row(peer, *row, style="bold" if PEERS[peer].is_ringloop else "")
    console.print(table)


def print_summary(console: Console, results: Results) -> None:
    """How ringloop did, wins and losses alike, and what could not be run."""
    table = _table("CPU a request, ratio: median of the rounds' ratios, and their range")
    table.add_column("cell", no_wrap=True)
    for ours, theirs in COMPARISONS:
        table.add_column(f"{ours} / {theirs}")
    for cell in results.cells:
        ratios = [results.cpu_ratio(cell, ours, theirs) for ours, theirs in COMPARISONS]
        if any(ratios):
            table.add_row(cell, *[_verdict(ratio) for ratio in ratios])
    if table.row_count:
        console.print(table)
    print_not_run(console, results)
    for where, peer, why in results.failures:
        _print_failure(console, f"{where}, {peer}", why)
    if any(r.wrong for r in results.closed):
        console.print("[bold red]Wrong bytes came back: the servers above are not correct.")


def print_not_run(console: Console, results: Results) -> None:
    for what, why in results.not_run.items():
        console.print(f"[yellow]{what} not run:[/] {escape(why)}", highlight=False)


def _verdict(ratio: Spread | None) -> Text:
    if ratio is None:
        return NONE
    word = ratio.verdict
    style = {"less": "green", "even": "yellow", "more": "bold red"}.get(word, "")
    word = word.upper() if word == "more" else word  # seen without colours, too
    return Text(f"{ratio.median:.2f} {word} ({ratio.low:.2f}-{ratio.high:.2f})", style=style)
