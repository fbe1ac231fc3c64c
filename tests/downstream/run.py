"""Run the test suites of other projects on ringloop, with the stock loop as the control.

    python tests/downstream/run.py --ringloop PATH [--short] [--loops uring,epoll] [SUITE ...]

suites.toml says which suites there are: each an sdist, pinned by version and hash, unpacked
into a cache folder and tested against the same version as pip installs it, in a virtual
environment of its own. `--ringloop` is the folder that `import ringloop` finds. `--short`
runs what suites.toml chose for it, a few minutes in all; suites without it are left out.

A suite with `replace` tests what ringloop.compat has in that package's place, on every loop
(the stock one is called "stock" then); its control is the package itself on the stock loop.

What fails on ringloop and not on the stock loop is run once more by itself. If it fails again
it needs an entry with a reason in expected.toml; without one, the run fails (1). An entry
whose test passes fails the run, too. 2: it could not begin.
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import hashlib
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
import tomllib
import urllib.request
import xml.etree.ElementTree as ET
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(__file__).parent
CONTROL = "asyncio"
LOOPS = ("uring", "epoll", CONTROL)
STOCK = "stock"
CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "ringloop-downstream"


class UnableError(Exception):
    """Something that a suite cannot do without is missing; the message says what to do."""


@dataclass
class Suite:
    """One entry of suites.toml."""

    name: str
    version: str
    sha256: str
    sources: str
    requires: list[str]
    arguments: list[str]
    timeout_s: int
    tests: list[str]
    short: list[str] = field(default_factory=list)
    url: str = ""
    environment: dict[str, str] = field(default_factory=dict)
    server: list[str] = field(default_factory=list)
    not_root: bool = False
    project: str = ""  # on PyPI, unless that is its name
    replace: str = ""

    def __post_init__(self) -> None:
        self.project = self.project or self.name

    @property
    def stem(self) -> str:
        return f"{self.project.replace('-', '_')}-{self.version}"


@dataclass
class Outcome:
    """What one run of a suite on one loop came to."""

    passed: set[str]
    failed: set[str]
    skipped: int
    log: Path
    trouble: str = ""

    def end(self) -> str:
        """Of the log: often all that is left of a machine of CI."""
        lines = self.log.read_text(errors="replace").splitlines()[-40:]
        return "\n".join(f"      {line}" for line in lines)


def say(text: str) -> None:
    print(text, flush=True)


def pip(python: Path | str, *arguments: str) -> None:
    subprocess.run([python, "-m", "pip", *arguments, "-qq"], check=True)


def fetch(suite: Suite, cache: Path) -> Path:
    """The suite's sdist, with the contents that the hash says."""
    sdist = cache / f"{suite.stem}.tar.gz"
    if suite.url:
        with urllib.request.urlopen(suite.url, timeout=60) as response:
            contents = response.read()
        if hashlib.sha256(contents).hexdigest() != suite.sha256:
            raise UnableError(f"{suite.url} is not what it was: its SHA-256 differs")
        sdist.write_bytes(contents)
    else:
        pinned = cache / f"{suite.stem}.txt"
        pinned.write_text(f"{suite.project}=={suite.version} --hash=sha256:{suite.sha256}\n")
        options = ("--no-deps", "--require-hashes", "--no-binary", suite.project)
        pip(sys.executable, "download", *options, "--dest", str(cache), "-r", str(pinned))
    return sdist


def prepare(suite: Suite, cache: Path) -> tuple[Path, Path]:
    """The suite's folder and the Python of its environment; made on the first run."""
    folder = cache / suite.stem
    if not folder.exists():
        say(f"{suite.name}: fetching the sdist of {suite.version}")
        sdist = fetch(suite, cache)
        with (
            tempfile.TemporaryDirectory(dir=cache) as unpacking,
            tarfile.open(sdist) as archive,
        ):
            archive.extractall(unpacking, filter="data")
            unpacked = Path(unpacking) / suite.stem
            if suite.sources:
                unpacked.joinpath(suite.sources).rename(unpacked / "moved-away")
            unpacked.rename(folder)
    version = "{}.{}".format(*sys.version_info[:2])
    environment = cache / f"{suite.stem}-python{version}"
    python = environment / "bin" / "python"
    wanted = "\n".join([f"{suite.project}=={suite.version}", *suite.requires])
    installed = environment / "installed.txt"
    if not installed.exists() or installed.read_text() != wanted:
        say(f"{suite.name}: installing it and what its tests need")
        subprocess.run([sys.executable, "-m", "venv", "--clear", environment], check=True)
        pip(python, "install", *wanted.splitlines())
        installed.write_text(wanted)
    return folder, python


@contextlib.contextmanager
def serving(command: list[str], port: int, log: Path) -> Iterator[None]:
    """Have a server of the suite's own listen on `port` of loopback."""
    if not command:
        yield
        return
    if not shutil.which(command[0]):
        raise UnableError(f"{command[0]} is not installed, and the suite needs it")
    with log.open("wb") as output:
        child = subprocess.Popen(
            [word.format(port=port) for word in command], stdout=output, stderr=output
        )
    try:
        deadline = time.monotonic() + 20
        while child.poll() is None and time.monotonic() < deadline:
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.05)
        else:
            raise UnableError(f"{command[0]} does not listen on port {port}, see {log}")
        yield
    finally:
        child.terminate()
        child.wait()


def not_root() -> list[str]:
    """What makes a command see itself as an ordinary user, with root's files."""
    if os.geteuid() != 0:
        return []
    nobody = pwd.getpwnam("nobody")
    return ["unshare", "--user", f"--map-user={nobody.pw_uid}", f"--map-group={nobody.pw_gid}"]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


def run(suite: Suite, loop: str, args: argparse.Namespace, tests: list[str]) -> Outcome:
    """Run a suite, or some of its tests, on one kind of loop."""
    folder, python = prepare(suite, args.cache)
    port = free_port()
    server_log = args.cache / f"{suite.stem}-server.log"
    with serving(suite.server, port, server_log):
        return run_beside(port, suite, loop, args, tests, folder, python)


def run_beside(
    port: int,
    suite: Suite,
    loop: str,
    args: argparse.Namespace,
    tests: list[str],
    folder: Path,
    python: Path,
) -> Outcome:
    stem = "-".join([suite.name, suite.version, loop, *(re.sub(r"\W+", "-", t) for t in tests)])
    xml, log, count = (args.cache / f"{stem[:200]}.{kind}" for kind in ("xml", "log", "count"))
    for old in (xml, count):
        old.unlink(missing_ok=True)
    environment = (
        os.environ
        | suite.environment
        | {
            "RINGLOOP_DOWNSTREAM_LOOP": CONTROL if loop == STOCK else loop,
            "RINGLOOP_DOWNSTREAM_COUNT": str(count),
            "PYTHONPATH": f"{args.ringloop.resolve()}:{HERE.resolve()}",
        }
    )
    if suite.replace and loop != CONTROL:
        environment["RINGLOOP_DOWNSTREAM_REPLACE"] = suite.replace
    command = not_root() if suite.not_root else []
    command += [str(python), "-m", "pytest", "-p", "other_loop", "-q", "--tb=short"]
    command += [f"--junitxml={xml}", "-o", "junit_logging=no", "-o", "junit_family=xunit1"]
    command += [word.format(port=port) for word in suite.arguments]
    trouble = ""
    with log.open("wb") as output:
        child = subprocess.Popen(
            [*command, *(tests or (suite.short if args.short else suite.tests))],
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            child.wait(suite.timeout_s)
        except subprocess.TimeoutExpired:
            trouble = f"did not end in {suite.timeout_s} s"
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
    if not trouble and not xml.exists():
        trouble = f"ended with {child.returncode} and no report"
    # Some tests alone may well make none.
    if not trouble and not tests and not any(int(n) for n in count.read_text().split()):
        trouble = "made no loop of the kind under test"
    if trouble:
        return Outcome(set(), set(), 0, log, f"{trouble}, see {log}")
    return outcome_of(xml, log)


def outcome_of(xml: Path, log: Path) -> Outcome:
    outcome = Outcome(set(), set(), 0, log)
    for case in ET.parse(xml).iter("testcase"):
        file = case.get("file", case.get("classname", ""))
        # The class, if any, is what the dotted classname has beyond the file.
        inside = case.get("classname", "").removeprefix(file.removesuffix(".py").replace("/", "."))
        test = "::".join([file, *inside.strip(".").split("."), case.get("name", "")])
        test = test.replace("::::", "::")
        kinds = {child.tag for child in case}
        if kinds & {"failure", "error"}:
            outcome.failed.add(test)
        elif "skipped" in kinds:
            outcome.skipped += 1
        else:
            outcome.passed.add(test)
    outcome.passed -= outcome.failed  # an error in the teardown of one that passed
    return outcome


def reason_for(test: str, suite: str, loop: str, expected: list[dict[str, object]]) -> str:
    for entry in expected:
        if entry["suite"] != suite or loop not in entry.get("loops", (*LOOPS, STOCK)):  # type: ignore[operator]
            continue
        if any(fnmatch.fnmatchcase(test, str(p)) for p in entry["tests"]):  # type: ignore[attr-defined]
            return str(entry["reason"])
    return ""


def judge(
    suite: Suite,
    loop: str,
    outcome: Outcome,
    control: Outcome,
    args: argparse.Namespace,
    expected: list[dict[str, object]],
) -> bool:
    """Say what differs from the control; whether that is all right."""
    fine = True
    for test in sorted(outcome.passed):
        if reason := reason_for(test, suite.name, loop, expected):
            say(f"  {loop}: {test} passes, but expected.toml has: {reason}")
            fine = False
    for test in sorted(outcome.failed - control.failed):
        if reason := reason_for(test, suite.name, loop, expected):
            say(f"  {loop}: {test}: expected: {reason}")
            continue
        again = run(suite, loop, args, [test])
        if again.passed and not again.failed and not again.trouble:
            say(f"  {loop}: {test} failed, and passed by itself")
        else:
            say(f"  {loop}: {test} FAILS, and does not on {CONTROL}\n{again.end()}")
            fine = False
    return fine


def stop(*_signal: object) -> NoReturn:
    """What was started is ended on the way out; make sends the signal a second time."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit("downstream: stopped")


def main() -> int:
    signal.signal(signal.SIGTERM, stop)
    suites = {
        name: Suite(name, **entry)
        for name, entry in tomllib.loads((HERE / "suites.toml").read_text()).items()
    }
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=" ".join(suites))
    parser.add_argument("--ringloop", type=Path, required=True)
    parser.add_argument("--short", action="store_true", help="what CI has time for")
    parser.add_argument("--loops", default=",".join(LOOPS), help="default: %(default)s")
    parser.add_argument("--cache", type=Path, default=CACHE, help="default: %(default)s")
    args = parser.parse_args()
    loops = [loop for loop in args.loops.split(",") if loop != CONTROL]
    if unknown := {*args.suites} - {*suites} | {*loops} - {*LOOPS}:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    expected = tomllib.loads((HERE / "expected.toml").read_text()).get("differs", [])
    args.cache.mkdir(parents=True, exist_ok=True)
    fine = True
    table = []
    for name in args.suites or [n for n in suites if suites[n].short or not args.short]:
        suite = suites[name]
        if args.short and not suite.short:
            parser.error(f"{name} has no short form")
        outcomes = {}
        for loop in (CONTROL, *loops, *([STOCK] if suite.replace else [])):
            start = time.monotonic()
            outcome = outcomes[loop] = run(suite, loop, args, [])
            numbers = f"{len(outcome.passed)} passed, {len(outcome.failed)} failed"
            row = outcome.trouble or f"{numbers}, {outcome.skipped} skipped"
            table.append(f"{name + ' ' + suite.version:24} {loop:8} {row}")
            say(f"{table[-1]} ({time.monotonic() - start:.0f} s)")
            if outcome.trouble or not outcome.passed:
                say(outcome.end())
                fine = False
            elif loop != CONTROL and not outcomes[CONTROL].trouble:
                fine &= judge(suite, loop, outcome, outcomes[CONTROL], args, expected)
    say("\n" + "\n".join(table))
    return 0 if fine else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (OSError, UnableError, subprocess.CalledProcessError) as error:
        print(f"downstream: {error}", file=sys.stderr)
        sys.exit(2)
