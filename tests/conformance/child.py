"""Run one test class of the stdlib on the loop under test; a process of run.py.

    child.py LOOP RESULTS PACKAGE run MODULE CLASS TEST...
    child.py LOOP RESULTS PACKAGE list MODULE...

RESULTS is a file. What happened is written there as JSON lines, one write for each, so
that a crash keeps all that came before it; what the tests print goes to stdout and stderr.
"""

# ruff: noqa: N802 (the method names are unittest's)

from __future__ import annotations

import asyncio
import faulthandler
import importlib
import importlib.util
import json
import os
import signal
import sys
import time
import traceback
import unittest
from typing import TYPE_CHECKING, Any

import loops

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    ExcInfo = tuple[type[BaseException], BaseException, TracebackType] | tuple[None, None, None]
    Emit = Callable[..., None]

# multiprocessing runs this file again, as __mp_main__, in the workers that a test starts.
LOOP_VARIABLE = "RINGLOOP_CONFORMANCE_LOOP"


class Recorder(unittest.TestResult):
    """Emits a `start` and a `result` for each test, `class` for what befell its class."""

    def __init__(self, emit: Emit) -> None:
        super().__init__()
        self._emit = emit
        self._forget()

    def _forget(self) -> None:
        self._began = time.perf_counter()
        self._problems: list[tuple[str, str]] = []
        self._skip: str | None = None

    def startTest(self, test: unittest.TestCase) -> None:
        super().startTest(test)
        self._emit("start", test=test._testMethodName)
        self._began = time.perf_counter()

    def stopTest(self, test: unittest.TestCase) -> None:
        super().stopTest(test)
        seconds = round(time.perf_counter() - self._began, 3)
        outcome = "pass"
        detail = ""
        if self._problems:
            kinds = [kind for kind, _ in self._problems]
            outcome = "error" if "error" in kinds else "fail"
            detail = "\n".join(text for _, text in self._problems)
        elif self._skip is not None:
            outcome = "skip"
            detail = self._skip
        self._emit(
            "result", test=test._testMethodName, outcome=outcome, seconds=seconds, detail=detail
        )
        self._forget()  # here, as some versions call no startTest for a skipped test

    def addFailure(self, test: unittest.TestCase, err: ExcInfo) -> None:
        self._problems.append(("fail", _text(err)))

    def addError(self, test: unittest.TestCase, err: ExcInfo) -> None:
        if isinstance(test, unittest.TestCase):
            self._problems.append(("error", _text(err)))
        else:  # a placeholder of unittest: setUpClass, tearDownModule and the like
            self._emit("class", problem=f"{test}: {_text(err)}")

    def addSubTest(
        self, test: unittest.TestCase, subtest: unittest.TestCase, err: ExcInfo | None
    ) -> None:
        if err is not None and err[0] is not None:
            kind = "fail" if issubclass(err[0], test.failureException) else "error"
            self._problems.append((kind, f"{subtest}\n{_text(err)}"))

    def addSkip(self, test: unittest.TestCase, reason: str) -> None:
        if isinstance(test, unittest.TestCase):
            self._skip = reason
        else:
            self._emit("class", skip=reason)

    def addExpectedFailure(self, test: unittest.TestCase, err: ExcInfo) -> None:
        """The stdlib expects it, whatever the loop: it passes."""

    def addUnexpectedSuccess(self, test: unittest.TestCase) -> None:
        self._problems.append(("fail", "passed, where the test is marked as an expected failure"))


def _text(err: ExcInfo) -> str:
    return "".join(traceback.format_exception(err[1]))


def _list(package: str, names: list[str], emit: Emit) -> None:
    """Emit the classes and tests of each module, or why there are none."""
    importlib.import_module(package)
    for name in names:
        full_name = f"{package}.{name}"
        if importlib.util.find_spec(full_name) is None:
            emit("absent", module=name)
            continue
        try:
            module = importlib.import_module(full_name)
        except unittest.SkipTest as skip:
            emit("module", module=name, classes={}, skip=str(skip))
            continue
        except Exception as error:
            text = "".join(traceback.format_exception(error))
            emit("module", module=name, classes={}, problem=text)
            continue
        classes: dict[str, list[str]] = {}
        for class_name, value in vars(module).items():
            if (
                isinstance(value, type)
                and issubclass(value, unittest.TestCase)
                and value.__module__ == full_name
            ):
                tests = list(unittest.defaultTestLoader.getTestCaseNames(value))
                if tests:
                    classes[class_name] = tests
        emit("module", module=name, classes=classes)


def _run(module: Any, class_name: str, names: list[str], emit: Emit) -> None:
    test_class: type[unittest.TestCase] = getattr(module, class_name)
    unittest.TestSuite(test_class(name) for name in names).run(Recorder(emit))


def main(argv: list[str]) -> None:
    loop, results, package, what, *names = argv
    faulthandler.enable()  # a crash, or the SIGABRT that cuts off a hang, shows the stacks
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # As after `make conformance &` in a script; tests that interrupt themselves need it.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    results_fd = os.open(results, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)

    own_pid = os.getpid()

    def emit(event: str, **values: object) -> None:
        if os.getpid() == own_pid:  # a fork that comes back from its test has no say
            os.write(results_fd, json.dumps({"event": event, **values}).encode() + b"\n")

    os.environ[LOOP_VARIABLE] = loop
    made = loops.install(loop)
    if what == "list":
        asyncio.new_event_loop().close()  # if there can be none, say so before any test
        loops.check_driver(loop)
        _list(package, names, emit)
    else:
        module, class_name, *tests = names
        _run(importlib.import_module(f"{package}.{module}"), class_name, tests, emit)
        loops.check_driver(loop)
    emit("end", made=made.under_test, stock=made.stock)


if __name__ == "__main__":
    main(sys.argv[1:])
elif __name__ == "__mp_main__":
    loops.install(os.environ[LOOP_VARIABLE])
