"""The page of results, made from the JSON alone: the same results give the same page.

python -m ringloop bench --page docs                   # measure everything, half an hour
python -m ringloop bench --page docs a.json b.json     # of earlier results
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from ringloop.bench import file_words
from ringloop.bench.cells import KINDS, Cell
from ringloop.bench.file_peers import ROWS
from ringloop.bench.micro import MICROS
from ringloop.bench.peers import EPOLL, PEERS, URING, UVLOOP
from ringloop.bench.results import BUSY_MACHINE, Results, Spread

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

NAME = "results"
NONE = "-"
WORDS = {"less": "less", "even": "even", "more": "**MORE**", "": "too few rounds to say"}
OTHERS = [name for name, peer in PEERS.items() if peer.module and not peer.is_ringloop]
COUNTED_CALLS = 0.05
"""System calls by name that the page shows: at least so many a request."""


def write(results: Results, folder: Path) -> Path:
    """The page, its pictures, and the results that it was made from; the page's path."""
    from ringloop.bench import charts  # noqa: PLC0415 - matplotlib may be missing otherwise

    folder.mkdir(parents=True, exist_ok=True)
    results.save(folder / f"{NAME}.json")
    results = Results.load(folder / f"{NAME}.json")  # with the digits that it keeps
    shown = []
    for name, draw in charts.CHARTS.items():
        figure = draw(results)
        if figure:
            charts.save(figure, folder / f"{NAME}-{name}.svg")
            shown.append(name)
    path = folder / f"{NAME}.md"
    path.write_text(text(results, shown))
    return path


def text(results: Results, pictures: Iterable[str] = ()) -> str:
    """The page in Markdown."""
    there = set(pictures)
    parts = [
        "# Results",
        _machine(results),
        *_summary(results),
        *_picture(there, "cpu", "CPU time per request of each peer, as a ratio to uvloop's"),
        *_cpu_table(results),
        *_rates(results, there),
        *_latency(results, there),
        *_counters(results),
        *_memory(results, there),
        *_files(results),
        *_method(results),
    ]
    return "\n\n".join(parts) + "\n"


# --- words


def _machine(results: Results) -> str:
    machine = results.machine
    kernel = ".".join(machine["kernel"].split(".")[:2])
    kind = "virtual machine" if machine.get("virtual") else "machine"
    python = machine["python"].replace("CPython", "Python").rpartition(".")[0]
    versions = machine["versions"]
    others = ", ".join(
        f"{name} {versions[name]}" for name in ("uvloop", "rloop") if name in versions
    )
    rounds = [r for r in results.closed if not r.error]
    windows = Spread.of(r.seconds for r in rounds)
    counts = Counter((r.cell, r.peer) for r in rounds).values()
    number = " to ".join(map(str, sorted({min(counts), max(counts)}))) if counts else ""
    many = f", in {number} rounds of {windows.median:.1g} s" if windows else ""
    parts = [
        f"Measured on {machine['date'][:10]} on a {machine['cores']}-core {kind}, Linux {kernel}, "
        f"{python}, with {others}{many}. CPU time is of the process that is measured, system "
        "calls included. All peers took turns in one run, and a ratio is taken within each round: "
        "the median counts, and **less**, or more, is said only where every round says so."
    ]
    load = machine.get("load_average", 0)
    if load > BUSY_MACHINE:
        parts.append(
            f"**Other programs were running meanwhile** (load average up to {load:.1f} on "
            f"{machine['cores']} cores). CPU time per request scatters from that, but all peers "
            "had their turns under it; latencies and requests per second say more of the other "
            "programs than of the loops."
        )
    return "\n\n".join(parts)


def _summary(results: Results) -> list[str]:
    """Who takes more, in a sentence for each driver, and every loss by name."""
    if not any(results.cpu_ratio(cell, URING, UVLOOP) for cell in results.cells):
        return []
    lines = []
    has_verdict = False
    for ours in (URING, EPOLL):
        found = [results.cpu_ratio(cell, ours, UVLOOP) for cell in results.cells]
        verdicts = [ratio.verdict for ratio in found if ratio and ratio.verdict]
        if not verdicts:
            lines.append(f"- **{ours}** was not measured in rounds enough to say.")
            continue
        has_verdict = True
        lines.append(
            f"- **{ours}** takes less CPU time per request than uvloop in "
            f"{verdicts.count('less')} of {len(verdicts)} cells, as much in "
            f"{verdicts.count('even')}, more in {verdicts.count('more')}."
        )
    failed = [
        f"{ours}, {Cell.parse(cell).label}"
        for ours in (URING, EPOLL)
        for cell in results.cells
        if results.error(cell, ours)
    ]
    if failed:
        lines.append("- It **failed** here: " + "; ".join(failed) + ".")
    losses = [loss for ours in (URING, EPOLL) for loss in _losses(results, ours)]
    if losses:
        lines.append("- It **loses** here, in every round: " + "; ".join(losses) + ".")
    elif has_verdict and not failed:
        lines.append("- It loses to no other event loop in any cell in every round.")
    return ["\n".join(lines)]


def _losses(results: Results, ours: str) -> list[str]:
    losses = []
    for cell in results.cells:
        worse = {}
        for other in OTHERS:
            ratio = results.cpu_ratio(cell, ours, other)
            if ratio and ratio.verdict == "more":
                worse[other] = ratio.median
        if worse:
            against = ", ".join(f"{factor:.2f} of {other}" for other, factor in worse.items())
            losses.append(f"{ours}, {Cell.parse(cell).label} ({against})")
    for micro in MICROS:
        ratio = results.rate_ratio(ours, UVLOOP, micro)
        if ratio and ratio.verdict == "less":
            losses.append(f"{ours}, rate of {micro} ({ratio.median:.2f} of uvloop)")
    return losses


def _picture(there: set[str], name: str, alt: str) -> list[str]:
    return [f"![{alt}]({NAME}-{name}.svg)"] if name in there else []


# --- tables


def _table(heads: list[str], rows: list[list[str]]) -> str:
    lines = [heads, ["---", *["---:"] * (len(heads) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _number(spread: Spread | None, digits: int = 1, scale: float = 1.0) -> str:
    return f"{spread.median / scale:,.{digits}f}" if spread else NONE


def _rate(spread: Spread | None) -> str:
    """In thousands."""
    return _number(spread, 0 if spread and spread.median >= 1e5 else 1, 1e3)


def _against(ratio: Spread | None) -> str:
    if ratio is None:
        return NONE
    return f"{ratio.median:.2f} ({ratio.low:.2f}-{ratio.high:.2f}) {WORDS[ratio.verdict]}"


def _cpu_table(results: Results) -> list[str]:
    if not results.closed:
        return []
    peers = [peer for peer in PEERS if any(r.peer == peer for r in results.closed)]
    rows, ratios = [], []
    for name in results.cells:
        cell = Cell.parse(name)
        figures = [
            "failed"
            if results.error(name, peer)
            else _number(results.spread(name, peer, lambda r: r.cpu_us))
            for peer in peers
        ]
        rows.append([cell.label, *figures])
        best = _best_other(results, name)
        ratios.append(
            [
                cell.label,
                _against(results.cpu_ratio(name, URING, UVLOOP)),
                _against(results.cpu_ratio(name, EPOLL, UVLOOP)),
                _against(results.cpu_ratio(name, URING, best)) if best else NONE,
                best or NONE,
            ]
        )
    heads = ["cell", f"{URING} / uvloop", f"{EPOLL} / uvloop", f"{URING} / best other"]
    return [
        "## CPU time per request",
        "Ratios, median and range over the rounds; below 1, ringloop takes less. The best other "
        "is the cheapest of the loops that are not ringloop. A cell is a kind of server, a number "
        "of connections and the size of a message; or a client, and a number of tasks.",
        _table([*heads, "which is"], ratios),
        "Medians in microseconds of the server's CPU time, or the client's:",
        _table(["cell", *peers], rows),
    ]


def _best_other(results: Results, cell: str) -> str | None:
    found = {name: results.spread(cell, name, lambda r: r.cpu_us) for name in OTHERS}
    medians = {name: spread.median for name, spread in found.items() if spread}
    return min(medians, key=medians.__getitem__, default=None)


def _rates(results: Results, there: set[str]) -> list[str]:
    if not results.micro:
        return []
    peers = [peer for peer in PEERS if any(r.peer == peer for r in results.micro)]
    rows = [[micro, *[_rate(results.rate(peer, micro)) for peer in peers]] for micro in MICROS]
    return [
        "## Rates of the loop itself",
        *_picture(there, "rates", "Rates of the micro-benchmarks, as a ratio to uvloop's"),
        "Thousands a second of CPU time:",
        _table(["", *peers], rows),
    ]


def _latency(results: Results, there: set[str]) -> list[str]:
    if not results.open:
        return []
    parts = [
        "## Latency at half load",
        "Requests come at a fixed rate, whether the server is ready or not: at half of what each "
        "peer reached in the closed loop, and at the same rate for all, half of the slowest's. "
        "Latency counts from the time a request was due, so that what waits behind a stall is "
        "not left out.",
        *_picture(there, "latency", "Latencies of each peer at half load"),
    ]
    for cell in dict.fromkeys(r.cell for r in results.open):
        rows = []
        common = 0.0
        for peer in PEERS:
            found = [r for r in results.open if (r.cell, r.peer) == (cell, peer)]
            if not found:
                continue
            common = next(r.rate for r in found if r.common)
            closed = results.spread(cell, peer, lambda r: r.requests_per_s)
            own = next(r.rate for r in found if not r.common)
            row = [peer, _number(closed, 0), f"{own:,.0f}"]
            for shared in (False, True):
                for name in ("p50", "p99", "p999"):
                    row.append(_number(results.latency(cell, peer, shared, name), 0))
            rows.append(row)
        heads = ["a second at most", "half of it", "p50", "p99", "p99.9"]
        parts += [
            f"{Cell.parse(cell).title}, microseconds; the last three at {common:,.0f} a second:",
            _table(["peer", *heads, "p50", "p99", "p99.9"], rows),
        ]
    return parts


def _counters(results: Results) -> list[str]:
    if not results.counts:
        return []
    rows = []
    for found in results.counts:
        if found.error:
            continue
        names = sorted(found.by_name.items(), key=lambda item: -item[1])
        shown = ", ".join(f"{n} {count:.2f}" for n, count in names if count >= COUNTED_CALLS)
        calls = NONE if found.system_calls is None else f"{found.system_calls:.2f}"
        instructions = NONE if found.instructions is None else f"{found.instructions:,.0f}"
        rows.append([Cell.parse(found.cell).label, found.peer, calls, instructions, shown])
    return [
        "## System calls and instructions per request",
        "Of a saturated server, under strace and callgrind. Instructions are those in user space; "
        "OpenSSL takes slower code under callgrind than on the processor itself.",
        _table(["cell", "peer", "calls", "instructions", "calls by name"], rows),
    ]


def _memory(results: Results, there: set[str]) -> list[str]:
    if not results.memory:
        return []
    kinds = list(dict.fromkeys(r.kind for r in results.memory))
    rows = []
    for peer in PEERS:
        rest = results.memory_at_rest(peer)
        if rest is None:
            continue
        row = [peer, _number(rest, 1, 2**20)]
        for kind in kinds:
            counts = {
                r.connections
                for r in results.memory
                if (r.kind, r.peer) == (kind, peer) and not r.error
            }
            each = results.memory_of(kind, peer)
            row.append(f"{_number(each, 1, 1024)} (of {min(counts):,})" if counts else NONE)
        rows.append(row)
    return [
        "## Memory",
        "Resident memory of the process, without what the kernel keeps for its sockets: at rest, "
        "and for each idle connection that had one answer before.",
        *_picture(there, "memory", "Memory of each peer at rest and per idle connection"),
        _table(["peer", "at rest, MiB", *[f"per {kind} connection, KiB" for kind in kinds]], rows),
    ]


def _files(results: Results) -> list[str]:
    if not results.files:
        return []
    rows = []
    for row, rates in results.files.items():
        base = next(iter(rates))
        for peer in rates:
            ratio = results.file_ratio(row, peer, base)
            spread = Spread.of(rates[peer])
            share = f"{ratio.median:.2f} of {base}" if ratio and peer != base else NONE
            rows.append([ROWS[row], peer, _number(spread, file_words.digits(row)), share])
    intro = ["Operations a second, more is better, with the page cache warm but for O_DIRECT."]
    if results.file_system:
        intro.append(file_words.place(results.file_system))
    return [
        "## Files",
        " ".join(intro),
        _table(["", "with", "a second", "ratio"], rows),
        *_late(results),
    ]


def _late(results: Results) -> list[str]:
    if not results.late:
        return []
    peers, rows = file_words.late_by_row(results)
    figures = [[ROWS[row], *cells] for row, cells in rows.items()]
    return [f"{file_words.LATE_BY_ROW}:", _table(["", *peers], figures)]


# --- how


def _method(results: Results) -> list[str]:
    failures = [f"- {peer}, {where}: {why}" for where, peer, why in results.failures]
    not_run = [f"- {what}: {why}" for what, why in results.not_run.items()]
    absent = ["What failed, or was not run:", "\n".join(dict.fromkeys(failures + not_run))]
    clients = ", ".join(kind.service.name for kind in KINDS.values() if kind.service)
    return [
        "## Repeat it",
        '```sh\nmake bench BENCH="--page docs"\n```',
        f"takes about half an hour on an otherwise idle machine, and uses {clients} on loopback "
        "where they are. Server and load generator have a core each; the load generator is in C "
        "and compares every byte that comes back. A client has the server's core, and its service "
        "runs where it will. "
        f"This page is made from [{NAME}.json]({NAME}.json), which holds every round; "
        f'`BENCH="--page docs docs/{NAME}.json"` makes it again.',
        *(absent if failures or not_run else []),
    ]
