"""What a run found: every round as it was, to and from JSON, and medians over the rounds."""

from __future__ import annotations

import json
import statistics
from dataclasses import MISSING, dataclass, field, fields
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from pathlib import Path

FORMAT = 2
ROUNDS_FOR_A_VERDICT = 3
NO_DIRECT = "files, direct"
"""In `not_run`: the row that a file system may refuse."""
BUSY_MACHINE = 0.5
"""A load average at the start, above which other programs disturb the figures."""


@dataclass(frozen=True)
class Round:
    """One peer's window in one round of a cell. With an `error`, the figures mean nothing."""

    cell: str
    peer: str
    round: int
    requests: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    """Of what is measured: the server, or the client."""
    load_cpu_seconds: float = 0.0
    latency_us: dict[str, float] = field(default_factory=dict)
    """Of servers: p50, p99, p999, max."""
    resent: int = 0
    """Datagrams that got no answer and were sent again."""
    wrong: bool = False
    error: str | None = None

    @property
    def cpu_us(self) -> float:
        return self.cpu_seconds / self.requests * 1e6

    @property
    def requests_per_s(self) -> float:
        return self.requests / self.seconds

    @property
    def cpu_share(self) -> float:
        """Of its core's time."""
        return self.cpu_seconds / self.seconds

    @property
    def load_share(self) -> float:
        return self.load_cpu_seconds / self.seconds


@dataclass(frozen=True)
class OpenRound:
    """One peer's window at a fixed rate of requests a second."""

    cell: str
    peer: str
    round: int
    rate: float
    common: bool
    """The rate is that of all peers, and not the peer's own."""
    requests: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    latency_us: dict[str, float] = field(default_factory=dict)
    """From the time at which a request was due."""
    wrong: bool = False
    error: str | None = None


@dataclass(frozen=True)
class MemoryRound:
    kind: str
    peer: str
    round: int
    connections: int = 0
    rest_bytes: int = 0
    """Resident, of the process without any connection."""
    connection_bytes: float = 0.0
    """For each idle connection."""
    error: str | None = None


@dataclass(frozen=True)
class MicroRound:
    peer: str
    round: int
    rates: dict[str, float] = field(default_factory=dict)
    error: str | None = None


@dataclass(frozen=True)
class LateRound:
    """How late a ticker was for the ticks that fell due while one row of the files ran."""

    row: str
    peer: str
    round: int
    ticks: int
    p999_ms: float
    max_ms: float


@dataclass(frozen=True)
class Count:
    """Per request; None where the tool was missing."""

    cell: str
    peer: str
    system_calls: float | None = None
    by_name: dict[str, float] = field(default_factory=dict)
    instructions: float | None = None
    """In user space."""
    error: str | None = None


@dataclass(frozen=True)
class Spread:
    """A median, and what it is the median of."""

    median: float
    low: float
    high: float
    count: int

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread | None:
        found = list(values)
        return cls(statistics.median(found), min(found), max(found), len(found)) if found else None

    @property
    def verdict(self) -> str:
        """Of a ratio: it is less or more only where every round says so, and there are some."""
        if self.count < ROUNDS_FOR_A_VERDICT:
            return ""
        return "less" if self.high < 1 else "more" if self.low > 1 else "even"


@dataclass
class Results:
    machine: dict[str, Any]
    settings: dict[str, Any]
    not_run: dict[str, str] = field(default_factory=dict)
    """Why a peer, or a part, was left out."""
    closed: list[Round] = field(default_factory=list)
    """Closed loops: each connection or task waits for one answer and asks again."""
    open: list[OpenRound] = field(default_factory=list)
    """Open loops: requests come at a fixed rate."""
    micro: list[MicroRound] = field(default_factory=list)
    memory: list[MemoryRound] = field(default_factory=list)
    counts: list[Count] = field(default_factory=list)
    files: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    """Operations a second of each round, by row and peer."""
    late: list[LateRound] = field(default_factory=list)
    """Of the row `late` of the files, by the row that ran beside it; older results have none."""
    file_system: str = ""
    """Which one the files were on; empty where it is not known, as in older results."""

    # --- questions

    def rounds(self, cell: str, peer: str) -> dict[int, Round]:
        """By number; none of a peer that failed in one of them."""
        found = {r.round: r for r in self.closed if r.cell == cell and r.peer == peer}
        return {} if any(r.error for r in found.values()) else found

    def error(self, cell: str, peer: str) -> str | None:
        found = (r.error for r in self.closed if r.cell == cell and r.peer == peer and r.error)
        return next(found, None)

    def spread(self, cell: str, peer: str, figure: Callable[[Round], float]) -> Spread | None:
        return Spread.of(figure(r) for r in self.rounds(cell, peer).values())

    def latency(self, cell: str, peer: str, common: bool, name: str) -> Spread | None:
        """In microseconds; `name` is p50, p99, p999 or max. None if a round failed."""
        found = [r for r in self.open if r.cell == cell and r.peer == peer and r.common == common]
        return None if any(r.error for r in found) else Spread.of(r.latency_us[name] for r in found)

    def memory_of(self, kind: str, peer: str) -> Spread | None:
        """Bytes for each connection."""
        found = [r for r in self.memory if (r.kind, r.peer) == (kind, peer) and not r.error]
        return Spread.of(r.connection_bytes for r in found)

    def memory_at_rest(self, peer: str) -> Spread | None:
        """Bytes of the process without connections, and without TLS."""
        found = [r for r in self.memory if r.peer == peer and not r.error]
        plain = [r for r in found if r.kind == "TCP"] or found
        return Spread.of(r.rest_bytes for r in plain)

    def file_ratio(self, row: str, peer: str, base: str) -> Spread | None:
        """The rate over that of `base`, within each round."""
        rates = self.files.get(row, {})
        return Spread.of(
            a / b for a, b in zip(rates.get(peer, []), rates.get(base, []), strict=False)
        )

    def cpu_ratio(self, cell: str, peer: str, base: str) -> Spread | None:
        """CPU a request over that of `base`, within each round."""
        ours, theirs = self.rounds(cell, peer), self.rounds(cell, base)
        return Spread.of(ours[n].cpu_us / theirs[n].cpu_us for n in ours.keys() & theirs.keys())

    def rate(self, peer: str, micro: str) -> Spread | None:
        return Spread.of(r.rates[micro] for r in self.micro if r.peer == peer and not r.error)

    def rate_ratio(self, peer: str, base: str, micro: str) -> Spread | None:
        """The rate over that of `base`, within each round."""
        rates = {(r.peer, r.round): r.rates[micro] for r in self.micro if not r.error}
        return Spread.of(
            rate / rates[base, n]
            for (p, n), rate in rates.items()
            if p == peer and (base, n) in rates
        )

    @property
    def cells(self) -> list[str]:
        return list(dict.fromkeys(r.cell for r in self.closed))

    @property
    def failures(self) -> list[tuple[str, str, str]]:
        """Where, who, why."""
        return [
            *[(r.cell, r.peer, r.error) for r in self.closed if r.error],
            *[(f"latency of {r.cell}", r.peer, r.error) for r in self.open if r.error],
            *[(f"memory, {r.kind}", r.peer, r.error) for r in self.memory if r.error],
            *[("micro-benchmarks", r.peer, r.error) for r in self.micro if r.error],
            *[(f"counters of {r.cell}", r.peer, r.error) for r in self.counts if r.error],
        ]

    # --- to a file and back

    def save(self, path: Path) -> None:
        """A line for each round, without what is as usual in it."""
        data: dict[str, Any] = {"format": FORMAT}
        for part in fields(self):
            value = getattr(self, part.name)
            data[part.name] = [_brief(r) for r in value] if part.name in ROUNDS else value
        parts = (f" {json.dumps(name)}: {_lines(value)}" for name, value in data.items())
        path.write_text("{\n" + ",\n".join(parts) + "\n}\n")

    @classmethod
    def load(cls, path: Path) -> Results:
        """ValueError if the file holds something else."""
        data = json.loads(path.read_text())
        if not isinstance(data, dict) or data.pop("format", None) != FORMAT:
            raise ValueError(f"{path} does not hold results of this benchmark")
        for name, kind in ROUNDS.items():
            data[name] = [kind(**r) for r in data.get(name, [])]
        return cls(**data)

    @classmethod
    def merge(cls, parts: Sequence[Results]) -> Results:
        """Of several runs on one machine; what was measured twice is the later one's.

        ValueError if the machines differ, or what was measured.
        """
        merged = cls(dict(parts[0].machine), dict(parts[0].settings))
        for part in parts:
            for name in ("cpu", "cores", "kernel", "python", "versions"):
                ours, theirs = merged.machine.get(name), part.machine.get(name)
                if ours != theirs:
                    raise ValueError(
                        f"results that do not go together: {name} is {ours}, or {theirs}"
                    )
            loads = [of.machine.get("load_average", 0) for of in (merged, part)]
            merged.machine["load_average"] = max(loads)
            merged.machine["date"] = max(merged.machine["date"], part.machine["date"])
            if part.files:  # as a whole, as another file system has other figures
                merged.files, merged.late = part.files, part.late
                merged.file_system = part.file_system
                merged.not_run.pop(NO_DIRECT, None)
            merged.not_run |= part.not_run
            if part.micro:
                merged.micro = part.micro
            merged.closed = _replace(merged.closed, part.closed, lambda r: r.cell)
            merged.open = _replace(merged.open, part.open, lambda r: r.cell)
            merged.counts = _replace(merged.counts, part.counts, lambda r: r.cell)
            merged.memory = _replace(merged.memory, part.memory, lambda r: r.kind)
        return merged


ROUNDS: dict[str, type] = {
    "closed": Round,
    "open": OpenRound,
    "micro": MicroRound,
    "memory": MemoryRound,
    "late": LateRound,
    "counts": Count,
}
"""The lists in `Results`, and what they hold."""

T = TypeVar("T")


def _replace(old: list[T], new: list[T], key: Callable[[T], str]) -> list[T]:
    replaced = {key(r) for r in new}
    return [r for r in old if key(r) not in replaced] + new


def _brief(found: Any) -> dict[str, Any]:
    values = {f.name: (getattr(found, f.name), f) for f in fields(found)}
    return {
        name: _rounded(value)
        for name, (value, f) in values.items()
        if value != (f.default_factory() if f.default_factory is not MISSING else f.default)
    }


def _rounded(value: Any) -> Any:
    """To six digits, which is more than any of this is worth."""
    if isinstance(value, dict):
        return {name: _rounded(item) for name, item in value.items()}
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _lines(value: Any) -> str:
    if isinstance(value, list) and value:
        return "[\n" + ",\n".join(f"  {json.dumps(item)}" for item in value) + "\n ]"
    return json.dumps(value)
