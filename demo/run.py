"""The demo: unchanged programs on stock asyncio and on ringloop, side by side.

    python demo/run.py

Nothing in demo/programs knows of ringloop; LAUNCH is all that differs between the two sides. Then
a tree of files is hashed, synchronously, with aiofiles and with ringloop.fs, and the application
in examples/filedesk is used. The status is 0 only if every program ran and every answer was right.
"""

import asyncio
import json
import os
import platform
import re
import resource
import signal
import sqlite3
import sys
import tempfile
from collections.abc import AsyncIterator, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

try:
    from rich.console import Console

    import ringloop
    import showcase
    import tree
    from report import Board, Comparison, files_table
    from showcase import ShowcaseError
except ImportError as error:
    sys.exit(f"the demo cannot start: {error}; run `make demo`, which installs all that it uses")

from children import Child, ChildError, child
from closed_loop import Window

if TYPE_CHECKING:
    from rich.progress import TaskID

HERE = Path(__file__).resolve().parent
STOCK, RINGLOOP = LOOPS = ("stock asyncio", "ringloop")
LAUNCH = {
    STOCK: (sys.executable,),
    RINGLOOP: (sys.executable, "-m", "ringloop", "run"),
}
# The package of each side's event loop. Programs print which loop they run on: a side that ran on
# another one without saying so would compare nothing.
LOOP_PACKAGE = {STOCK: "asyncio", RINGLOOP: "ringloop"}

ROUNDS = 3
WINDOW_S = 1.0
OPEN_FILES = 1100  # 1,000 connections and some.
ALWAYS_BUSY = 0.9  # A process that ran for this share of a window hardly ever waited.


class WrongResultError(Exception):
    """A program ran, and its result is wrong."""


@dataclass(frozen=True)
class Service:
    """A server program, what loads it, and with how many connections."""

    name: str
    program: Path
    load: Path
    connections: tuple[int, ...]
    database: str | None = None  # Name of the file in which it keeps its rows.

    def title(self, connections: int) -> str:
        """Name the service under this many connections."""
        return f"{self.name}, {connections:,} client{'s' if connections > 1 else ''}"


COUNTERS_PROGRAM = HERE / "programs" / "counters.py"
COUNTERS = {"synchronous": "3 sync counters", "asynchronous": "3 async counters"}
SERVICES = (
    Service("echo", HERE / "programs" / "echo.py", HERE / "load.py", (1, 64, 1000)),
    Service("HTTP API", HERE / "programs" / "api.py", HERE / "http_load.py", (32,), "notes.sqlite"),
)
LOWER_IS_BETTER = {
    "p50 latency, µs": "p50_us",
    "p99 latency, µs": "p99_us",
    "CPU/request, µs": "server_cpu_us",
}
CLIENT_LIMITED = "*"
HASHES = HERE / "hashes.py"
HASH_TITLE = f"hash {tree.FOLDERS * tree.FILES:,} files"
# Each way to read files, and the package of the loop that it runs on.
WAYS = {"synchronous": "none", "aiofiles": "asyncio", "ringloop": "ringloop"}


def machine() -> str:
    """Say what the comparison runs on, and which driver ringloop found to work here."""
    backend = ringloop.backend_info()
    features = ", ".join(
        name if found is True else f"{name} {found}"
        for name, found in backend["features"].items()
        if found
    )
    lines = [
        f"ringloop {ringloop.__version__}, Python {platform.python_version()}, "
        f"Linux {backend['kernel']}, {len(os.sched_getaffinity(0))} CPUs",
        f"driver: {backend['driver']} (RINGLOOP_DRIVER: {backend['requested']})",
    ]
    if backend["reason"]:
        lines.append(f"why not io_uring: {backend['reason']}")
    if features:
        lines.append(f"found in the kernel: {features}")
    return "\n".join(lines)


def allow_open_files() -> None:
    """Raise the limit of open files, for the children too."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < OPEN_FILES:
        sys.exit(
            f"the demo opens 1,000 connections, and only {hard} files may be open: "
            f"raise the limit with `ulimit -Hn {OPEN_FILES}` as root, or in limits.conf"
        )
    if soft != resource.RLIM_INFINITY and soft < OPEN_FILES:
        resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES, hard))


def check_loop(loop: str, used: str) -> None:
    """Check that a program ran on the event loop of its side."""
    if not used.startswith(f"{LOOP_PACKAGE[loop]}."):
        raise WrongResultError(f"a program for {loop} ran on {used}")


def check_counters(loop: str, lines: list[str]) -> dict[str, float]:
    """Check all that the counters printed; return the seconds that each kind took."""
    counts: dict[str, list[str]] = {kind: [] for kind in COUNTERS}
    seconds = dict.fromkeys(COUNTERS, 0.0)
    used = "no loop"
    for line in lines:
        match line.split():
            case ["loop", name]:
                used = name
            case [kind, "took", text] if kind in COUNTERS:
                seconds[kind] = float(text)
            case [kind, name, number] if kind in COUNTERS:
                counts[kind].append(name + number)
            case _:
                raise WrongResultError(f"printed {line!r}")

    check_loop(loop, used)
    if counts["synchronous"] != ["A1", "A2", "A3", "B1", "B2", "B3", "C1", "C2", "C3"]:
        raise WrongResultError(f"synchronous counters counted {counts['synchronous']}")
    # Each number by all three before the next; their order among themselves is not promised.
    together = counts["asynchronous"]
    rounds = [sorted(together[at : at + 3]) for at in range(0, len(together), 3)]
    if rounds != [["A1", "B1", "C1"], ["A2", "B2", "C2"], ["A3", "B3", "C3"]]:
        raise WrongResultError(f"asynchronous counters counted {together}")
    for kind, least in (("synchronous", 2.99), ("asynchronous", 0.99)):
        if seconds[kind] < least:
            raise WrongResultError(f"{kind} counters took {seconds[kind]} s: pauses were cut short")
    if seconds["asynchronous"] > seconds["synchronous"] / 2:
        raise WrongResultError(f"asynchronous counters did not pause together: {seconds}")
    return seconds


def check_rows(database: Path, windows: list[Window]) -> None:
    """Check that the database on the disk is sound and has a row for each create answered."""
    with closing(sqlite3.connect(database)) as connection:
        [(state,)] = connection.execute("PRAGMA integrity_check")
        [(rows,)] = connection.execute("SELECT count(*) FROM notes")
    # A connection creates, reads and lists in turn, and may end after any of the three.
    answers = sum(window.answers for window in windows)
    connections = sum(window.connections for window in windows)
    if state != "ok" or not answers / 3 <= rows <= answers / 3 + connections:
        raise WrongResultError(f"{database.name}: {state}, {rows} rows after {answers} answers")


@dataclass(frozen=True)
class Server:
    """A running service."""

    child: Child
    port: str


@asynccontextmanager
async def serve(service: Service, loop: str, scratch: Path) -> AsyncIterator[Server]:
    """Run a service; at the end ask it to stop, and check that it stops well."""
    arguments = ["0"]  # Any free port.
    if service.database:
        arguments.append(str(scratch / service.database))
    async with child(*LAUNCH[loop], str(service.program), *arguments) as program:
        greeting = await program.line()
        listening = re.fullmatch(r"listening on 127\.0\.0\.1:(\d+), loop (\S+)", greeting)
        if listening is None:
            await program.succeed()
            raise program.error(f"printed {greeting!r} where it should name its address")
        check_loop(loop, listening[2])
        yield Server(program, listening[1])
        program.terminate()
        await program.succeed()


async def measure(server: Server, service: Service, connections: int) -> Window:
    """Load a server for one window."""
    arguments = (server.port, str(server.child.pid), str(connections), str(WINDOW_S))
    try:
        async with child(sys.executable, str(service.load), *arguments) as client:
            window = await client.line()
            await client.succeed()
    except ChildError as error:
        raise server.child.error(f"failed under load:\n{error}") from None
    return Window(**json.loads(window))


class Demo:
    """One run of the demo, and what it found."""

    def __init__(self, board: Board) -> None:
        self.board = board
        self.failures: list[str] = []
        # By what runs and on which loop.
        self.bars: dict[tuple[str, str], TaskID] = {}
        self.seconds: dict[tuple[str, str], list[float]] = {}
        self.windows: dict[tuple[str, str], list[Window]] = {}
        for key in product(COUNTERS.values(), LOOPS):
            self.bars[key] = board.add(*key, steps=9)
            self.seconds[key] = []
        for service in SERVICES:
            for key in product(map(service.title, service.connections), LOOPS):
                self.bars[key] = board.add(*key, steps=ROUNDS)
                self.windows[key] = []
        self.hash_seconds: dict[str, list[float]] = {way: [] for way in WAYS}
        self.hashed = 0
        for way in WAYS:
            files = tree.FOLDERS * tree.FILES
            self.bars[HASH_TITLE, way] = board.add(HASH_TITLE, way, steps=ROUNDS * files)
        self.showcase = ""
        self.bars["showcase", RINGLOOP] = board.add("showcase", RINGLOOP, steps=showcase.STEPS)

    async def run(self) -> None:
        """Run everything."""
        # The counters only pause, so both sides can run at once; later each has the machine alone.
        await asyncio.gather(
            *(self.attempt(f"counters on {loop}", self.counters(loop)) for loop in LOOPS)
        )
        for service in SERVICES:
            await self.attempt(service.name, self.rounds(service))
        await self.attempt(HASH_TITLE, self.hash_files())
        await self.attempt("showcase", self.visit_showcase())

    async def attempt(self, title: str, work: Coroutine[None, None, None]) -> None:
        """Do a part of the demo; if it fails, keep the reason for the end."""
        try:
            await work
        except (ChildError, ShowcaseError, WrongResultError, sqlite3.Error) as error:
            self.failures.append(f"{title}: {error}")

    async def counters(self, loop: str) -> None:
        """Run the counters, and move their bars as they count."""
        lines: list[str] = []
        async with child(*LAUNCH[loop], str(COUNTERS_PROGRAM)) as program:
            while line := await program.line():
                lines.append(line)
                kind, _, rest = line.partition(" ")
                if kind in COUNTERS and not rest.startswith("took"):
                    self.board.step(self.bars[COUNTERS[kind], loop])
            await program.succeed()
        for kind, seconds in check_counters(loop, lines).items():
            self.seconds[COUNTERS[kind], loop].append(seconds)
            self.board.note(self.bars[COUNTERS[kind], loop], f"{seconds:.2f} s")

    async def rounds(self, service: Service) -> None:
        """Measure a service, the two loops in turns.

        One server on each loop serves all windows, as a service that lives for long. It matters:
        on stock asyncio the first clients of a new process can cost three times as much each as
        later ones, while its heap shrinks and grows again with every read.
        """
        with tempfile.TemporaryDirectory(prefix="ringloop-demo-") as scratch:
            directories = {loop: Path(scratch, LOOP_PACKAGE[loop]) for loop in LOOPS}
            async with AsyncExitStack() as stack:
                servers = {}
                for loop, directory in directories.items():
                    directory.mkdir()
                    running = serve(service, loop, directory)
                    servers[loop] = await stack.enter_async_context(running)
                for _ in range(ROUNDS):
                    for connections in service.connections:
                        for loop, server in servers.items():
                            window = await measure(server, service, connections)
                            self.keep(service.title(connections), loop, window)
            if service.database:
                for loop, directory in directories.items():
                    titles = map(service.title, service.connections)
                    windows = [window for title in titles for window in self.windows[title, loop]]
                    check_rows(directory / service.database, windows)

    async def hash_files(self) -> None:
        """Hash a tree in each way, in turns."""
        with tempfile.TemporaryDirectory(prefix="ringloop-demo-") as folder:
            expected = tree.make(Path(folder))
            for number in range(ROUNDS):
                for way in WAYS:
                    await self.hash_once(way, folder, number, expected)

    async def hash_once(self, way: str, folder: str, number: int, expected: str) -> None:
        """Hash it once, and move the bar as it goes."""
        bar = self.bars[HASH_TITLE, way]
        files = tree.FOLDERS * tree.FILES
        result: list[str] = []
        async with child(sys.executable, str(HASHES), way, folder) as program:
            while line := await program.line():
                match line.split():
                    case ["hashed", count]:
                        self.board.move(bar, number * files + int(count))
                    case ["digest", *result]:
                        pass
                    case _:
                        raise WrongResultError(f"printed {line!r}")
            await program.succeed()
        if len(result) != 3 or result[0] != expected:
            raise WrongResultError(f"{way}: the digest is {result[:1]} and should be {expected}")
        if result[2].split(".")[0] != WAYS[way]:
            raise WrongResultError(f"{way} ran on {result[2]}")
        self.hashed += files
        self.hash_seconds[way].append(float(result[1]))
        self.board.move(bar, (number + 1) * files)
        self.board.note(bar, f"{files / float(result[1]):,.0f} files/s")

    async def visit_showcase(self) -> None:
        """Use the example application, and move its bar as its own progress goes."""
        bar = self.bars["showcase", RINGLOOP]
        with tempfile.TemporaryDirectory(prefix="ringloop-demo-") as folder:
            self.showcase = await showcase.visit(folder, partial(self.board.move, bar))
        self.board.note(bar, "compared")

    def keep(self, title: str, loop: str, window: Window) -> None:
        """Keep and show what a window measured."""
        self.windows[title, loop].append(window)
        self.board.step(self.bars[title, loop])
        self.board.note(self.bars[title, loop], f"{window.requests_per_s:,.0f} requests/s")

    def table(self) -> Comparison:
        """Put everything side by side."""
        title = f"Median ± half the range of {ROUNDS} windows of {WINDOW_S:.0f} s, taken in turns"
        table = Comparison(title, LOOPS)
        for title in COUNTERS.values():
            table.add(title, "seconds", [self.seconds[title, loop] for loop in LOOPS])
        for title in (service.title(n) for service in SERVICES for n in service.connections):
            table.end_section()
            sides = [self.windows[title, loop] for loop in LOOPS]
            table.add(
                title,
                "requests/s",
                [[window.requests_per_s for window in side] for side in sides],
                more_is_better=True,
                marks=[CLIENT_LIMITED if client_limited(side) else "" for side in sides],
            )
            for measured, field in LOWER_IS_BETTER.items():
                samples = [[getattr(window, field) for window in side] for side in sides]
                table.add("", measured, samples)
        return table


def client_limited(windows: list[Window]) -> bool:
    """Whether in most windows the load client had no time left while the server had some."""
    limited = [
        window.client_busy > ALWAYS_BUSY
        and window.server_cpu_us * window.requests_per_s / 1e6 < ALWAYS_BUSY
        for window in windows
    ]
    return sum(limited) * 2 > len(limited)


def main() -> int:
    """Run the demo; return the exit status."""
    allow_open_files()
    console = Console()
    console.print(machine(), highlight=False, markup=False)
    board = Board(console)
    demo = Demo(board)

    async def run() -> None:
        task = asyncio.current_task()
        assert task is not None
        for signum in (signal.SIGTERM, signal.SIGHUP):  # As Ctrl-C: end the children first.
            asyncio.get_running_loop().add_signal_handler(signum, task.cancel)
        with board.progress:
            await demo.run()

    try:
        asyncio.run(run())
    except (KeyboardInterrupt, asyncio.CancelledError):
        console.print("stopped")
        return 130

    console.print(demo.table().rendered)
    console.print(files_table(HASH_TITLE, tree.FOLDERS * tree.FILES, demo.hash_seconds))
    if any(map(client_limited, demo.windows.values())):
        console.print(f"{CLIENT_LIMITED} the load client was at its limit; the server was not")
    if demo.showcase:
        console.print(demo.showcase, highlight=False)
    for failure in demo.failures:
        console.print(failure, style="red", markup=False, highlight=False, soft_wrap=True)
    answers = sum(window.answers for windows in demo.windows.values() for window in windows)
    console.print(
        f"{answers:,} answers and {demo.hashed:,} hashes checked; failures: {len(demo.failures)}",
        highlight=False,
    )
    return 1 if demo.failures else 0


if __name__ == "__main__":
    sys.exit(main())
