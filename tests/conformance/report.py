"""What a run comes to: verdicts against expected.toml, the summary, and JSON."""

from __future__ import annotations

import platform
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from children import ClassRun, Test
    from expected import Expectations

COLUMNS = ("run", "pass", "fail", "error", "skip", "expected")
MANY_TESTS = 3


@dataclass
class Suite:
    """All classes run on one loop and driver, and what is wrong beside single tests."""

    loop: str
    driver: str | None
    modules: list[str]
    classes: list[ClassRun] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)  # modules that this Python does not have
    left_out: dict[str, tuple[str, int]] = field(default_factory=dict)  # class: reason, tests
    problems: list[tuple[str, str]] = field(default_factory=list)  # module, text
    flaky: list[str] = field(default_factory=list)  # failed, and passed by itself

    @property
    def title(self) -> str:
        """The loop, its driver and the Python, in words."""
        where = f"{self.loop} ({self.driver})" if self.driver else self.loop
        return f"{where} on CPython {platform.python_version()}, Linux {platform.release()}"


def judge(suite: Suite, expectations: Expectations, *, selective: bool) -> None:
    """Hold the results against what was expected; adds to the problems of the suite.

    `selective` says that only some tests of the classes were chosen: then a class may make
    no loop, and an entry of the file match nothing, without anything being wrong.
    """
    for run in suite.classes:
        for test in run.tests:
            entry = expectations.difference(test.id)
            if entry is None or test.outcome in ("skip", "not run"):
                continue  # what did not run has not shown the difference
            if test.outcome == "pass":
                test.outcome = "fail"
                test.detail = (
                    "unexpectedly passes: take it out of expected.toml, "
                    f"which says it cannot ({entry.reason})"
                )
            else:
                test.expected = entry.reason
        suite.problems += [(run.module, f"{run.id}: {text}") for text in run.problems]
        suite.problems += [
            (run.module, f"{run.id}: {text}")
            for text in _loop_problems(run, expectations, selective)
        ]
    if not selective:
        suite.problems += [
            (pattern.split(".")[0], f"{pattern} in expected.toml fits nothing here: take it out")
            for pattern in expectations.stale(set(suite.modules) - set(suite.absent))
        ]
        for module in suite.modules:
            if module not in suite.absent and not count(suite, module)["run"]:
                suite.problems.append((module, f"{module}: no test of this module ran"))


def _loop_problems(run: ClassRun, expectations: Expectations, selective: bool) -> list[str]:
    """Whether the class ran on the loop under test, as far as one can tell by counting."""
    found = []
    listed = expectations.no_loop(run.id)
    if run.stock_loops_made:
        found.append(
            f"made {run.stock_loops_made} loops of the stdlib's: teach loops.py that way to a loop"
        )
    ran_well = run.complete and not run.problems
    if ran_well and not selective and any(test.outcome != "skip" for test in run.tests):
        if not run.loops_made and not listed:
            found.append("made no loop under test, and is not under makes_no_loop in expected.toml")
        if run.loops_made and listed:
            found.append(
                f"made {run.loops_made} loops: take it out of makes_no_loop in expected.toml"
            )
    return found


def count(suite: Suite, module: str | None = None) -> Counter[str]:
    """The columns of the summary for a module, or for all."""
    counted: Counter[str] = Counter()
    for run in suite.classes:
        if module in (None, run.module):
            counted.update(_column(test) for test in run.tests)
    counted["run"] = counted.total() - counted["skip"]
    counted["error"] += sum(module in (None, where) for where, _ in suite.problems)
    return counted


def _column(test: Test) -> str:
    if test.expected is not None:
        return "expected"
    return test.outcome if test.outcome in ("pass", "fail", "skip") else "error"


def summary(suite: Suite) -> str:
    """The table by module, and what a reader should know about its numbers."""
    width = max(len(module) for module in (*suite.modules, "total"))
    lines = ["", suite.title, "", _row("module", COLUMNS, width)]
    for module in suite.modules:
        if module in suite.absent:
            lines.append(f"{module:{width}}  not in this Python")
        else:
            counted = count(suite, module)
            lines.append(_row(module, [f"{counted[name]:,}" for name in COLUMNS], width))
    total = count(suite)
    lines += [_row("total", [f"{total[name]:,}" for name in COLUMNS], width), ""]

    on_loop = [test for run in suite.classes if run.loops_made for test in run.tests]
    lines.append(
        f"{len(on_loop):,} of these tests are in the "
        f"{sum(run.loops_made > 0 for run in suite.classes)} classes that made a loop under test "
        f"({sum(run.loops_made for run in suite.classes):,} loops); "
        "the others test asyncio without one."
    )
    for class_id, (reason, tests) in suite.left_out.items():
        lines.append(f"Left out: {class_id} ({tests} tests): {reason}")
    everything = [test for run in suite.classes for test in run.tests]
    skipped = [(test.detail, test.id) for test in everything if test.outcome == "skip"]
    lines += [f"Skipped: {line}" for line in _by_reason(skipped)]
    differing = [(test.expected, test.id) for test in everything if test.expected is not None]
    lines += [f"Expected to differ: {line}" for line in _by_reason(differing)]
    lines += [f"Failed, and passed by itself: {test_id}" for test_id in suite.flaky]
    return "\n".join(lines)


def as_json(suite: Suite) -> dict[str, Any]:
    """All that is known about the run, for `--json`."""
    return {
        **asdict(suite),
        "python": platform.python_version(),
        "kernel": platform.release(),
        "total": {name: count(suite)[name] for name in COLUMNS},
    }


def _row(name: str, cells: list[str] | tuple[str, ...], width: int) -> str:
    return f"{name:{width}}" + "".join(f"{cell:>10}" for cell in cells)


def _by_reason(reasons_and_ids: list[tuple[str, str]]) -> list[str]:
    """A line for each test, or for a whole class where one reason has many of its tests."""
    groups: dict[tuple[str, str], list[str]] = {}
    for reason, test_id in reasons_and_ids:
        class_id = test_id.rsplit(".", 1)[0]
        groups.setdefault((class_id, " ".join(reason.split())), []).append(test_id)
    lines = []
    for (class_id, reason), ids in groups.items():
        if len(ids) > MANY_TESTS:
            lines.append(f"{class_id} ({len(ids)} tests): {reason}")
        else:
            lines += [f"{test_id}: {reason}" for test_id in ids]
    return lines
