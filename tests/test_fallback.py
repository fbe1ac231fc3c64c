"""Choosing the driver: epoll where io_uring is blocked, and the words for why."""

from __future__ import annotations

import asyncio
import errno
import gc
import json
import os
import subprocess
import sys
import textwrap
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import ringloop
from ringloop._driver import choose
from ringloop._driver.uring import UringDriver

if TYPE_CHECKING:
    from collections.abc import Iterator

TIMEOUT_S = 30

# A filter as container runtimes have it: io_uring_setup gets an error, all else is allowed.
BLOCK_IO_URING = """
import ctypes, errno, struct

def block_io_uring(error):
    LD_NR = (0x20, 0, 0, 0)              # load seccomp_data.nr
    IF_SETUP = (0x15, 0, 1, 425)         # io_uring_setup: the same number everywhere but alpha
    ERROR = (0x06, 0, 0, 0x00050000 | error)
    ALLOW = (0x06, 0, 0, 0x7FFF0000)
    code = b"".join(struct.pack("HBBI", *i) for i in (LD_NR, IF_SETUP, ERROR, ALLOW))
    buffer = ctypes.create_string_buffer(code, len(code))
    program = struct.pack("HP", 4, ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    NO_NEW_PRIVS, SECCOMP, MODE_FILTER = 38, 22, 2
    assert libc.prctl(NO_NEW_PRIVS, 1, 0, 0, 0) == 0, ctypes.get_errno()
    assert libc.prctl(SECCOMP, MODE_FILTER, program, 0, 0) == 0, ctypes.get_errno()
"""

ECHO = """
import asyncio, json, ringloop

async def echo(reader, writer):
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()

async def main():
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    message = b"ringloop" * 100_000
    writer.write(message)
    assert await reader.readexactly(len(message)) == message
    writer.close()
    await writer.wait_closed()
    server.close()
    while len(asyncio.all_tasks()) > 1:  # the other end's handler
        await asyncio.sleep(0.001)
    return asyncio.get_running_loop()._driver_name

def report():
    driver = ringloop.run(main())
    print(json.dumps({"driver": driver, **ringloop.backend_info()}))
"""


def run_program(*parts: str, driver: str | None = None) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if k != "RINGLOOP_DRIVER"}
    if driver is not None:
        env["RINGLOOP_DRIVER"] = driver
    source = "\n".join(textwrap.dedent(part) for part in parts)
    return subprocess.run(
        [sys.executable, "-c", source],
        env=env,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


def blocked(error: str, body: str, driver: str | None = None) -> subprocess.CompletedProcess[str]:
    return run_program(BLOCK_IO_URING, f"block_io_uring(errno.{error})", ECHO, body, driver=driver)


def error_line(done: subprocess.CompletedProcess[str], kind: str) -> str:
    """The message of the exception that ended the program, with nothing else in its wake."""
    assert done.returncode == 1
    assert "Exception ignored" not in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith(f"{kind}: ")]
    return line.removeprefix(f"{kind}: ")


def answer(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    info: dict[str, Any] = json.loads(done.stdout)
    return info


BLOCKED = pytest.mark.parametrize(
    ("error", "words"),
    [
        ("EPERM", ["blocked", "EPERM", "seccomp", "io_uring_setup"]),
        ("ENOSYS", ["no io_uring", "ENOSYS"]),
        ("ENOMEM", ["memory", "ENOMEM", "ulimit -l"]),
        ("EINVAL", ["too old", "6.1"]),
        ("EOPNOTSUPP", ["io_uring_setup", os.strerror(errno.EOPNOTSUPP)]),
    ],
)


@BLOCKED
def test_a_program_works_on_epoll_and_is_told_why(error: str, words: list[str]) -> None:
    info = answer(blocked(error, "report()"))
    assert info["driver"] == "epoll"
    assert info["requested"] == "auto"
    assert [word for word in words if word not in info["reason"]] == []


@BLOCKED
def test_asking_for_io_uring_where_it_is_blocked_is_an_error_that_says_why(
    error: str, words: list[str]
) -> None:
    said = error_line(blocked(error, "report()", driver="uring"), "RuntimeError")
    assert [word for word in words if word not in said] == []


def test_epoll_that_was_asked_for_needs_no_reason_but_that() -> None:
    info = answer(run_program(ECHO, "report()", driver="epoll"))
    assert (info["driver"], info["requested"]) == ("epoll", "epoll")


def test_asking_for_epoll_where_io_uring_is_blocked_works() -> None:
    info = answer(blocked("EPERM", "report()", driver="epoll"))
    assert (info["driver"], info["requested"]) == ("epoll", "epoll")
    assert info["reason"]


@pytest.mark.parametrize("program", ["ringloop.new_event_loop()", "ringloop.backend_info()"])
def test_a_nonsense_driver_is_a_value_error_that_lists_the_choices(program: str) -> None:
    done = run_program("import ringloop", program, driver="nonsense")
    assert error_line(done, "ValueError") == (
        "RINGLOOP_DRIVER must be one of auto, uring, epoll, not 'nonsense'"
    )


@BLOCKED
def test_doctor_explains_and_ends_with_status_1(error: str, words: list[str]) -> None:
    done = blocked(error, "import sys\nfrom ringloop import doctor\nsys.exit(doctor.main())")
    assert done.returncode == 1
    assert done.stderr == ""
    assert "new event loops use epoll" in done.stdout
    assert "io_uring cannot be used" in done.stdout
    assert [word for word in words if word not in done.stdout] == []


def test_doctor_says_what_stops_a_forced_driver() -> None:
    done = blocked(
        "EPERM", "import sys\nfrom ringloop import doctor\nsys.exit(doctor.main())", "uring"
    )
    assert done.returncode == 1
    assert done.stderr == ""
    assert "no event loop can be made" in done.stdout
    assert "EPERM" in done.stdout


def test_a_filter_that_comes_after_the_first_loop_sends_later_loops_to_epoll() -> None:
    """The self-test is made once a process; set-up can fail after that all the same."""
    if choose.why_not_uring() is not None:
        pytest.skip(f"io_uring cannot be used here: {choose.why_not_uring()}")
    body = "ringloop.run(main()); block_io_uring(errno.EPERM); report()"
    info = answer(run_program(BLOCK_IO_URING, ECHO, body))
    assert info["driver"] == "epoll"
    assert "EPERM" in info["reason"]


# -- limits --------------------------------------------------------------------------

OUT_OF_FDS = """
import json, os, resource
import ringloop

def open_fds():
    return len(os.listdir("/proc/self/fd"))

def leave(free):
    # The limit counts numbers: fill the holes, then let `free` more be opened.
    holes = []
    while True:
        fd = os.dup(0)
        if fd == open_fds() - 2:
            os.close(fd)
            break
        holes.append(fd)
    resource.setrlimit(resource.RLIMIT_NOFILE, (fd + free, limit))

limit = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
"""


@pytest.mark.parametrize("wanted", ["auto", "uring", "epoll"])
def test_without_fds_a_loop_is_made_or_the_error_is_clear_and_nothing_leaks(wanted: str) -> None:
    if wanted == "uring" and choose.why_not_uring() is not None:
        pytest.skip(f"io_uring cannot be used here: {choose.why_not_uring()}")
    done = run_program(
        OUT_OF_FDS,
        f"""
        outcomes = []
        for free in range(8):
            leave(free)
            before = sorted(os.listdir("/proc/self/fd")) if free else None
            loop = None
            try:
                loop = ringloop.EventLoop("{wanted}")
                loop.call_soon(loop.stop)
                loop.run_forever()
                outcomes.append(loop._driver_name)
            except (OSError, RuntimeError) as exc:
                outcomes.append(f"{{type(exc).__name__}}: {{exc}}")
            finally:
                if loop is not None:
                    loop.close()
                    del loop
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
            if before is not None:
                after = sorted(os.listdir("/proc/self/fd"))
                assert after == before, (free, before, after)
        print(json.dumps(outcomes))
        """,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    outcomes = json.loads(done.stdout)
    made = [outcome for outcome in outcomes if outcome in ("uring", "epoll")]
    failed = outcomes[: len(outcomes) - len(made)]
    assert made, outcomes
    assert outcomes == failed + made  # more room is never worse
    assert failed[0].startswith(("OSError: ", "RuntimeError: "))
    assert [text for text in failed if "Too many open files" not in text] == []


def test_a_shortage_of_fds_does_not_rule_io_uring_out_for_good() -> None:
    if choose.why_not_uring() is not None:
        pytest.skip(f"io_uring cannot be used here: {choose.why_not_uring()}")
    done = run_program(
        OUT_OF_FDS,
        ECHO,
        """
        leave(1)
        try:
            ringloop.new_event_loop().close()
        except OSError:
            pass
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
        report()
        """,
    )
    assert answer(done)["driver"] == "uring"


def test_a_loop_that_cannot_move_for_lack_of_fds_can_later(driver: str) -> None:
    """To another thread, for which io_uring needs another ring. A crash would be silent here."""
    done = run_program(
        f"""
        import asyncio, resource, ringloop, socket
        from concurrent.futures import ThreadPoolExecutor

        loop = ringloop.EventLoop("{driver}")
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        first, second = (ThreadPoolExecutor(1) for _ in range(2))
        received = loop.create_future()
        loop.add_reader(ours, lambda: received.done() or received.set_result(ours.recv(10)))
        first.submit(loop.run_until_complete, asyncio.sleep(0)).result()
        second.submit(int).result()
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
        stop = loop.call_soon(loop.stop)
        try:
            second.submit(loop.run_forever).result()
        except OSError as error:
            assert "Too many open files" in str(error), error
            stop.cancel()
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
        first.submit(loop.run_until_complete, asyncio.sleep(0)).result()
        theirs.send(b"later")
        print(second.submit(loop.run_until_complete, received).result())
        loop.remove_reader(ours)
        loop.close()
        ours.close()
        theirs.close()
        """
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "b'later'\n", "")


def test_without_lockable_memory_a_program_works_on_what_can_be_had() -> None:
    info = answer(
        run_program(
            "import resource",
            "resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, 0))",
            ECHO,
            "report()",
        )
    )
    assert info["driver"] in ("uring", "epoll")
    assert (info["reason"] is None) == (info["driver"] == "uring")


# -- in this process -----------------------------------------------------------------


def test_without_memory_for_the_receive_buffers_it_is_epoll(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if (why_not := choose.why_not_uring()) is not None:
        pytest.skip(why_not)
    larger_than_any_address_space = partial(UringDriver, buffers=1 << 16, buffer_size=(1 << 32) - 1)
    monkeypatch.setattr(choose, "UringDriver", larger_than_any_address_space)
    driver, reason = choose._choose("auto")
    assert driver.name == "epoll"
    assert reason is not None
    assert "no memory" in reason


@pytest.fixture
def sysctl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stands for /proc/sys/kernel/io_uring_disabled, which tests cannot set."""
    path = tmp_path / "io_uring_disabled"
    monkeypatch.setattr(choose, "Path", lambda _: path)
    return path


@pytest.mark.parametrize("value", ["1", "2"])
def test_the_sysctl_that_disables_io_uring_is_named(sysctl: Path, value: str) -> None:
    sysctl.write_text(f"{value}\n")
    said = choose._explain(OSError(errno.EPERM, "io_uring_setup"))
    assert f"kernel.io_uring_disabled={value}" in said
    assert "administrator" in said


@pytest.mark.parametrize("value", ["0", None])
def test_eperm_without_the_sysctl_is_seccomps(sysctl: Path, value: str | None) -> None:
    if value is not None:
        sysctl.write_text(f"{value}\n")
    said = choose._explain(OSError(errno.EPERM, "io_uring_setup"))
    assert "seccomp" in said
    assert "sysctl" not in said


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.EOPNOTSUPP, errno.EIO])
def test_an_unforeseen_error_is_told_with_its_own_words_and_place(number: int) -> None:
    try:
        raise OSError(number, "io_uring_register(PBUF_RING)")
    except OSError as error:
        said = choose._explain(error)
    assert os.strerror(number) in said
    assert "io_uring_register(PBUF_RING)" in said


def test_new_event_loop_takes_the_driver_of_the_environment(
    driver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RINGLOOP_DRIVER", driver)
    with asyncio.Runner(loop_factory=ringloop.new_event_loop) as runner:
        loop = runner.get_loop()
        assert isinstance(loop, ringloop.EventLoop)
        assert loop._driver_name == driver
    info = ringloop.backend_info()
    assert set(info) == {"driver", "requested", "reason", "kernel", "features", "tls", "tls_reason"}
    assert (info["driver"], info["requested"]) == (driver, driver)
    assert info["kernel"] == os.uname().release
    if driver == "uring":
        assert info["reason"] is None
        assert info["features"]["sq_entries"] > 0
    else:
        assert info["reason"]


def test_run_gives_the_result_on_a_loop_of_the_chosen_driver(driver: str) -> None:
    async def main() -> tuple[ringloop.EventLoop, bool]:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, ringloop.EventLoop)
        return loop, loop.get_debug()

    loop, debug = ringloop.run(main(), debug=True, driver=driver)
    assert isinstance(loop, asyncio.AbstractEventLoop)
    assert loop.is_closed()
    assert debug
    assert loop._driver_name == driver


def test_an_explicit_driver_goes_before_the_environment(
    driver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RINGLOOP_DRIVER", "epoll" if driver == "uring" else "uring")
    loop = ringloop.EventLoop(driver)
    assert loop._driver_name == driver
    loop.close()


def test_an_empty_environment_variable_means_auto(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RINGLOOP_DRIVER", "")
    assert ringloop.backend_info()["requested"] == "auto"


def test_backend_info_leaves_no_fd_open(driver: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RINGLOOP_DRIVER", driver)
    fds = Path("/proc/self/fd")
    gc.collect()
    before = sorted(fd.name for fd in fds.iterdir())
    ringloop.backend_info()
    assert sorted(fd.name for fd in fds.iterdir()) == before


@pytest.fixture
def no_warnings_from_del() -> Iterator[None]:
    """Unraisable warnings of __del__ belong to the test that caused them."""
    yield
    gc.collect()


def test_an_unknown_driver_is_a_value_error_that_lists_the_choices(
    no_warnings_from_del: None,
) -> None:
    with pytest.raises(ValueError, match=r"driver must be one of auto, uring, epoll, not 'kqueue'"):
        ringloop.EventLoop("kqueue")
