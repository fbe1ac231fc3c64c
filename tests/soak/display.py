"""Progress while it runs, and one table in the end."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live
from rich.table import Table

from machine import open_fds
from soak.health import MIB

if TYPE_CHECKING:
    from soak.runner import Soak

REFRESH_S = 0.25
LINE_S = 10.0  # without a terminal


class Board:
    """Of a run: alive on a terminal, a line now and then elsewhere."""

    def __init__(self, soak: Soak) -> None:
        self._soak = soak
        self._console = Console(highlight=False)
        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._start = time.monotonic()
        self._drawn = self._said = 0.0

    def __enter__(self) -> None:
        self._start = time.monotonic()
        if self._console.is_terminal:
            self._live.start()

    def __exit__(self, *_exc: object) -> None:
        if self._console.is_terminal:
            self._live.stop()

    def update(self) -> None:
        """Draw, if it is time to. Only when told: what draws by itself would be a thread."""
        now = time.monotonic()
        if self._console.is_terminal and now - self._drawn >= REFRESH_S:
            self._drawn = now
            self._live.update(self.table(live=True), refresh=True)

    def line(self) -> None:
        """After a round."""
        soak, tally = self._soak, self._soak.tally
        now = time.monotonic()
        if not self._console.is_terminal and now - self._said >= LINE_S and soak.health.rss:
            self._said = now
            rss = soak.health.rss[-1]
            self._console.print(
                f"{soak.settings.driver}: {now - self._start:.0f} s, {tally.finished} scenarios, "
                f"{tally.bytes_checked / MIB:.0f} MiB checked, at rest {rss / MIB:.1f} MiB"
            )

    def table(self, live: bool = False) -> Table:
        soak, tally = self._soak, self._soak.tally
        passed = time.monotonic() - self._start
        table = Table(
            title=f"{soak.settings.driver}, seed {soak.settings.seed}, "
            f"{passed:.0f} of {soak.settings.seconds:.0f} s",
            title_justify="left",
            show_header=False,
        )
        table.add_row("scenarios", f"{tally.finished}, {tally.cancelled} of them cancelled")
        for name, times in sorted(tally.by_scenario.items()):
            table.add_row(f"  {name}", str(times))
        table.add_row("bytes checked", f"{tally.bytes_checked / MIB:.1f} MiB")
        table.add_row("datagrams checked", str(tally.datagrams))
        table.add_row("exceptions provoked", str(tally.provoked))
        if live:
            table.add_row("running", f"{tally.started - tally.finished} scenarios")
            table.add_row("live connections' ends", str(tally.connections))
            table.add_row("memory", f"{soak.health.live_rss() / MIB:.1f} MiB")
            table.add_row("file descriptors", str(len(open_fds())))
        elif soak.health.rss:
            first, last = soak.health.rss[0], soak.health.rss[-1]
            table.add_row("memory at rest", f"{first / MIB:.1f} MiB, then {last / MIB:.1f} MiB")
            growth = soak.health.growth()
            told = "too short to tell" if growth is None else f"{growth / MIB:+.1f} MiB"
            table.add_row("its trend", told)
        table.add_row("failures", str(len(tally.failures)))
        return table

    def conclude(self) -> None:
        for failure in self._soak.tally.failures:
            self._console.print(f"FAILED: {failure}\n", markup=False, soft_wrap=True)
        self._console.print(self.table())
