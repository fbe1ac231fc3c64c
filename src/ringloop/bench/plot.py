"""A picture of the CPU time a request takes: a panel for each cell, a bar for each peer."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine

from ringloop.bench.cells import Cell
from ringloop.bench.peers import EPOLL, PEERS, URING

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.axes import Axes

    from ringloop.bench.results import Results, Spread

COLUMNS = 3
PANEL_INCHES = (4.4, 2.5)
COLOURS = {URING: "#d9480f", EPOLL: "#f4a261"}
OTHER_COLOUR = "#8d99ae"
LIMIT_COLOUR = "#1b4332"
LOOPS = [name for name, peer in PEERS.items() if peer.module]
LIMITS = [name for name, peer in PEERS.items() if peer.program]


def draw(results: Results, path: Path) -> Path:
    """Write the plot to `path`, in the format that its ending says."""
    cells = [Cell.parse(name) for name in results.cells]
    if not cells:
        raise ValueError("these results have no echo cells to draw")
    columns = min(COLUMNS, len(cells))
    rows = math.ceil(len(cells) / columns)
    width, height = PANEL_INCHES
    # Space for title and subtitle, in inches, however many rows there are.
    head = 0.8
    total = height * rows + head
    layout = ConstrainedLayoutEngine(h_pad=0.1, w_pad=0.1, rect=(0, 0, 1, 1 - head / total))
    figure = Figure(figsize=(width * columns, total), layout=layout)
    axes = figure.subplots(rows, columns, squeeze=False).flat
    for ax, cell in zip(axes, cells, strict=False):
        _draw_cell(ax, results, cell)
    for ax in list(axes)[len(cells) :]:
        ax.set_axis_off()

    machine, settings = results.machine, results.settings
    figure.text(
        0.01,
        1 - 0.12 / total,
        "CPU time of the server per request, in microseconds: less is better",
        fontsize=13,
        weight="bold",
        va="top",
    )
    figure.text(
        0.01,
        1 - 0.42 / total,
        f"Median of the rounds, with their range ({settings['rounds']} x "
        f"{settings['duration_s']:g} s). {machine['python']}, "
        f"Linux {machine['kernel']}, {machine['cpu']}, {machine['date'][:10]}.",
        fontsize=8,
        color="#555555",
        va="top",
    )
    with mpl.rc_context({"svg.hashsalt": "ringloop"}):
        figure.savefig(path, facecolor="white")
    return path


def _cpu(results: Results, cell: str, peer: str) -> Spread | None:
    return results.spread(cell, peer, lambda found: found.cpu_us)


def _draw_cell(ax: Axes, results: Results, cell: Cell) -> None:
    name = str(cell)
    spreads = {peer: _cpu(results, name, peer) for peer in LOOPS}
    highest = max((s.high for s in spreads.values() if s), default=1.0)
    for position, (peer, spread) in enumerate(spreads.items()):
        if spread is None:
            why = "failed" if results.error(name, peer) else "not run"
            ax.text(highest * 0.01, position, why, va="center", fontsize=8, color="#888888")
            continue
        ax.barh(position, spread.median, height=0.66, color=COLOURS.get(peer, OTHER_COLOUR))
        ax.errorbar(
            spread.median,
            position,
            xerr=[[spread.median - spread.low], [spread.high - spread.median]],
            color="#222222",
            linewidth=1,
            capsize=2.5,
        )
        ax.annotate(
            f"{spread.median:.1f}",
            (spread.high, position),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
            fontsize=9,
            weight="bold" if PEERS[peer].is_ringloop else "normal",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.8, "alpha": 0.85},
        )
    _draw_limit(ax, results, name)
    ax.set_title(cell.title, fontsize=9.5, loc="left", pad=16)
    ax.set_yticks(range(len(LOOPS)), LOOPS, fontsize=9)
    ax.set_ylim(len(LOOPS) - 0.5, -0.5)
    ax.set_xlim(0, highest * 1.15)
    ax.tick_params(axis="x", labelsize=8)
    ax.tick_params(axis="y", length=0)
    ax.spines[["top", "right", "left"]].set_visible(False)


def _draw_limit(ax: Axes, results: Results, cell: str) -> None:
    """A line where the better of the C servers is, and its range in a shade."""
    limits = [spread for peer in LIMITS if (spread := _cpu(results, cell, peer))]
    if not limits:
        return
    spread = min(limits, key=lambda limit: limit.median)
    ax.axvspan(spread.low, spread.high, color=LIMIT_COLOUR, alpha=0.12, linewidth=0)
    ax.axvline(spread.median, color=LIMIT_COLOUR, linestyle="--", linewidth=1.2)
    ax.annotate(
        f"limit in C: {spread.median:.1f}",
        (spread.median, 1),
        xycoords=("data", "axes fraction"),
        xytext=(0, 3),
        textcoords="offset points",
        ha="center",
        fontsize=8,
        color=LIMIT_COLOUR,
    )
