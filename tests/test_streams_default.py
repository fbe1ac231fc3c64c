"""ringloop.run() and the command line make asyncio's functions create ringloop's streams."""

from __future__ import annotations

import asyncio
import inspect
import os
import subprocess
import sys
import threading
from asyncio import (
    open_connection,
    open_unix_connection,
    start_server,
    start_unix_server,
)
from asyncio import streams as stdlib
from typing import TYPE_CHECKING, Any

import pytest

import ringloop
from ringloop import streams

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from pathlib import Path

FUNCTIONS: Any = (open_connection, start_server, open_unix_connection, start_unix_server)
OWN_CODE = [function.__code__ for function in FUNCTIONS]


@pytest.fixture(autouse=True)
def all_is_undone(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.delenv("RINGLOOP_STREAMS", raising=False)
    yield
    assert [function.__code__ for function in FUNCTIONS] == OWN_CODE


async def made() -> set[tuple[type, type]]:
    """The classes of what is made on both sides of a connection."""
    loop = asyncio.get_running_loop()
    accepted: asyncio.Future[Any] = loop.create_future()
    server = await start_server(lambda *ends: accepted.set_result(ends), "127.0.0.1", 0)
    ends = [await open_connection(*server.sockets[0].getsockname()), await accepted]
    classes = {(type(reader), type(writer)) for reader, writer in ends}
    for _, writer in ends:
        writer.close()
        await writer.wait_closed()
    server.close()
    await server.wait_closed()
    return classes


OURS = {(streams.StreamReader, streams.StreamWriter)}
STOCK = {(asyncio.StreamReader, asyncio.StreamWriter)}


def test_run_brings_ringloops_streams() -> None:
    assert ringloop.run(made()) == OURS


def test_unix_sockets_too(tmp_path: Path) -> None:
    async def main() -> None:
        path = str(tmp_path / "socket")
        accepted: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        server = await start_unix_server(lambda *ends: accepted.set_result(ends), path, limit=77)
        reader, writer = await open_unix_connection(path, limit=88)
        far_reader, far_writer = await accepted
        assert type(reader) is type(far_reader) is streams.StreamReader
        assert (reader._limit, far_reader._limit) == (88, 77)
        for end in (writer, far_writer):
            end.close()
            await end.wait_closed()
        server.close()
        await server.wait_closed()

    ringloop.run(main())


def test_the_variable_switches_it_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RINGLOOP_STREAMS", "stdlib")
    assert ringloop.run(made()) == STOCK
    monkeypatch.setenv("RINGLOOP_STREAMS", "ringloop")
    assert ringloop.run(made()) == OURS
    monkeypatch.setenv("RINGLOOP_STREAMS", "fast")
    main = made()
    with pytest.raises(ValueError, match="RINGLOOP_STREAMS must be ringloop or stdlib, not 'fast'"):
        ringloop.run(main)
    main.close()


def test_a_new_event_loop_alone_changes_nothing() -> None:
    with asyncio.Runner(loop_factory=ringloop.new_event_loop) as runner:
        assert runner.run(made()) == STOCK


def test_it_is_undone_after_a_failure() -> None:
    async def main() -> None:
        raise RuntimeError("program")

    with pytest.raises(RuntimeError, match="program"):
        ringloop.run(main())
    assert asyncio.run(made()) == STOCK


def test_the_functions_stay_what_they_are() -> None:
    async def main() -> None:
        assert asyncio.open_connection is stdlib.open_connection is open_connection
        assert FUNCTIONS[0].__code__ is not OWN_CODE[0]
        for function in FUNCTIONS:
            assert inspect.iscoroutinefunction(function)
            assert inspect.signature(function) == signatures[function]
            assert function.__module__ == "asyncio.streams"

    signatures = {function: inspect.signature(function) for function in FUNCTIONS}
    ringloop.run(main())


def test_loops_of_other_kinds_in_other_threads_get_their_own() -> None:
    """Four loops that all run at the same time, and two runs of ringloop's that overlap."""
    found: dict[str, Any] = {}
    together = threading.Barrier(4, timeout=10)
    one_is_over = threading.Event()

    async def meet(name: str) -> None:
        together.wait()
        found[name] = await made()
        together.wait()
        if name == "second run":
            await asyncio.to_thread(one_is_over.wait, 10)
            found["second run, later"] = await made()

    def plain(name: str, factory: Callable[[], asyncio.AbstractEventLoop] | None) -> None:
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(meet(name))

    def first(main: Coroutine[Any, Any, None]) -> None:
        ringloop.run(main)
        one_is_over.set()

    threads = [
        threading.Thread(target=first, args=(meet("first run"),)),
        threading.Thread(target=ringloop.run, args=(meet("second run"),)),
        threading.Thread(target=plain, args=("asyncio", None)),
        threading.Thread(target=plain, args=("new_event_loop", ringloop.new_event_loop)),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert found == {
        "first run": OURS,
        "second run": OURS,
        "second run, later": OURS,
        "asyncio": STOCK,
        "new_event_loop": STOCK,
    }


@pytest.mark.parametrize(("value", "expected"), [("", "ringloop.streams"), ("stdlib", "asyncio")])
def test_the_command_line_does_it_for_every_loop(tmp_path: Path, value: str, expected: str) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import asyncio\n"
        "from asyncio import open_unix_connection, start_unix_server\n"
        "async def main():\n"
        "    server = await start_unix_server(lambda r, w: w.close(), 'socket')\n"
        "    reader, writer = await open_unix_connection('socket')\n"
        "    print(type(reader).__module__, type(writer).__module__)\n"
        "    writer.close()\n"
        "    await writer.wait_closed()\n"
        "    server.close()\n"
        "asyncio.run(main())\n"
    )
    done = subprocess.run(
        [sys.executable, "-m", "ringloop", "run", str(program)],
        env=os.environ | {"RINGLOOP_STREAMS": value},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr
    assert all(name.startswith(expected) for name in done.stdout.split()), done.stdout
    assert len(done.stdout.split()) == 2
