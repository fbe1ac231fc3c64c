"""The pictures of the page of results: ratios to uvloop, latencies, memory.

Colours are those of Okabe and Ito, which the colour-blind can tell apart, and each peer has
a marker of its own besides.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator

from ringloop.bench.cells import Cell
from ringloop.bench.micro import MICROS
from ringloop.bench.peers import EPOLL, PEERS, URING, UVLOOP

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from matplotlib.axes import Axes

    from ringloop.bench.results import Results, Spread

C_LIMIT = "C"
STYLES: dict[str, tuple[str, str]] = {
    URING: ("#d55e00", "o"),
    EPOLL: ("#e69f00", "D"),
    UVLOOP: ("#000000", "|"),
    "uvloop+aiofastnet": ("#cc79a7", "P"),
    "rloop": ("#009e73", "^"),
    "asyncio": ("#0072b2", "s"),
    C_LIMIT: ("#777777", "x"),
}
"""Colour and marker of each peer; of the better of the C servers, too."""
LIMITS = [name for name, peer in PEERS.items() if peer.program]
SETTINGS: dict[Any, Any] = {
    "svg.hashsalt": "ringloop",
    "svg.fonttype": "none",  # text stays text: small, and can be searched
    "font.family": ["DejaVu Sans", "sans-serif"],
    "font.size": 9,
}
WIDTH_INCHES = 9.0
GREY = "#555555"
NARROW = 1e3
"""A logarithmic axis from one value to so many times of it has room for more ticks."""
RATIO_TICKS = [0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5, 7, 10]


def save(figure: Figure, path: Path) -> None:
    """The same bytes for the same results."""
    with mpl.rc_context(SETTINGS):
        figure.savefig(path, facecolor="white", metadata={"Date": None, "Creator": None})


def limit(results: Results, cell: str) -> str | None:
    """The better of the C servers in a cell."""
    found = {name: results.spread(cell, name, lambda r: r.cpu_us) for name in LIMITS}
    medians = {name: spread.median for name, spread in found.items() if spread}
    return min(medians, key=medians.__getitem__, default=None)


# --- ratios to uvloop


def cpu(results: Results) -> Figure | None:
    """A row for each cell: CPU time a request, as a ratio to uvloop's."""
    rows: list[tuple[str, dict[str, Spread | None]]] = []
    for name in results.cells:
        ratios = {peer: results.cpu_ratio(name, peer, UVLOOP) for peer in STYLES if peer != C_LIMIT}
        in_c = limit(results, name)
        ratios[C_LIMIT] = results.cpu_ratio(name, in_c, UVLOOP) if in_c else None
        if ratios[UVLOOP]:
            rows.append((Cell.parse(name).label, ratios))
    return _ratios(
        rows,
        "CPU time per request, uvloop = 1: further left is better",
        "less than uvloop",
        "more than uvloop",
    )


def rates(results: Results) -> Figure | None:
    """A row for each micro-benchmark: its rate, as a ratio to uvloop's."""
    rows: list[tuple[str, dict[str, Spread | None]]] = [
        (name, {peer: results.rate_ratio(peer, UVLOOP, name) for peer in STYLES})
        for name in MICROS
        if results.rate(UVLOOP, name)
    ]
    return _ratios(
        rows,
        "Operations per second of CPU time, uvloop = 1: further right is better",
        "fewer than uvloop",
        "more than uvloop",
    )


def _ratios(
    rows: list[tuple[str, dict[str, Spread | None]]], title: str, left: str, right: str
) -> Figure | None:
    if not rows:
        return None
    figure, height = _figure(0.27 * len(rows) + 1.75)
    ax = figure.add_axes((0.315, 0.75 / height, 0.575, 1 - 1.75 / height))
    for position, (_, ratios) in enumerate(rows):
        ax.axhline(position, color="#e5e5e5", linewidth=0.8, zorder=0)
        for peer, spread in ratios.items():
            if spread and peer != UVLOOP:
                _point(ax, peer, spread, position)
        _note(ax, ratios.get(URING), position)
    ax.axvline(1, color="black", linewidth=1.2, zorder=1)
    ax.set_xscale("log")
    shown = [s for _, ratios in rows for s in ratios.values() if s]
    low, high = min(s.low for s in shown) / 1.15, max(s.high for s in shown) * 1.15
    ax.set_xlim(low, high)
    ticks = [tick for tick in RATIO_TICKS if low <= tick <= high]
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.minorticks_off()
    ax.set_yticks(range(len(rows)), [text for text, _ in rows])
    ax.set_ylim(len(rows) - 0.4, -0.6)
    ax.tick_params(axis="y", length=0)
    ax.spines[["top", "right", "left"]].set_visible(False)
    for text, place, side in (
        (f"\N{LEFTWARDS ARROW} {left}", -6, "right"),
        (f"{right} \N{RIGHTWARDS ARROW}", 6, "left"),
    ):
        ax.annotate(
            text,
            (1, 0),
            xycoords=("data", "axes fraction"),
            xytext=(place, -24),
            textcoords="offset points",
            ha=side,
            va="top",
            color=GREY,
        )
    ax.annotate(
        "ringloop-uring\n/ uvloop",
        (1.015, 1),
        xycoords="axes fraction",
        xytext=(0, 3),
        textcoords="offset points",
        fontsize=8,
        color=STYLES[URING][0],
    )
    present = [peer for peer in STYLES if any(ratios.get(peer) for _, ratios in rows)]
    _head(figure, height, title, present)
    return figure


def _point(ax: Axes, peer: str, spread: Spread, position: float) -> None:
    colour, marker = STYLES[peer]
    ours = peer in (URING, EPOLL)
    ax.plot([spread.low, spread.high], [position] * 2, color=colour, linewidth=1.5, alpha=0.6)
    ax.plot(
        spread.median,
        position,
        marker=marker,
        color=colour,
        markersize=(8 if peer == URING else 5.5),
        markeredgecolor=colour if marker == "x" else "white",
        markeredgewidth=1.6 if marker == "x" else 0.6,
        linestyle="none",
        zorder=4 if ours else 3,
    )


def _note(ax: Axes, ratio: Spread | None, position: float) -> None:
    if ratio:
        ax.annotate(
            f"{ratio.median:.2f}",
            (1.015, position),
            xycoords=("axes fraction", "data"),
            va="center",
            weight="bold",
            color=STYLES[URING][0],
        )


# --- latencies


def latency(results: Results) -> Figure | None:
    """For each cell two panels: at half of each peer's own rate, and at one rate for all."""
    cells = list(dict.fromkeys(r.cell for r in results.open))
    peers = [peer for peer in PEERS if any(r.peer == peer for r in results.open)]
    found = [results.latency(c, p, s, q) for c in cells for p in peers
             for s in (False, True) for q in ("p50", "p999")]  # fmt: skip
    if not (shown := [spread for spread in found if spread]):
        return None
    figure, height = _figure((0.23 * len(peers) + 0.95) * len(cells) + 1.15)
    grid = figure.add_gridspec(
        len(cells),
        2,
        left=0.17,
        right=0.985,
        top=1 - 1.2 / height,
        bottom=0.5 / height,
        hspace=0.55,
        wspace=0.06,
    )
    span = (min(s.low for s in shown) / 1.3, max(s.median for s in shown) * 1.3)
    for row, cell in enumerate(cells):
        for column, common in enumerate((False, True)):
            ax = figure.add_subplot(grid[row, column])
            _latencies(ax, results, cell, peers, common)
            ax.set_xlim(span)
            between = (1.0, 3.0) if span[1] / span[0] < NARROW else (1.0,)
            ax.xaxis.set_major_locator(LogLocator(subs=between))
            if column:
                ax.tick_params(labelleft=False)
    handles = [
        Line2D([], [], marker=marker, color="#333333", linestyle="none", markersize=size)
        for marker, size in (("o", 5), ("D", 5), ("|", 9))
    ]
    _title(figure, height, "Latency at half load, from the time a request was due: left is better")
    figure.legend(
        handles,
        ["median", "99 %", "99.9 %"],
        loc="upper left",
        bbox_to_anchor=(0.005, 1 - 0.36 / height),
        ncols=3,
        frameon=False,
    )
    return figure


def _latencies(ax: Axes, results: Results, cell: str, peers: list[str], common: bool) -> None:
    for position, peer in enumerate(peers):
        p50, p99, p999 = (
            results.latency(cell, peer, common, name) for name in ("p50", "p99", "p999")
        )
        if not (p50 and p99 and p999):
            continue
        colour, _ = STYLES.get(peer, STYLES[C_LIMIT])
        ax.plot([p50.median, p999.median], [position] * 2, color=colour, linewidth=1.5, alpha=0.5)
        for spread, marker, size in ((p50, "o", 6), (p99, "D", 5), (p999, "|", 10)):
            ax.plot(
                spread.median,
                position,
                marker=marker,
                color=colour,
                markersize=size,
                markeredgewidth=1.8 if marker == "|" else 0.6,
                linestyle="none",
            )
    rate = next((r.rate for r in results.open if r.cell == cell and r.common), 0)
    which = f"at {rate:,.0f} requests a second" if common else "at half of each peer's own rate"
    title = which if common else f"{Cell.parse(cell).title},\n{which}"
    ax.set_title(title, fontsize=9, loc="left", pad=4)
    ax.set_xscale("log")
    ax.minorticks_off()
    ax.xaxis.set_major_formatter(
        lambda us, _: (
            f"{us:g} µs" if us < 1000 else f"{us / 1e3:g} ms" if us < 1e6 else f"{us / 1e6:g} s"
        )
    )
    _name(ax, peers)
    ax.grid(axis="x", color="#e5e5e5", linewidth=0.8)
    ax.tick_params(axis="y", length=0)
    ax.spines[["top", "right", "left"]].set_visible(False)


# --- memory


def memory(results: Results) -> Figure | None:
    """At rest, and for each idle connection."""
    if not any(not r.error for r in results.memory):
        return None
    peers = [peer for peer in PEERS if any(r.peer == peer for r in results.memory)]
    kinds = list(dict.fromkeys(r.kind for r in results.memory))
    panels: list[tuple[str, dict[str, float]]] = []
    rest = {peer: results.memory_at_rest(peer) for peer in peers}
    panels.append(("process at rest, MiB", {p: s.median / 2**20 for p, s in rest.items() if s}))
    for kind in kinds:
        each = {peer: results.memory_of(kind, peer) for peer in peers}
        panels.append(
            (f"idle {kind} connection, KiB", {p: s.median / 1024 for p, s in each.items() if s})
        )
    figure, height = _figure(0.26 * len(peers) + 1.2)
    grid = figure.add_gridspec(
        1, len(panels), left=0.17, right=0.97, top=1 - 0.75 / height, bottom=0.35 / height,
        wspace=0.16,
    )  # fmt: skip
    for column, (title, values) in enumerate(panels):
        ax = figure.add_subplot(grid[0, column])
        _bars(ax, title, peers, values)
        if column:
            ax.tick_params(labelleft=False)
    _title(figure, height, "Resident memory of the process: less is better")
    return figure


def _bars(ax: Axes, title: str, peers: list[str], values: dict[str, float]) -> None:
    highest = max(values.values(), default=1.0)
    for position, peer in enumerate(peers):
        if peer not in values:
            ax.annotate("not run", (highest * 0.02, position), va="center", color=GREY)
            continue
        colour, _ = STYLES.get(peer, STYLES[C_LIMIT])
        ax.barh(position, values[peer], height=0.62, color=colour)
        ax.annotate(
            f"{values[peer]:.1f}",
            (values[peer], position),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            weight="bold" if PEERS[peer].is_ringloop else "normal",
        )
    ax.set_title(title, fontsize=9, loc="left", pad=4)
    _name(ax, peers)
    ax.set_xlim(0, highest * 1.22)
    ax.tick_params(axis="y", length=0)
    ax.spines[["top", "right"]].set_visible(False)


CHARTS: dict[str, Callable[[Results], Figure | None]] = {
    "cpu": lambda results: _styled(cpu, results),
    "rates": lambda results: _styled(rates, results),
    "latency": lambda results: _styled(latency, results),
    "memory": lambda results: _styled(memory, results),
}
"""None where there is nothing to draw."""


# --- what all have


def _name(ax: Axes, peers: list[str]) -> None:
    """A row for each peer, from the top down, ours in bold."""
    ax.set_yticks(range(len(peers)), peers)
    for peer, tick in zip(peers, ax.get_yticklabels(), strict=True):
        tick.set_fontweight("bold" if PEERS[peer].is_ringloop else "normal")
    ax.set_ylim(len(peers) - 0.5, -0.5)


def _styled(draw: Callable[[Results], Figure | None], results: Results) -> Figure | None:
    with mpl.rc_context(SETTINGS):
        return draw(results)


def _figure(height: float) -> tuple[Figure, float]:
    return Figure(figsize=(WIDTH_INCHES, height)), height


def _title(figure: Figure, height: float, title: str) -> None:
    figure.text(0.01, 1 - 0.12 / height, title, fontsize=12, weight="bold", va="top")


def _head(figure: Figure, height: float, title: str, peers: list[str]) -> None:
    _title(figure, height, title)
    handles: list[Any] = []
    for peer in peers:
        colour, marker = STYLES[peer]
        line = peer == UVLOOP
        handles.append(
            Line2D(
                [],
                [],
                color=colour,
                marker="None" if line else marker,
                markersize=8 if peer == URING else 6,
                linestyle="-" if line else "none",
            )
        )
    names = {C_LIMIT: "C, the better of two"}
    figure.legend(
        handles,
        [names.get(peer, peer) for peer in peers],
        loc="upper left",
        bbox_to_anchor=(0.005, 1 - 0.36 / height),
        ncols=7,
        frameon=False,
        columnspacing=1.4,
        handletextpad=0.4,
    )
