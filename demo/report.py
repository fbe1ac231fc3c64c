"""What the demo shows: bars while it runs, then one table."""

import time
from collections.abc import Mapping, Sequence
from statistics import median

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.table import Table

DRAW_S = 0.1
NOTICEABLE = 0.05  # Differences below are not coloured.


class Board:
    """A bar for each program on each loop, or plain lines where stdout is no terminal.

    It draws only when told to: a bar that moves by itself would take CPU from what is measured.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._names: dict[TaskID, str] = {}
        self._drawn = 0.0
        self.progress = Progress(
            TextColumn("{task.description}"),
            TextColumn("{task.fields[loop]}"),
            BarColumn(bar_width=18),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            auto_refresh=False,
            disable=not console.is_terminal,
        )

    def add(self, program: str, loop: str, steps: int) -> TaskID:
        """Add a bar."""
        bar = self.progress.add_task(program, total=steps, loop=loop, note="")
        self._names[bar] = f"{program}, {loop}"
        return bar

    def step(self, bar: TaskID) -> None:
        """Move a bar by one step."""
        self.progress.update(bar, advance=1, refresh=True)

    def move(self, bar: TaskID, done: int) -> None:
        """Move a bar to so many steps; it is drawn a few times a second at most."""
        now = time.monotonic()
        self.progress.update(bar, completed=done, refresh=now - self._drawn > DRAW_S)
        if now - self._drawn > DRAW_S:
            self._drawn = now

    def note(self, bar: TaskID, text: str) -> None:
        """Write beside a bar; without a terminal, print a line."""
        self.progress.update(bar, note=text, refresh=True)
        if not self._console.is_terminal:
            self._console.print(f"{self._names[bar]}: {text}", highlight=False)


class Comparison:
    """The table: what was measured on each of the two loops, and how they compare."""

    def __init__(self, title: str, loops: Sequence[str]) -> None:
        self.rendered = Table(
            title=title,
            title_justify="left",
            caption=f"ratio: {loops[1]} / {loops[0]}",
            caption_justify="right",
            box=box.SIMPLE_HEAD,
            pad_edge=False,
        )
        self.rendered.add_column("program")
        self.rendered.add_column("measured")
        for name in (*loops, "ratio"):
            self.rendered.add_column(name, justify="right")

    def add(
        self,
        program: str,
        measured: str,
        samples: Sequence[Sequence[float]],
        *,
        more_is_better: bool = False,
        marks: Sequence[str] = ("", ""),
    ) -> None:
        """Add a row: for each loop the samples' median, half their range, and a mark."""
        cells = [_cell(values, mark) for values, mark in zip(samples, marks, strict=True)]
        ratio = "-"
        if all(samples):
            quotient = median(samples[1]) / median(samples[0])
            gain = quotient - 1 if more_is_better else 1 - quotient
            style = "green" if gain > NOTICEABLE else "red" if gain < -NOTICEABLE else "none"
            ratio = f"[{style}]{quotient:.2f}[/]"
        self.rendered.add_row(program, measured, *cells, ratio)

    def end_section(self) -> None:
        """Set off the rows that follow."""
        self.rendered.add_section()


def files_table(title: str, files: int, seconds: Mapping[str, Sequence[float]]) -> Table:
    """Put the ways to hash a tree side by side."""
    table = Table(
        title=f"{title}: median ± half the range",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
    )
    for heading in ("way", "seconds", "files/s", "of synchronous"):
        table.add_column(heading, justify="left" if heading == "way" else "right")
    base = seconds["synchronous"]
    for way, taken in seconds.items():
        rates = [files / one for one in taken]
        ratio = f"{median(base) / median(taken):.2f}" if base and taken else "-"
        table.add_row(way, _cell(taken, ""), _cell(rates, ""), ratio)
    return table


def _cell(values: Sequence[float], mark: str) -> str:
    if not values:
        return "[red]failed[/]"
    middle = median(values)
    digits = 0 if middle >= 100 else 1 if middle >= 10 else 2
    spread = f"±{(max(values) - min(values)) / 2 / middle:.0%}" if len(values) > 1 else ""
    return f"{middle:,.{digits}f}{spread:>5}{mark:1}"
