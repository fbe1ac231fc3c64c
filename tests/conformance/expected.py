"""What expected.toml says: differences, and classes that are left out or make no loop."""

from __future__ import annotations

import fnmatch
import re
import tomllib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

# Sections of the file: the key that names what is meant, and the keys that narrow it.
_SECTIONS = {
    "differs": ("tests", ("python", "loops", "drivers")),
    "left_out": ("classes", ("python",)),
    "makes_no_loop": ("classes", ("python",)),
}


@dataclass
class Entry:
    """One entry: patterns of test or class ids (fnmatch), where they hold, and why."""

    patterns: list[str]
    reason: str
    python: list[str] | None = None
    loops: list[str] | None = None
    drivers: list[str] | None = None
    unmatched: set[str] = field(init=False)

    def __post_init__(self) -> None:
        self.unmatched = set(self.patterns)

    def matches(self, name: str) -> bool:
        """Whether a pattern fits; those that ever did are struck off `unmatched`."""
        fitting = [pattern for pattern in self.patterns if fnmatch.fnmatchcase(name, pattern)]
        self.unmatched.difference_update(fitting)
        return bool(fitting)


@dataclass
class Expectations:
    """The entries that hold for one Python, loop and driver."""

    differs: list[Entry]
    left_out: list[Entry]
    makes_no_loop: list[Entry]

    def difference(self, test: str) -> Entry | None:
        """The entry that expects this test not to pass."""
        return _first(self.differs, test)

    def reason_left_out(self, class_id: str) -> str | None:
        """Why this class is not run at all."""
        entry = _first(self.left_out, class_id)
        return entry.reason if entry else None

    def no_loop(self, class_id: str) -> bool:
        """Whether this class is known to make no loop under test."""
        return _first(self.makes_no_loop, class_id) is not None

    def stale(self, modules: Iterable[str]) -> list[str]:
        """Patterns on these modules that fit no test or class: the file must not rot."""
        names = set(modules)
        return [
            pattern
            for entry in (*self.differs, *self.left_out, *self.makes_no_loop)
            for pattern in sorted(entry.unmatched)
            if pattern.split(".")[0] in names
        ]


def load(path: Path, *, python: str, loop: str, driver: str | None) -> Expectations:
    """Read the file for one run. Raises ValueError, naming the entry, on what is wrong."""
    with path.open("rb") as file:
        data = tomllib.load(file)
    unknown = sorted(set(data) - set(_SECTIONS))
    if unknown:
        raise ValueError(f"{path}: unknown section {unknown[0]}; use {', '.join(_SECTIONS)}")
    sections: dict[str, list[Entry]] = {}
    for section in _SECTIONS:
        entries = [_entry(path, section, raw) for raw in data.get(section, [])]
        sections[section] = [
            entry
            for entry in entries
            if (entry.python is None or python in entry.python)
            # Others than ringloop run for comparison: their failures are counted as such.
            and loop in (entry.loops or ["ringloop"] if section == "differs" else [loop])
            and (entry.drivers is None or driver in entry.drivers)
        ]
    return Expectations(**sections)


def _entry(path: Path, section: str, raw: dict[str, Any]) -> Entry:
    key, narrowing = _SECTIONS[section]
    patterns = raw.get(key)
    where = f"{path}: [[{section}]] {patterns or raw}"
    if not isinstance(patterns, list) or not patterns:
        raise ValueError(f"{where}: needs `{key}`, a list of ids")
    for pattern in patterns:
        if not re.match(r"\w+\.", pattern):
            raise ValueError(f"{where}: {pattern!r} must begin with a module's name and a dot")
    reason = raw.get("reason")
    if not isinstance(reason, str) or not reason.strip():
        raise ValueError(f"{where}: needs a `reason`")
    unknown = sorted(set(raw) - {key, "reason", *narrowing})
    if unknown:
        raise ValueError(f"{where}: unknown key {unknown[0]}")
    for name in narrowing:
        if not isinstance(raw.get(name, []), list):
            raise ValueError(f"{where}: `{name}` must be a list")
    return Entry(patterns, reason, **{name: raw.get(name) for name in narrowing})


def _first(entries: list[Entry], name: str) -> Entry | None:
    matching = [entry for entry in entries if entry.matches(name)]
    return matching[0] if matching else None
