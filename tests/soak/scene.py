"""What a scenario gets: its loop, its dice, and where it says what it did."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import traceback
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import ssl
    from collections.abc import Iterator
    from pathlib import Path

    import ringloop

KEY_SIZE = 8  # bytes

EXECUTOR_THREADS = "soak-executor"


class Provoked(Exception):  # noqa: N818 - not an error: it was ordered
    """Thrown in a protocol's callback on purpose. The loop's exception handler may see it."""


class Wrong(Exception):  # noqa: N818
    """The loop did something that it must not do."""


class EndedEarly(Wrong):
    """A stream ended before all of it was there."""


def settle(future: asyncio.Future[None] | None) -> None:
    """Wake up who waits for it, if anybody does and was not cancelled."""
    if future is not None and not future.done():
        future.set_result(None)


@dataclass
class Tally:
    """What happened so far."""

    started: int = 0
    finished: int = 0
    cancelled: int = 0
    bytes_checked: int = 0
    datagrams: int = 0
    connections: int = 0  # alive at this moment
    provoked: int = 0
    by_scenario: dict[str, int] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def fail(self, what: str) -> None:
        self.failures.append(what)

    def on_exception(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """The loop's exception handler."""
        exc = context.get("exception")
        if isinstance(exc, Provoked):
            self.provoked += 1
            return
        lines = [f"the loop's exception handler was called: {context.get('message')}"]
        lines += [f"  {name}: {value!r}" for name, value in context.items() if name != "message"]
        if exc is not None:
            lines.append("".join(traceback.format_exception(exc)))
        self.fail("\n".join(lines))

    def add(self, other: Tally) -> None:
        self.bytes_checked += other.bytes_checked
        self.provoked += other.provoked
        self.failures += other.failures

    @contextlib.contextmanager
    def connection(self) -> Iterator[None]:
        self.connections += 1
        try:
            yield
        finally:
            self.connections -= 1


@dataclass
class Tools:
    """What all scenarios of a run share."""

    driver: str
    loop: ringloop.EventLoop
    tally: Tally
    directory: Path
    server_tls: ssl.SSLContext
    client_tls: ssl.SSLContext
    in_main_thread: bool = True
    signal_lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    keys: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def new_key(self) -> int:
        """A number that no other stream or file of this run has."""
        return next(self.keys)


class Scene:
    def __init__(self, name: str, seed: int, tools: Tools) -> None:
        self.name = name
        self.seed = seed
        self.tools = tools
        self.tally = tools.tally
        self.loop = tools.loop
        self.random = random.Random(seed)

    def chance(self, share: float) -> bool:
        return self.random.random() < share

    def size(self, most: int) -> int:
        """A number of bytes up to `most`: small ones are as likely as large ones."""
        return min(most, int(2 ** self.random.uniform(0, most.bit_length())))

    def read_size(self, most: int) -> int:
        """The same for one of many reads: not so small that it takes for ever."""
        return max(100, self.size(most))

    def new_path(self, suffix: str) -> str:
        return str(self.tools.directory / f"{self.tools.new_key()}.{suffix}")

    async def nap(self) -> None:
        """Let others run: for an iteration, or for some milliseconds."""
        await asyncio.sleep(0 if self.chance(0.7) else self.random.uniform(0, 0.01))
