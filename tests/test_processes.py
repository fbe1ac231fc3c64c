"""Child processes: started, talked to, ended in every way, and reaped exactly once."""

from __future__ import annotations

import asyncio
import errno
import gc
import logging
import os
import pty
import random
import signal
import subprocess
import sys
import textwrap
import threading
import tty
import warnings
from typing import TYPE_CHECKING, Any

import pytest

import drivers
import ringloop

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Run = Callable[..., Any]

PIPE = subprocess.PIPE
PYTHON = sys.executable
TIMEOUT_S = 20


def children() -> bool:
    """Whether this process has any child, running or dead and not reaped."""
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


@pytest.fixture(autouse=True)
def no_child_is_left() -> Iterator[None]:
    assert not children()
    yield
    if children():  # one that was killed with its transport is Popen's to reap
        gc.collect()
        subprocess._cleanup()  # type: ignore[attr-defined]
    assert not children()


@pytest.fixture(params=["pidfd", "thread"])
def watched_by(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """With pidfds, and as in a container whose seccomp filter refuses them."""
    if request.param == "thread":

        def refused(pid: int, flags: int = 0) -> int:
            raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

        monkeypatch.setattr(os, "pidfd_open", refused)
    name: str = request.param
    return name


async def no_thread_waits() -> None:
    """Until the threads that waited for processes have ended."""
    while any(t.name.startswith("wait for process") for t in threading.enumerate()):
        await asyncio.sleep(0)


class Events(asyncio.SubprocessProtocol):
    """Every call, in order."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.events: list[tuple[Any, ...]] = []
        self.exited: asyncio.Future[None] = loop.create_future()
        self.lost: asyncio.Future[Exception | None] = loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.events.append(("made",))

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        self.events.append(("data", fd, data))

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        self.events.append(("pipe lost", fd))

    def process_exited(self) -> None:
        self.events.append(("exited",))
        self.exited.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self.events.append(("lost",))
        self.lost.set_result(exc)


# -- what one does with processes ----------------------------------------------------------


@pytest.mark.usefixtures("watched_by")
def test_a_process_with_pipes(run: Run) -> None:
    code = "import sys; d = sys.stdin.buffer.read(); sys.stdout.buffer.write(d[::-1]); sys.exit(3)"
    data = random.Random(17).randbytes(1 << 20)

    async def main() -> None:
        process = await asyncio.create_subprocess_exec(
            PYTHON, "-S", "-c", code, stdin=PIPE, stdout=PIPE
        )
        out, err = await process.communicate(data)
        assert out == data[::-1]
        assert err is None
        assert process.returncode == 3

    run(main())


def test_a_shell_with_a_conversation(run: Run) -> None:
    async def main() -> None:
        process = await asyncio.create_subprocess_shell(
            "while read line; do echo got $line; done; echo bye >&2",
            stdin=PIPE,
            stdout=PIPE,
            stderr=PIPE,
        )
        assert process.stdin is not None
        assert process.stdout is not None
        for i in range(10):
            process.stdin.write(b"%d\n" % i)
            await process.stdin.drain()
            assert await process.stdout.readline() == b"got %d\n" % i
        assert await process.communicate(b"") == (b"", b"bye\n")
        assert process.returncode == 0

    run(main())


def test_stderr_goes_where_stdout_goes(run: Run) -> None:
    async def main() -> None:
        process = await asyncio.create_subprocess_shell(
            "echo out; echo err >&2", stdout=PIPE, stderr=subprocess.STDOUT
        )
        assert (await process.communicate())[0] == b"out\nerr\n"

    run(main())


def test_a_terminal_as_stdin_and_stdout(run: Run, loop: ringloop.EventLoop) -> None:
    async def main() -> None:
        master, slave = pty.openpty()
        tty.setraw(slave)
        process = await asyncio.create_subprocess_exec("cat", stdin=slave, stdout=slave)
        os.close(slave)
        reader = asyncio.StreamReader()
        transport, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(master, "rb", 0)
        )
        os.write(master, b"hello\n")
        assert await reader.readline() == b"hello\n"
        process.terminate()
        assert await process.wait() == -signal.SIGTERM
        transport.close()
        await asyncio.sleep(0)

    run(main())


@pytest.mark.usefixtures("watched_by")
def test_many_processes_at_once_each_with_its_own_result(run: Run) -> None:
    async def code(argument: int) -> int:
        process = await asyncio.create_subprocess_exec("sh", "-c", f"exit {argument}")
        return await process.wait()

    async def main() -> None:
        assert await asyncio.gather(*map(code, range(40))) == list(range(40))
        await no_thread_waits()

    run(main())


def test_options_of_popen_reach_it(run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        r, w = os.pipe()
        process = await asyncio.create_subprocess_exec(
            "sh",
            "-c",
            f"pwd; echo $X; echo passed >/dev/fd/{w}",
            stdout=PIPE,
            cwd=tmp_path,
            env={"X": "y"},
            pass_fds=(w,),
            start_new_session=True,
        )
        os.close(w)
        assert (await process.communicate())[0] == f"{tmp_path}\ny\n".encode()
        assert os.read(r, 100) == b"passed\n"
        os.close(r)

    run(main())


def test_what_cannot_be_started(run: Run, loop: ringloop.EventLoop) -> None:
    """The fixtures see that nothing is left behind."""

    async def main() -> None:
        with pytest.raises(FileNotFoundError):
            await asyncio.create_subprocess_exec("/nonexistent/program", stdin=PIPE, stdout=PIPE)
        with pytest.raises(PermissionError):
            await asyncio.create_subprocess_exec("/", stdout=PIPE)
        with pytest.raises(ValueError, match="universal_newlines"):
            await asyncio.create_subprocess_exec("true", universal_newlines=True)  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            await asyncio.create_subprocess_exec("true", no_such_option=True)  # type: ignore[call-arg]

    run(main())


# -- the order of callbacks ----------------------------------------------------------------


@pytest.mark.usefixtures("watched_by")
def test_callbacks_come_in_order(run: Run, loop: ringloop.EventLoop) -> None:
    async def main() -> None:
        transport, protocol = await loop.subprocess_shell(
            Events, "echo out; echo err >&2; read x; exit 7"
        )
        assert isinstance(transport, asyncio.SubprocessTransport)
        assert protocol.events[0] == ("made",)
        assert transport.get_protocol() is protocol
        stdin = transport.get_pipe_transport(0)
        assert isinstance(stdin, asyncio.WriteTransport)
        assert isinstance(transport.get_pipe_transport(1), asyncio.ReadTransport)
        assert transport.get_pipe_transport(5) is None
        assert transport.get_returncode() is None
        assert "running" in repr(transport)
        popen = transport.get_extra_info("subprocess")
        assert transport.get_pid() == popen.pid
        stdin.write(b"x\n")
        assert await protocol.lost is None
        events = protocol.events
        assert events[0] == ("made",)
        assert events[-1] == ("lost",)
        assert sorted(events[1:-1], key=str) == [
            ("data", 1, b"out\n"),
            ("data", 2, b"err\n"),
            ("exited",),
            ("pipe lost", 0),
            ("pipe lost", 1),
            ("pipe lost", 2),
        ]
        for fd, data in ((1, b"out\n"), (2, b"err\n")):
            assert events.index(("data", fd, data)) < events.index(("pipe lost", fd))
        assert transport.get_returncode() == popen.returncode == 7
        assert "returncode=7" in repr(transport)
        assert not transport.is_closing()
        transport.close()
        assert transport.is_closing()
        with pytest.raises(ProcessLookupError):
            transport.kill()

    run(main())


def test_a_failing_protocol_is_reported_and_loses_no_process(
    run: Run, loop: ringloop.EventLoop
) -> None:
    class Fails(Events):
        def pipe_data_received(self, fd: int, data: bytes) -> None:
            raise ZeroDivisionError

        def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
            super().pipe_connection_lost(fd, exc)
            raise ZeroDivisionError

        def process_exited(self) -> None:
            super().process_exited()
            raise ZeroDivisionError

    errors: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: errors.append(context))

    async def main() -> None:
        transport, protocol = await loop.subprocess_exec(
            Fails, "sh", "-c", "echo x", stdin=None, stdout=PIPE, stderr=None
        )
        assert await transport._wait() == 0  # type: ignore[attr-defined]
        await protocol.lost
        transport.close()

    run(main())
    assert [type(e["exception"]) for e in errors] == [ZeroDivisionError] * 3


def test_wait_does_not_wait_for_a_grandchild_that_keeps_the_pipe(run: Run) -> None:
    async def main() -> None:
        # The grandchild lives until its stdin, the pipe `w`, is closed.
        r, w = os.pipe()
        process = await asyncio.create_subprocess_shell(
            "{ cat <&3 & } 3<&0; echo started", stdin=r, stdout=PIPE, stderr=PIPE
        )
        os.close(r)
        assert process.stdout is not None
        assert await process.stdout.readline() == b"started\n"
        assert await process.wait() == 0
        assert not process.stdout.at_eof()
        os.close(w)
        assert await process.communicate() == (b"", b"")

    run(main())


# -- signals ---------------------------------------------------------------------------------


@pytest.mark.usefixtures("watched_by")
@pytest.mark.parametrize("how", ["terminate", "kill", "send_signal"])
def test_signals_reach_the_process(run: Run, how: str) -> None:
    async def main() -> None:
        process = await asyncio.create_subprocess_exec("sleep", "60")
        if how == "send_signal":
            process.send_signal(signal.SIGUSR1)
        else:
            getattr(process, how)()
        number = {"terminate": signal.SIGTERM, "kill": signal.SIGKILL}.get(how, signal.SIGUSR1)
        assert await process.wait() == process.returncode == -number
        with pytest.raises(ProcessLookupError):
            process.kill()
        await no_thread_waits()

    run(main())


@pytest.mark.usefixtures("watched_by")
def test_signalling_a_process_that_has_just_ended_does_nothing(run: Run) -> None:
    async def main() -> None:
        process = await asyncio.create_subprocess_exec("sh", "-c", "read x", stdin=PIPE)
        assert process.stdin is not None
        process.stdin.write(b"\n")
        # It is dead, and the loop has had no chance to notice.
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        process.terminate()
        process.send_signal(signal.SIGUSR1)
        assert await process.wait() == 0
        await no_thread_waits()

    run(main())


def test_a_signal_that_may_not_be_sent_is_a_permission_error(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for a setuid program. close() does without."""

    def refused(*args: Any) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    async def main() -> None:
        process = await asyncio.create_subprocess_exec("cat", stdin=PIPE)
        with monkeypatch.context() as patch:
            patch.setattr(signal, "pidfd_send_signal", refused)
            with pytest.raises(PermissionError):
                process.kill()
            patch.setattr(os, "kill", refused)
            process._transport.close()  # type: ignore[attr-defined]
        assert await process.wait() == 0  # its stdin was closed

    run(main())


def test_a_handler_for_sigchld_and_processes_do_not_disturb_each_other(
    run: Run, loop: ringloop.EventLoop
) -> None:
    async def main() -> None:
        seen = asyncio.Event()
        loop.add_signal_handler(signal.SIGCHLD, seen.set)
        process = await asyncio.create_subprocess_exec("sh", "-c", "exit 5")
        await seen.wait()
        assert await process.wait() == 5
        loop.remove_signal_handler(signal.SIGCHLD)

    run(main())


# -- the end -------------------------------------------------------------------------------


@pytest.mark.usefixtures("watched_by")
def test_close_kills_a_process_that_runs(run: Run, loop: ringloop.EventLoop) -> None:
    async def main() -> None:
        transport, protocol = await loop.subprocess_exec(Events, "sleep", "60")
        transport.close()
        transport.close()
        await protocol.lost
        assert transport.get_returncode() == -signal.SIGKILL
        await no_thread_waits()

    run(main())


def test_close_leaves_the_status_of_a_process_that_has_just_ended(
    run: Run, loop: ringloop.EventLoop, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        transport, protocol = await loop.subprocess_exec(Events, "sh", "-c", "read x; exit 9")
        stdin = transport.get_pipe_transport(0)
        assert isinstance(stdin, asyncio.WriteTransport)
        stdin.write(b"\n")
        os.waitid(os.P_PID, transport.get_pid(), os.WEXITED | os.WNOWAIT)
        transport.close()
        await protocol.lost
        assert transport.get_returncode() == 9

    run(main())
    assert caplog.records == []


@pytest.mark.usefixtures("watched_by")
def test_a_process_that_somebody_else_reaped(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    """waitpid(-1) in some library."""

    async def main() -> None:
        process = await asyncio.create_subprocess_exec("sleep", "60")
        process.kill()
        os.waitpid(process.pid, 0)
        process.kill()
        assert await process.wait() == 255
        await no_thread_waits()

    with caplog.at_level(logging.WARNING, "asyncio"):
        run(main())
    assert len(caplog.records) == 1
    assert "was taken by somebody else" in caplog.text


def test_a_process_that_was_reaped_through_its_popen_object(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        process = await asyncio.create_subprocess_exec("sh", "-c", "exit 11")
        popen = process._transport.get_extra_info("subprocess")  # type: ignore[attr-defined]
        assert popen.wait() == 11
        assert await process.wait() == 11

    run(main())
    assert caplog.records == []


def test_children_that_nobody_may_reap(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    """With SIGCHLD ignored the kernel reaps them itself."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)

    async def main() -> None:
        for _ in range(5):
            process = await asyncio.create_subprocess_exec("true")
            assert await process.wait() == 255

    try:
        run(main())
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert len(caplog.records) == 5


def test_a_process_that_was_gone_before_it_could_be_watched(
    run: Run, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def gone(pid: int, flags: int = 0) -> int:
        os.waitpid(pid, 0)
        raise ProcessLookupError(errno.ESRCH, os.strerror(errno.ESRCH))

    monkeypatch.setattr(os, "pidfd_open", gone)

    async def main() -> None:
        process = await asyncio.create_subprocess_exec("true", stdout=PIPE)
        assert (await process.communicate())[0] == b""
        assert process.returncode == 255

    run(main())
    assert "was taken by somebody else" in caplog.text


def test_a_process_that_cannot_be_watched_is_ended(
    run: Run, loop: ringloop.EventLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fixtures see that neither it nor its pipes are left."""

    def fails(*args: Any) -> None:
        raise MemoryError

    async def main() -> None:
        for name in ("_make_read_pipe_transport", "_add_reader"):
            with monkeypatch.context() as patch:
                patch.setattr(ringloop.EventLoop, name, fails)
                with pytest.raises(MemoryError):
                    await asyncio.create_subprocess_exec("cat", stdin=PIPE, stdout=PIPE)
                assert not children()
        await asyncio.sleep(0)
        gc.collect()

    run(main())


@pytest.mark.usefixtures("watched_by")
def test_a_cancelled_start_leaves_nothing(run: Run, loop: ringloop.EventLoop) -> None:
    """At whatever moment; the fixtures see what is left."""

    async def main() -> None:
        finished = 0
        for steps in range(6):
            starting = loop.create_task(
                asyncio.create_subprocess_exec("sleep", "60", stdin=PIPE, stdout=PIPE)
            )
            for _ in range(steps):
                await asyncio.sleep(0)
            starting.cancel()
            try:
                process = await starting
            except asyncio.CancelledError:
                assert not children()
            else:
                finished += 1
                process.kill()
                await process.communicate()
        assert finished < 5  # the test has come at some of the moments
        await no_thread_waits()

    run(main())


def test_a_start_that_is_cancelled_twice_is_still_reaped(
    run: Run, loop: ringloop.EventLoop
) -> None:
    async def main() -> None:
        starting = loop.create_task(asyncio.create_subprocess_exec("sleep", "60", stdin=PIPE))
        await asyncio.sleep(0)
        starting.cancel()
        await asyncio.sleep(0)
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        while children():
            await asyncio.sleep(0)

    run(main())


def test_a_cancelled_wait_leaves_the_process_alone(run: Run) -> None:
    async def main() -> None:
        process = await asyncio.create_subprocess_exec("sleep", "60")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(process.wait(), 0.01)
        assert process.returncode is None
        process.kill()
        assert await process.wait() == -signal.SIGKILL

    run(main())


@pytest.mark.usefixtures("watched_by")
def test_a_process_of_a_closed_loop_is_killed_though_warnings_are_errors(
    driver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    raised: list[str] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda args: raised.append(str(args.exc_value)))
    loop = ringloop.EventLoop(drivers.make(driver))

    async def main() -> int:
        return (await asyncio.create_subprocess_exec("sleep", "60")).pid

    pid = loop.run_until_complete(main())
    loop.close()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        del loop
        gc.collect()
    assert any("unclosed transport" in text for text in raised), raised
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL


@pytest.mark.usefixtures("watched_by")
def test_a_loop_that_is_closed_with_a_process_that_runs(driver: str) -> None:
    """As in asyncio: the transport says so when it is collected, and kills."""
    loop = ringloop.EventLoop(drivers.make(driver))

    async def main() -> int:
        process = await asyncio.create_subprocess_exec("sleep", "60", stdin=PIPE, stdout=PIPE)
        return process.pid

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ResourceWarning)
        pid = loop.run_until_complete(main())
        loop.close()
        del loop
        gc.collect()
    assert any("unclosed transport" in str(w.message) for w in caught)
    status = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert status is not None
    assert status.si_status == signal.SIGKILL


# -- where the loop runs -------------------------------------------------------------------


@pytest.mark.usefixtures("watched_by")
def test_a_loop_in_another_thread(driver: str) -> None:
    results: list[Any] = []

    async def main() -> None:
        process = await asyncio.create_subprocess_exec("cat", stdin=PIPE, stdout=PIPE)
        results.append(await process.communicate(b"through a thread"))
        results.append(process.returncode)
        await no_thread_waits()

    thread = threading.Thread(target=lambda: ringloop.run(main(), driver=driver))
    thread.start()
    thread.join(TIMEOUT_S)
    assert results == [(b"through a thread", None), 0]


def test_two_loops_in_two_threads_each_have_their_processes(driver: str) -> None:
    results: dict[int, list[int]] = {}

    async def code(argument: int) -> int:
        process = await asyncio.create_subprocess_exec("sh", "-c", f"exit {argument}")
        return await process.wait()

    async def main(first: int) -> None:
        results[first] = [await code(i) for i in range(first, first + 10)]

    threads = [
        threading.Thread(target=lambda n=n: ringloop.run(main(n), driver=driver)) for n in (10, 100)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT_S)
    assert results == {n: list(range(n, n + 10)) for n in (10, 100)}


def program(driver: str, body: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run a program in a process of its own."""
    return subprocess.run(
        [PYTHON, *options, "-c", textwrap.dedent(body)],
        env={**os.environ, "RINGLOOP_DRIVER": driver},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


@pytest.mark.parametrize("runner", ["ringloop.run", "asyncio.Runner"])
def test_a_program_that_only_waits_ends_without_warnings(driver: str, runner: str) -> None:
    """wait() returns when the process has ended, maybe before its pipes have."""
    done = program(
        driver,
        f"""
        import asyncio, ringloop

        async def main():
            process = await asyncio.create_subprocess_shell(
                "echo some output; echo more >&2", stdin=-1, stdout=-1, stderr=-1)
            print(await process.wait())

        if {runner == "ringloop.run"}:
            ringloop.run(main())
        else:
            with asyncio.Runner(loop_factory=ringloop.new_event_loop) as runner:
                runner.run(main())
        """,
        "-Xdev",
    )
    assert (done.returncode, done.stdout) == (0, "0\n")
    assert "ResourceWarning" not in done.stderr


@pytest.mark.parametrize("runner", ["ringloop.run", "asyncio.Runner"])
@pytest.mark.parametrize("cleans_up", [True, False])
def test_ctrl_c_while_a_process_runs(driver: str, runner: str, cleans_up: bool) -> None:
    """KeyboardInterrupt comes out, the process is gone, and nothing hangs."""
    done = program(
        driver,
        f"""
        import asyncio, gc, os, signal, subprocess, ringloop

        async def main():
            process = await asyncio.create_subprocess_exec("sleep", "60")
            asyncio.get_running_loop().call_later(
                0.05, os.kill, os.getpid(), signal.SIGINT)
            try:
                await process.wait()
            finally:
                print(process.returncode, flush=True)
                if {cleans_up}:
                    process.terminate()
                    print(await process.wait(), flush=True)

        try:
            if {runner == "ringloop.run"}:
                ringloop.run(main())
            else:
                with asyncio.Runner(loop_factory=ringloop.new_event_loop) as runner:
                    runner.run(main())
        except KeyboardInterrupt:
            print("interrupted", flush=True)
        gc.collect()
        try:
            os.wait()  # for the one that was killed, unless Popen has reaped it
        except ChildProcessError:
            pass
        print("no child", flush=True)
        """,
    )
    expected = f"None\n{'-15' * cleans_up}\ninterrupted\nno child\n".replace("\n\n", "\n")
    assert (done.returncode, done.stdout) == (0, expected), done.stderr


def test_no_fork_hook_runs_unless_there_is_a_preexec_fn(driver: str) -> None:
    """The child does not come back to Python; hooks may reset what the parent needs."""
    done = program(
        driver,
        """
        import asyncio, os, ringloop

        def say(what):
            os.write(1, what)

        os.register_at_fork(before=lambda: say(b"before "),
                            after_in_parent=lambda: say(b"parent "),
                            after_in_child=lambda: say(b"child "))

        async def main():
            for options in ({}, {"start_new_session": True}, {"preexec_fn": int}):
                process = await asyncio.create_subprocess_exec("true", stdin=-1, **options)
                await process.wait()
                say(b";")

        ringloop.run(main())
        """,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(";;")
    assert sorted(done.stdout[2:-1].split()) == ["before", "child", "parent"]


@pytest.mark.parametrize("isolated", [True, False])
def test_subinterpreters(driver: str, isolated: bool) -> None:
    """Beside one, processes start as ever. In one, importing ringloop is an ImportError."""
    if isolated and sys.version_info < (3, 12):
        pytest.skip("isolated subinterpreters have a GIL of their own since Python 3.12")
    done = program(
        driver,
        f"""
        import asyncio, sys
        try:
            import _interpreters as interpreters
            other = interpreters.create("isolated" if {isolated} else "legacy")
        except ImportError:
            import _xxsubinterpreters as interpreters
            other = interpreters.create(isolated={isolated})

        code = '''if True:
            import sys
            sys.path[:] = %r
            try:
                import ringloop
            except ImportError:
                print("refused", flush=True)
        ''' % sys.path

        import ringloop
        interpreters.run_string(other, code)

        async def main():
            process = await asyncio.create_subprocess_exec("cat", stdin=-1, stdout=-1)
            return await process.communicate(b"beside")

        print(ringloop.run(main()), flush=True)
        interpreters.run_string(other, code)
        interpreters.destroy(other)
        """,
    )
    expected = "refused\n(b'beside', None)\nrefused\n"
    assert (done.returncode, done.stdout) == (0, expected), done.stderr


def test_a_forked_child_does_not_kill_what_is_its_parents(
    run: Run, loop: ringloop.EventLoop
) -> None:
    async def main() -> None:
        transport, protocol = await loop.subprocess_exec(Events, "cat", stdin=PIPE)
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                transport._kill_if_running()  # type: ignore[attr-defined]
                status = 0
            finally:
                os._exit(status)
        assert os.waitpid(pid, 0)[1] == 0
        stdin = transport.get_pipe_transport(0)
        assert isinstance(stdin, asyncio.WriteTransport)
        stdin.close()
        await protocol.lost
        assert transport.get_returncode() == 0  # by itself, not by a signal
        transport.close()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of fork with threads
        run(main())


# -- many of them --------------------------------------------------------------------------


def test_three_hundred_processes_leave_nothing(run: Run, loop: ringloop.EventLoop) -> None:
    """No zombie at any time; the fixtures look for fds and operations."""

    async def main() -> None:
        operations = loop._live_operations()
        for i in range(60):
            five = [
                await asyncio.create_subprocess_exec(
                    "/bin/true", stdin=PIPE if i % 2 else None, stdout=PIPE if i % 3 else None
                )
                for _ in range(5)
            ]
            results = await asyncio.gather(*[process.communicate() for process in five])
            assert {out or b"" for out, _ in results} == {b""}
            assert [process.returncode for process in five] == [0] * 5
            assert not children()
        while loop._live_operations() > operations + 1:  # the signal socket's
            await asyncio.sleep(0)

    run(main(), timeout=60)


@pytest.mark.usefixtures("watched_by")
@pytest.mark.parametrize("seed", [1, 2])
def test_a_storm_of_kills_closes_and_cancellations(
    run: Run, loop: ringloop.EventLoop, seed: int
) -> None:
    """Whatever happens to them: each is reaped once, and nothing is left."""
    rng = random.Random(seed)
    errors: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: errors.append(context))
    programs = (["/bin/true"], ["sleep", "60"], ["cat"], ["sh", "-c", "echo $$; exit 3"])

    async def one() -> None:
        stdin, stdout, stderr = (rng.choice((PIPE, subprocess.DEVNULL)) for _ in range(3))
        process = await asyncio.create_subprocess_exec(
            *rng.choice(programs), stdin=stdin, stdout=stdout, stderr=stderr
        )
        try:
            for _ in range(rng.randrange(4)):
                what = rng.choice(("kill", "terminate", "write", "close stdin", "close", "pause"))
                if what in ("kill", "terminate"):
                    getattr(process, what)()
                elif what == "write" and process.stdin is not None:
                    process.stdin.write(bytes(rng.choice((1, 100_000))))
                elif what == "close stdin" and process.stdin is not None:
                    process.stdin.close()
                elif what == "close":
                    process._transport.close()  # type: ignore[attr-defined]
                for _ in range(rng.randrange(4)):
                    await asyncio.sleep(0)
        except ProcessLookupError:
            pass
        finally:
            process._transport.close()  # type: ignore[attr-defined]
            assert await process.wait() is not None

    async def main() -> None:
        for _ in range(10):
            tasks = [loop.create_task(one()) for _ in range(5)]
            for _ in range(rng.randrange(12)):
                await asyncio.sleep(0)
                if rng.random() < 0.3:
                    rng.choice(tasks).cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(r is None or isinstance(r, asyncio.CancelledError) for r in results), results
            while children():
                await asyncio.sleep(0.001)
        await no_thread_waits()

    run(main(), timeout=60)
    assert errors == []
