"""Run CPython's own asyncio tests, those of the interpreter that runs this, on a loop.

    python tests/conformance/run.py [--loop NAME] [--driver uring|epoll|both]
        [--modules NAME ...] [--jobs N] [-k PATTERN] [--json FILE] [-v]

NAME is ringloop, ringloop-streams, asyncio or uvloop. A run on ringloop ends with the tests of
streams once more on ringloop-streams: the same loop, and its own stream classes.

Each test class runs in a process of its own (children.py starts child.py); a test that hangs
or crashes is cut off and counts as an error, and so does one that never ran. What fails and
passes when it is run once more by itself is told, and no failure. Where a difference from the
stdlib is right, or still to be made good, expected.toml says why.
Exits with 1 if anything failed, 2 if the run could not begin.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import signal
import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path

import children
import expected
import loops
import report

PACKAGE = "test.test_asyncio"
# The modules of test.test_asyncio that reach a loop through its public interface. The rest
# tests the inside of the stdlib's loops (test_selector_events, test_unix_events, ...).
MODULES = (
    "test_buffered_proto",
    "test_context",
    "test_eager_task_factory",
    "test_events",
    "test_futures2",
    "test_locks",
    "test_pep492",
    "test_queues",
    "test_runners",
    "test_sendfile",
    "test_server",
    "test_sock_lowlevel",
    "test_ssl",
    "test_staggered",
    "test_streams",
    "test_subprocess",
    "test_taskgroups",
    "test_tasks",
    "test_threads",
    "test_timeouts",
    "test_waitfor",
)
# Run once more with ringloop.streams in the place of asyncio's streams.
STREAM_MODULES = ("test_pep492", "test_streams")
DETAIL_LINES = 40
AGAIN_MAX = 10  # more than that is no accident


def main() -> int:
    args = _arguments()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # leaves no child behind either
    drivers: list[str | None] = [None]
    if args.loop in loops.RINGLOOPS:
        drivers = ["uring", "epoll"] if args.driver in (None, "both") else [args.driver]
    runs = [(args.loop, driver, args.modules) for driver in drivers]
    of_streams = [name for name in args.modules if name in STREAM_MODULES]
    if args.loop == "ringloop" and of_streams:
        runs += [("ringloop-streams", driver, of_streams) for driver in drivers]
    suites = []
    for loop, driver, modules in runs:
        settings = children.Settings(
            loop, driver, args.package, args.hang_timeout, threading.Event()
        )
        try:
            suites.append(_run_suite(args, settings, modules))
        except (RuntimeError, ValueError) as error:
            print(f"conformance: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("conformance: interrupted", file=sys.stderr)
            return 130
    if args.json:
        args.json.write_text(json.dumps([report.as_json(suite) for suite in suites], indent=1))
    passed = failed = skipped = 0
    nothing_ran = False
    for suite in suites:
        print(report.summary(suite))
        counted = report.count(suite)
        passed += counted["pass"]
        failed += counted["fail"] + counted["error"]
        skipped += counted["skip"]
        if not counted["run"]:
            nothing_ran = True
            print(f"No test ran on {suite.title}: that is a failure.")
    print(f"\n{passed} passed, {failed} failed, {skipped} skipped")
    return 1 if failed or nothing_ran else 0


def _run_suite(
    args: argparse.Namespace, settings: children.Settings, modules: list[str]
) -> report.Suite:
    """Run everything that was asked for on one loop and driver."""
    expectations = expected.load(
        args.expected,
        python="{}.{}".format(*sys.version_info[:2]),
        loop=settings.loop,
        driver=settings.driver,
    )
    suite = report.Suite(settings.loop, settings.driver, modules)
    _plan(suite, args.k, settings, expectations)
    print(f"{suite.title}: {len(suite.classes)} classes, {args.jobs} at a time", flush=True)
    # The classes with the most tests first, so that none of them is left for the end.
    order = sorted(suite.classes, key=lambda run: -len(run.tests))
    with ThreadPoolExecutor(args.jobs) as executor:
        futures = [executor.submit(children.run_class, run, settings) for run in order]
        try:
            _wait(futures, args.verbose)
        except BaseException:
            settings.stop.set()
            executor.shutdown(cancel_futures=True)
            raise
    _try_again(suite, settings, expectations)
    report.judge(suite, expectations, selective=bool(args.k))
    for run in suite.classes:
        for test in run.tests:
            if test.outcome not in ("pass", "skip") and test.expected is None:
                _print_failure(test.outcome, test.id, test.detail)
    for _, problem in suite.problems:
        _print_failure("problem", *problem.split(": ", 1))
    return suite


def _wait(futures: list[Future[children.ClassRun]], verbose: bool) -> None:
    for future in as_completed(futures):
        run = future.result()
        if verbose:
            for test in run.tests:
                print(f"{test.outcome:7} {test.seconds:7.3f} s  {test.id}", flush=True)


def _try_again(
    suite: report.Suite, settings: children.Settings, expectations: expected.Expectations
) -> None:
    """What failed once more, with nothing beside it: many of these tests measure time."""
    failed = [
        (run, test)
        for run in suite.classes
        for test in run.tests
        if test.outcome not in ("pass", "skip", "not run")
        and expectations.difference(test.id) is None
    ]
    for run, test in failed[:AGAIN_MAX]:
        alone = children.ClassRun(run.module, run.name, [children.Test(test.id)])
        (again,) = children.run_class(alone, settings).tests
        if again.outcome == "pass" and not alone.problems:
            _print_failure(f"{test.outcome}, and passed by itself", test.id, test.detail)
            suite.flaky.append(test.id)
            test.outcome = "pass"


def _plan(
    suite: report.Suite,
    patterns: list[str],
    settings: children.Settings,
    expectations: expected.Expectations,
) -> None:
    """Find out what there is to run. Raises RuntimeError if the loop cannot be made."""
    ending = children.run_child(settings, "list", *suite.modules)
    if ending.trouble:
        raise RuntimeError(
            f"cannot begin: {ending.trouble}\n{ending.output}\n"
            f"Needed are {settings.loop} and {settings.package}; some distributions put the "
            "latter into a package of its own (Debian: libpython3-testsuite)."
        )
    for event in ending.events:
        if event["event"] == "absent":
            suite.absent.append(event["module"])
        if event["event"] != "module":
            continue
        module: str = event["module"]
        if "problem" in event:
            suite.problems.append((module, f"{module}: cannot be imported: {event['problem']}"))
        for name, tests in event["classes"].items():
            class_id = f"{module}.{name}"
            reason = expectations.reason_left_out(class_id)
            if reason is not None:
                suite.left_out[class_id] = (reason, len(tests))
                continue
            ids = [f"{class_id}.{test}" for test in tests]
            chosen = [children.Test(id_) for id_ in ids if _is_chosen(id_, patterns)]
            if chosen:
                suite.classes.append(children.ClassRun(module, name, chosen))


def _is_chosen(test_id: str, patterns: list[str]) -> bool:
    return not patterns or any(
        fnmatch.fnmatchcase(test_id, pattern) if "*" in pattern else pattern in test_id
        for pattern in patterns
    )


def _print_failure(kind: str, name: str, detail: str) -> None:
    lines = detail.rstrip().splitlines()
    if len(lines) > DETAIL_LINES:
        lines = ["...", *lines[-DETAIL_LINES:]]
    print(f"\n{kind.upper()}: {name}")
    print("\n".join(f"  {line}" for line in lines), flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Run CPython's own asyncio tests on an event loop."
    )
    parser.add_argument("--loop", choices=loops.NAMES, default="ringloop")
    parser.add_argument(
        "--driver", choices=("uring", "epoll", "both"), help="of ringloop; both by default"
    )
    parser.add_argument(
        "--modules", nargs="+", default=["all"], metavar="NAME", help="test_...; all by default"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, metavar="N")
    parser.add_argument(
        "-k",
        action="append",
        default=[],
        metavar="PATTERN",
        help="only tests whose id has this in it, or fits it if it has a *",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all results there")
    parser.add_argument("-v", "--verbose", action="store_true", help="a line for each test")
    # For the tests of this runner.
    here = Path(__file__).parent
    parser.add_argument("--package", default=PACKAGE, help=argparse.SUPPRESS)
    parser.add_argument(
        "--expected", type=Path, default=here / "expected.toml", help=argparse.SUPPRESS
    )
    parser.add_argument("--hang-timeout", type=float, default=120.0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.driver and args.loop not in loops.RINGLOOPS:
        parser.error("--driver is for --loop ringloop and ringloop-streams")
    if args.jobs < 1:
        parser.error("--jobs must be at least 1")
    if args.modules == ["all"]:
        args.modules = list(MODULES)
    unknown = [name for name in args.modules if name not in MODULES]
    if unknown and args.package == PACKAGE:
        parser.error(f"no module {unknown[0]}; choose from: all {' '.join(MODULES)}")
    return args


if __name__ == "__main__":
    sys.exit(main())
