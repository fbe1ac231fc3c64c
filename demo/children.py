"""Child processes that say one line at a time, and that never outlive the demo."""

import asyncio
import contextlib
import os
import shlex
import signal
import tempfile
from collections.abc import AsyncIterator, Awaitable, Sequence
from typing import IO, TypeVar

_T = TypeVar("_T")

PATIENCE_S = 15.0  # Several times what the slowest child needs for a line, or to end.
ERROR_LINES = 12
ERROR_BYTES = 1024 * 1024


class ChildError(Exception):
    """A child failed, or did not do what was expected of it in time."""


class Child:
    """A running program."""

    def __init__(
        self, command: Sequence[str], process: asyncio.subprocess.Process, stderr: IO[bytes]
    ) -> None:
        self.command = command
        self.pid = process.pid
        self._process = process
        self._stderr = stderr

    async def line(self) -> str:
        """Return the next line that the program prints; "" when it has closed its output."""
        assert self._process.stdout is not None
        line = await self._in_time("print a line", self._process.stdout.readline())
        return line.decode().rstrip("\n")

    async def succeed(self) -> None:
        """Wait until the program ends by itself; raise ChildError if it failed."""
        status = await self._in_time("end", self._process.wait())
        if status:
            raise self.error(f"ended with status {status}")

    def terminate(self) -> None:
        """Ask the program to stop."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)

    def error(self, what: str) -> ChildError:
        """Make an error that shows the command and the end of what it wrote to stderr."""
        # Not seek() and read(): the child writes at the same position of the same open file.
        written = os.pread(self._stderr.fileno(), ERROR_BYTES, 0)
        lines = written.decode(errors="replace").splitlines()[-ERROR_LINES:]
        return ChildError("\n    ".join([f"{shlex.join(self.command)}\n  {what}", *lines]))

    async def _in_time(self, what: str, awaitable: Awaitable[_T]) -> _T:
        try:
            async with asyncio.timeout(PATIENCE_S):
                return await awaitable
        except TimeoutError:
            raise self.error(f"did not {what} within {PATIENCE_S:.0f} s") from None


@contextlib.asynccontextmanager
async def child(*command: str) -> AsyncIterator[Child]:
    """Run a program; on the way out, whatever the reason, it has ended."""
    with tempfile.TemporaryFile() as stderr:
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=stderr,
            process_group=0,  # Ctrl-C is for the demo alone; it then ends its children itself.
        )
        try:
            yield Child(command, process, stderr)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
