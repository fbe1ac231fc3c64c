"""The conformance runner must not call a run good that was not: here it gets bad ones."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from expected import load
from loops import driver_problem

HERE = Path(__file__).parent
NO_LOOP = """
[[makes_no_loop]]
classes = ["well_behaved.WithoutALoop"]
reason = "it is told so"
"""


@dataclass
class Run:
    """What run.py printed, how it exited, and the outcomes in its JSON."""

    status: int
    output: str
    outcomes: dict[str, str]
    problems: list[str]

    @property
    def last_line(self) -> str:
        return self.output.rstrip().splitlines()[-1]


def run(tmp_path: Path, *arguments: str, expected: str = "") -> Run:
    """Run the runner on modules of fixtures/, with stock asyncio under test."""
    expected_file = tmp_path / "expected.toml"
    expected_file.write_text(expected)
    results = tmp_path / "results.json"
    done = subprocess.run(
        [
            sys.executable,
            HERE / "run.py",
            *("--loop", "asyncio"),
            *("--package", "fixtures"),
            *("--hang-timeout", "3"),
            *("--expected", expected_file),
            *("--json", results),
            *arguments,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=120,
        check=False,
    )
    suites: list[dict[str, Any]] = json.loads(results.read_text()) if results.exists() else []
    return Run(
        done.returncode,
        done.stdout,
        {
            test["id"].split(".", 1)[1]: test["outcome"]
            for suite in suites
            for class_run in suite["classes"]
            for test in class_run["tests"]
        },
        [text for suite in suites for _, text in suite["problems"]],
    )


def test_a_good_run_is_good(tmp_path: Path) -> None:
    done = run(tmp_path, "--modules", "well_behaved", expected=NO_LOOP)
    assert done.status == 0, done.output
    assert done.outcomes == {
        "OnALoop.test_pass": "pass",
        "OnALoop.test_skip": "skip",
        "OnALoop.test_expected_failure": "pass",
        "OnALoop.test_public_class": "pass",
        "WithoutALoop.test_pass": "pass",
    }
    assert "Skipped: well_behaved.OnALoop.test_skip: says so" in done.output
    assert done.last_line == "4 passed, 0 failed, 1 skipped"


def test_failures_are_counted_with_what_never_ran(tmp_path: Path) -> None:
    done = run(tmp_path, "--modules", "fails")
    assert done.status == 1
    assert done.outcomes == {
        "Fails.test_failure": "fail",
        "Fails.test_error": "error",
        "Fails.test_sub_test": "fail",
        "Fails.test_pass": "pass",
        "SetUpFails.test_one": "not run",
        "SetUpFails.test_two": "not run",
    }
    assert "no set-up today" in done.output
    # Three failures, two tests that never ran, and the set-up of their class.
    assert done.last_line == "1 passed, 6 failed, 0 skipped"


def test_what_passes_by_itself_is_told_and_no_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONFORMANCE_BEEN_HERE", str(tmp_path / "been here"))
    done = run(tmp_path, "--modules", "flaky")
    assert done.status == 0, done.output
    assert done.outcomes == {"Flaky.test_second_time": "pass"}
    assert "FAIL, AND PASSED BY ITSELF: flaky.Flaky.test_second_time" in done.output
    assert "True is not false" in done.output
    assert "Failed, and passed by itself: flaky.Flaky.test_second_time" in done.output
    assert done.last_line == "1 passed, 0 failed, 0 skipped"


def test_a_hang_is_cut_off_and_the_rest_goes_on(tmp_path: Path) -> None:
    done = run(tmp_path, "--modules", "hangs")
    assert done.status == 1
    assert done.outcomes == {
        "Hangs.test_a_before": "pass",
        "Hangs.test_b_hang": "hang",
        "Hangs.test_c_after": "pass",
    }
    assert "in test_b_hang" in done.output, "the stacks are shown"
    assert done.last_line == "2 passed, 1 failed, 0 skipped"


def test_a_crash_is_counted_and_named(tmp_path: Path) -> None:
    done = run(tmp_path, "--modules", "crashes")
    assert done.status == 1
    assert done.outcomes == {
        "InATest.test_a_before": "pass",
        "InATest.test_b_crash": "crash",
        "InATest.test_c_after": "pass",
        "AtExit.test_pass": "pass",
        "LeavesQuietly.test_exit": "crash",
    }
    assert "SIGABRT" in done.output
    (at_exit,) = done.problems
    assert at_exit.startswith("crashes.AtExit: the process died of SIGABRT")
    assert done.last_line == "3 passed, 3 failed, 0 skipped"


def test_an_expected_difference_is_no_failure(tmp_path: Path) -> None:
    entry = '[[differs]]\ntests = ["fails.Fails.test_[ef]*"]\nloops = ["asyncio"]\nreason = "so"'
    done = run(tmp_path, "--modules", "fails", "-k", "Fails.test_failure", expected=entry)
    assert done.status == 0, done.output
    assert done.last_line == "0 passed, 0 failed, 0 skipped"
    assert "Expected to differ: fails.Fails.test_failure: so" in done.output


def test_an_unexpected_pass_fails(tmp_path: Path) -> None:
    entry = '[[differs]]\ntests = ["fails.Fails.*"]\nloops = ["asyncio"]\nreason = "is bad"'
    done = run(tmp_path, "--modules", "fails", "-k", "Fails.test_pass", expected=entry)
    assert done.status == 1
    assert "unexpectedly passes" in done.output
    assert done.last_line == "0 passed, 1 failed, 0 skipped"


def test_an_entry_that_fits_nothing_fails(tmp_path: Path) -> None:
    entry = (
        '[[differs]]\ntests = ["well_behaved.Gone.*"]\nloops = ["asyncio"]\nreason = "was bad"\n'
    )
    done = run(tmp_path, "--modules", "well_behaved", expected=entry + NO_LOOP)
    assert done.status == 1
    assert done.problems == ["well_behaved.Gone.* in expected.toml fits nothing here: take it out"]


@pytest.mark.parametrize("chosen", [("nothing",), ("well_behaved", "-k", "no such test")])
def test_nothing_run_fails(tmp_path: Path, chosen: tuple[str, ...]) -> None:
    done = run(tmp_path, "--modules", *chosen)
    assert done.status == 1
    assert "No test ran" in done.output


def test_a_class_must_make_a_loop(tmp_path: Path) -> None:
    done = run(tmp_path, "--modules", "well_behaved")
    assert done.status == 1
    (problem,) = done.problems
    assert problem.startswith("well_behaved.WithoutALoop: made no loop under test")

    wrongly_listed = NO_LOOP.replace("WithoutALoop", "*")
    done = run(tmp_path, "--modules", "well_behaved", expected=wrongly_listed)
    assert done.status == 1
    (problem,) = done.problems
    assert problem.startswith("well_behaved.OnALoop: made 4 loops")


def test_loops_that_are_not_under_test_are_noticed(tmp_path: Path) -> None:
    done = run(tmp_path, "--loop", "ringloop", "--driver", "epoll", "--modules", "ways_to_a_loop")
    assert done.status == 1
    assert set(done.outcomes.values()) == {"pass"}, done.output
    (problem,) = done.problems
    assert problem.startswith("ways_to_a_loop.Stock: made 1 loops of the stdlib's")


def test_another_driver_than_asked_for_is_a_problem() -> None:
    epoll = {"driver": "epoll", "reason": "blocked by seccomp"}
    assert driver_problem("epoll", epoll) is None
    problem = driver_problem("uring", epoll)
    assert problem is not None
    assert "got epoll: blocked by seccomp" in problem


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('[[differs]]\ntests = ["a.B.c"]', "needs a `reason`"),
        ('[[differs]]\nreason = "x"', "needs `tests`"),
        ('[[differs]]\ntests = ["*.c"]\nreason = "x"', "must begin with a module's name"),
        ('[[differs]]\ntests = ["a.b"]\nreason = "x"\npyhton = ["3.13"]', "unknown key pyhton"),
        ('[[difers]]\ntests = ["a.b"]\nreason = "x"', "unknown section difers"),
    ],
)
def test_mistakes_in_the_file_are_named(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "expected.toml"
    path.write_text(text)
    with pytest.raises(ValueError, match=complaint):
        load(path, python="3.13", loop="ringloop", driver="uring")


def test_entries_hold_where_they_say(tmp_path: Path) -> None:
    path = tmp_path / "expected.toml"
    path.write_text(
        '[[differs]]\ntests = ["a.B.*"]\npython = ["3.12"]\ndrivers = ["uring"]\nreason = "x"'
    )

    def is_expected(python: str, loop: str, driver: str | None) -> bool:
        return load(path, python=python, loop=loop, driver=driver).difference("a.B.c") is not None

    assert is_expected("3.12", "ringloop", "uring")
    assert not is_expected("3.13", "ringloop", "uring")
    assert not is_expected("3.12", "ringloop", "epoll")
    assert not is_expected("3.12", "uvloop", None)
