"""The processes of a measurement: a server on its core, and what drives it on another."""

from __future__ import annotations

import contextlib
import json
import os
import select
import ssl
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from ringloop.bench import affinity
from ringloop.bench.cells import UDP

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from ringloop.bench.cells import Cell
    from ringloop.bench.peers import Peer

START_TIMEOUT_S = 10.0
START_UNDER_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 2.0
STALL_S = 5.0
"""How long the load generator waits for an answer."""
HOLD_STALL_S = 40.0
"""The same, while thousands of TLS connections are made."""
PROGRAM_TIMEOUT_S = 120.0
DYING_S = 0.3
"""How long a server may take to end after its connections broke: then it says why."""


class PeerError(Exception):
    """A peer could not do what was asked; the message says in a line why."""


@dataclass(frozen=True)
class Bench:
    """Where and with what to measure."""

    cores: affinity.Cores
    programs: dict[str, Path]
    """The compiled C programs; empty without a compiler."""
    warmup_s: float
    duration_s: float
    micro_window_s: float


def _last_line(output: IO[str]) -> str:
    output.seek(0)
    lines = output.read().strip().splitlines()
    return lines[-1] if lines else "no word of why"


def _on_loop(peer: Peer, program: str) -> list[str]:
    # By path and with -P: the process imports the peer, and nothing of the harness.
    assert peer.module
    path = Path(__file__).with_name("on_loop.py")
    patch = ["--patched-by", peer.patched_by] if peer.patched_by else []
    return [sys.executable, "-P", str(path), "--loop", peer.module, *patch, program]


def _environment(peer: Peer, cell: Cell | None = None) -> dict[str, str]:
    streams = "stdlib" if cell and cell.kind.stdlib_streams else "ringloop"
    driver = {"RINGLOOP_DRIVER": peer.driver} if peer.driver else {}
    return os.environ | {"RINGLOOP_STREAMS": streams} | driver


def _server_command(bench: Bench, peer: Peer, cell: Cell) -> list[str]:
    if peer.program:
        program = peer.udp_program if cell.name == UDP else peer.program
        assert program  # or it would not take part
        return [str(bench.programs[program])]
    size = str(cell.message_bytes)
    return [*_on_loop(peer, "servers.py"), "--kind", cell.kind.server, "--size", size]


@contextlib.contextmanager
def server(
    bench: Bench, peer: Peer, cell: Cell, under: Sequence[str] = ()
) -> Iterator[tuple[int, int]]:
    """A server of `peer`, on the server's core: its process id and its port.

    `under` is a command that runs it, such as strace; the process id is that one's then.
    """
    start_timeout_s = START_UNDER_TIMEOUT_S if under else START_TIMEOUT_S
    with tempfile.TemporaryFile("w+") as errors:
        with affinity.pinned(frozenset({bench.cores.server})):
            process = subprocess.Popen(
                [*under, *_server_command(bench, peer, cell)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=_environment(peer, cell),
                text=True,
            )
        assert process.stdin
        assert process.stdout
        try:
            ready, _, _ = select.select([process.stdout], [], [], start_timeout_s)
            if not ready:
                raise PeerError(f"its server did not start within {start_timeout_s:g} s")
            port = process.stdout.readline().strip()
            if not port:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(STOP_TIMEOUT_S)
                raise PeerError(_last_line(errors))
            try:
                yield process.pid, int(port)
            except PeerError:
                if process.poll() is None:
                    raise
            if process.poll() is not None:
                raise PeerError(f"its server ended by itself: {_last_line(errors)}")
        finally:
            process.stdin.close()  # which is how it is asked to end
            process.stdout.close()
            try:
                process.wait(start_timeout_s if under else STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _libssl() -> str:
    """The shared library that the ssl module uses: the load generator takes the same."""
    assert ssl  # is loaded
    for line in Path("/proc/self/maps").read_text().splitlines():
        path = line.partition("/")[2]
        if Path(path).name.startswith("libssl"):
            return "/" + path
    raise PeerError("the libssl of Python's ssl module is no shared library")


def _load_command(bench: Bench, cell: Cell, port: int, *options: str) -> list[str]:
    command = [str(bench.programs["load"]), "--port", str(port)]
    command += ["--connections", str(cell.connections), "--size", str(cell.message_bytes)]
    command += ["--warmup", str(bench.warmup_s), "--duration", str(bench.duration_s)]
    command += ["--stall", str(STALL_S), *cell.kind.load]
    if cell.kind.tls:
        command += ["--tls", _libssl()]
    return [*command, *options]


def load(bench: Bench, cell: Cell, pid: int, port: int, *options: str) -> dict[str, Any]:
    """Run the load generator against a server; its report. `options` come last, and win."""
    command = _load_command(bench, cell, port, "--cpu-pid", str(pid), *options)
    with affinity.pinned(frozenset({bench.cores.load})):
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    if not result.stdout:
        raise PeerError(f"the load generator failed: {result.stderr.strip()}")
    report: dict[str, Any] = json.loads(result.stdout)
    if report["error"]:
        time.sleep(DYING_S)
    return report


@contextlib.contextmanager
def held(bench: Bench, cell: Cell, port: int) -> Iterator[None]:
    """While all connections of the cell are open and idle, after one request each."""
    command = _load_command(bench, cell, port, "--hold", "--stall", str(HOLD_STALL_S))
    with affinity.pinned(frozenset({bench.cores.load})):
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    assert process.stdin
    assert process.stdout
    try:
        line = process.stdout.readline()  # its own alarm ends it if this takes too long
        if not line.startswith('{"held"'):
            raise PeerError(f"the load generator could not connect: {line.strip()}")
        yield
    finally:
        process.stdin.close()
        process.wait()
        process.stdout.close()


def client(bench: Bench, peer: Peer, cell: Cell) -> dict[str, Any]:
    """Run a client on a loop of `peer`, on the server's core; its report."""
    assert cell.kind.service
    host, port = cell.kind.service.address
    arguments = ["--kind", cell.name, "--host", host, "--port", str(port)]
    arguments += ["--tasks", str(cell.connections)]
    arguments += ["--warmup", str(bench.warmup_s), "--duration", str(bench.duration_s)]
    return _report_of(bench, peer, [*_on_loop(peer, "clients.py"), *arguments])


def micro(bench: Bench, peer: Peer) -> dict[str, float]:
    """Run the micro-benchmarks of `peer` on the server's core; operations a second."""
    return _report_of(
        bench, peer, [*_on_loop(peer, "micro.py"), "--window", str(bench.micro_window_s)]
    )


def _report_of(bench: Bench, peer: Peer, command: list[str]) -> dict[str, Any]:
    with affinity.pinned(frozenset({bench.cores.server})):
        try:
            result = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
                env=_environment(peer),
                timeout=PROGRAM_TIMEOUT_S,
            )
        except subprocess.TimeoutExpired as error:
            raise PeerError(f"no end within {PROGRAM_TIMEOUT_S:g} s") from error
    if result.returncode:
        lines = result.stderr.strip().splitlines()
        raise PeerError(lines[-1] if lines else f"exit status {result.returncode}")
    report: dict[str, Any] = json.loads(result.stdout)
    return report
