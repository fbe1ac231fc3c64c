"""The command line."""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
from pathlib import Path

from ringloop._driver.choose import why_not_uring
from soak.runner import Settings, Soak
from soak.watchdog import HANG_EXIT

DRIVERS = ("uring", "epoll", "tiny-uring", "faulty-1", "faulty-2")
INTERRUPTED_EXIT = 130

ABOUT = """\
Mix every transport of asyncio on one ringloop loop, with random behaviour: streams over
TCP, Unix sockets and TLS, datagrams, sock_*, add_reader, children, pipes, sendfile,
timers, threads, signals, names, other loops in other threads; with cancellation, resets,
half-closes, slow peers and exceptions in callbacks. Every byte that arrives is checked.

It fails on a wrong, lost, repeated or misdirected byte, on callbacks in the wrong order,
on any call of the loop's exception handler that was not provoked, on a hang, and when
between two rounds file descriptors, operations of the driver, tasks, threads, children,
objects or memory are left.
"""
EPILOG = """\
drivers: uring; epoll; tiny-uring, a ring whose queues overflow; faulty-N, epoll with
faults seeded by N; all: each of these in a process of its own, the time divided.

exit status: 0 all was well, 1 something was not, 2 this cannot run here, 3 a hang (the
stacks of all threads and tasks are on stderr).

The seed determines what is tried, not how the kernel and the clock mix it: a failure that
comes of a race may need more than one run with its seed.
"""


def known_driver(name: str) -> str:
    kind, _, seed = name.partition("-")
    if name not in (*DRIVERS, "all") and not (kind == "faulty" and seed.isdecimal()):
        raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(DRIVERS)}, all")
    return name


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "soak",
        description=ABOUT,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--minutes", type=float, default=1.0, help="how long in all (default: %(default)s)"
    )
    parser.add_argument("--driver", type=known_driver, default="all", help="(default: all)")
    parser.add_argument("--seed", type=int, help="repeat the choices of a run (default: new ones)")
    arguments = parser.parse_args()
    if arguments.minutes <= 0:
        parser.error("--minutes must be positive")
    if arguments.seed is None:
        arguments.seed = random.SystemRandom().getrandbits(32)
    return arguments


def main() -> int:
    arguments = parse()
    reason = why_not_uring()
    if arguments.driver == "all":
        return run_all(arguments.minutes, arguments.seed, reason)
    if "uring" in arguments.driver and reason:
        print(f"{arguments.driver} cannot run here: {reason}", file=sys.stderr)
        return 2
    print(f"soak: {arguments.driver}, seed {arguments.seed}", flush=True)
    soak = Soak(Settings(arguments.driver, arguments.minutes * 60, arguments.seed))
    try:
        passed = soak.run()
    except KeyboardInterrupt:
        return INTERRUPTED_EXIT
    soak.board.conclude()
    return 0 if passed else 1


def run_all(minutes: float, seed: int, why_no_uring: str | None) -> int:
    """A process for each driver: a crash of one is not the end of all."""
    usable = [name for name in DRIVERS if not (why_no_uring and "uring" in name)]
    outcomes = {}
    for name in usable:
        command = [sys.executable, str(Path(__file__).parent), "--driver", name]
        command += ["--minutes", str(minutes / len(usable)), "--seed", str(seed)]
        try:
            outcomes[name] = subprocess.run(command, check=False).returncode
        except KeyboardInterrupt:
            return INTERRUPTED_EXIT
    for name in DRIVERS:
        code = outcomes.get(name)
        words = {None: f"not run, {why_no_uring}", 0: "ok", 1: "FAILED", HANG_EXIT: "HANG"}
        print(f"{name:12} {words.get(code, f'FAILED, exit status {code}')}")
    return max((1 if code < 0 else code for code in outcomes.values()), default=2)
