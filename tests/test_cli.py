"""The command line: a program must not notice that ringloop runs it, but for its loops."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
import textwrap
import zipapp
from pathlib import Path

import pytest

import ringloop

TIMEOUT_S = 30

MODULE = [sys.executable, "-m", "ringloop"]
CONSOLE = [str(Path(sysconfig.get_path("scripts"), "ringloop"))]

# Everything by which a program finds itself and its surroundings.
FACTS = """
import json, sys

def facts():
    main = sys.modules["__main__"]
    return {
        "argv": sys.argv,
        "path": sys.path,
        "name": __name__,
        "file": __file__,
        "is main": main.__dict__ is globals(),
        "spec": main.__spec__ and main.__spec__.name,
        "doc": __doc__,
        "modules": sorted(m for m in sys.modules if m.startswith("neighbour")),
        "annotations": repr(annotated.__annotations__),
        "builtins": type(__builtins__).__name__,
        "names": sorted(name for name in globals() if not name.startswith("_")),
    }

def annotated(x: int): ...
"""
PROGRAM = '"""A program."""\n' + FACTS + "import neighbour\nprint(json.dumps(facts()))\n"


@pytest.fixture(params=["python -m ringloop", "ringloop"])
def command(request: pytest.FixtureRequest) -> list[str]:
    """Both ways to the command line."""
    return MODULE if request.param == "python -m ringloop" else CONSOLE


def call(
    args: list[str], cwd: Path, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        args,
        cwd=cwd,
        env={**os.environ, **(env or {})},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a script, a package and a folder that is a program."""
    write(tmp_path / "app" / "script.py", PROGRAM)
    write(tmp_path / "app" / "neighbour.py", "")
    write(tmp_path / "neighbour.py", "")
    write(tmp_path / "package" / "__init__.py", "")
    write(tmp_path / "package" / "module.py", PROGRAM)
    write(tmp_path / "package" / "__main__.py", PROGRAM)
    write(tmp_path / "program" / "__main__.py", PROGRAM)
    write(tmp_path / "program" / "neighbour.py", "")
    (tmp_path / "link.py").symlink_to("app/script.py")
    zipapp.create_archive(tmp_path / "program", tmp_path / "program.pyz")
    return tmp_path


# -- run -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "args",
    [
        ["app/script.py"],
        ["app/script.py", "one", "two words", ""],
        ["app/script.py", "-m", "x", "--help", "-h", "--version"],
        ["app/script.py", "--", "-x", "--"],
        ["link.py", "x"],
        ["program", "x"],
        ["program.pyz", "x"],
        ["-m", "package.module"],
        ["-m", "package.module", "one", "-m", "--help", "--", "x"],
        ["-m", "package", "x"],
        ["-mpackage", "-m", "x"],
    ],
    ids=" ".join,
)
def test_a_program_finds_itself_as_under_python(
    command: list[str], folder: Path, args: list[str]
) -> None:
    expected = call([sys.executable, *args], folder)
    assert expected.returncode == 0, expected.stderr
    done = call([*command, "run", *args], folder)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert json.loads(done.stdout) == json.loads(expected.stdout)


def test_the_safe_path_is_left_as_python_has_it(folder: Path) -> None:
    """PYTHONSAFEPATH: neither the script's folder nor the working directory is searched."""
    write(folder / "app" / "script.py", FACTS + "print(json.dumps(facts()))")
    env = {"PYTHONSAFEPATH": "1"}
    expected = call([sys.executable, "app/script.py"], folder, env)
    done = call([*MODULE, "run", "app/script.py"], folder, env)
    assert json.loads(done.stdout) == json.loads(expected.stdout)


@pytest.mark.parametrize(
    ("body", "status", "stderr"),
    [
        ("pass", 0, ""),
        ("sys.exit()", 0, ""),
        ("sys.exit(3)", 3, ""),
        ("sys.exit('a message')", 1, "a message\n"),
        ("os._exit(4)", 4, ""),
        ("asyncio.run(exit_in_a_task())", 5, ""),
        ("signal.raise_signal(signal.SIGTERM)", -15, ""),
        ("threading.Thread(target=late).start()", 0, "late\n"),
        ("atexit.register(late)", 0, "late\n"),
    ],
)
def test_exit_status_and_last_words_are_the_programs(
    tmp_path: Path, body: str, status: int, stderr: str
) -> None:
    script = write(
        tmp_path / "script.py",
        """
        import asyncio, atexit, os, signal, sys, threading, time

        async def exit_in_a_task():
            sys.exit(5)

        def late():
            time.sleep(0.05)
            print("late", file=sys.stderr)

        """,
    )
    script.write_text(script.read_text() + body)
    for args in ([sys.executable], [*MODULE, "run"]):
        done = call([*args, "script.py"], tmp_path)
        assert (done.returncode, done.stdout, done.stderr) == (status, "", stderr)


def test_an_exception_ends_with_its_traceback_and_status_1(tmp_path: Path) -> None:
    write(
        tmp_path / "script.py",
        """
        def fail():
            raise LookupError("on purpose")

        fail()
        """,
    )
    done = call([*MODULE, "run", "script.py"], tmp_path)
    assert done.returncode == 1
    assert done.stderr.endswith("LookupError: on purpose\n")
    assert "script.py" in done.stderr
    assert 'raise LookupError("on purpose")' in done.stderr


def test_a_syntax_error_is_shown_where_it_is(tmp_path: Path) -> None:
    write(tmp_path / "script.py", "good = 1\nbad = = 2\n")
    done = call([*MODULE, "run", "script.py"], tmp_path)
    assert done.returncode == 1
    assert "script.py" in done.stderr
    assert "line 2" in done.stderr
    assert "SyntaxError" in done.stderr


@pytest.mark.parametrize(
    ("args", "status", "words"),
    [
        (["missing.py"], 2, ["missing.py", "no file"]),
        (["-m", "missing_module"], 2, ["missing_module", "No module named"]),
        (["-m", "package.missing"], 2, ["package.missing", "No module named"]),
        (["-m", "missing.module"], 2, ["'missing'", "No module named"]),
        (["-m", "package"], 2, ["package", "__main__"]),
        (["-m", "module.py"], 2, ["module.py", "without -m"]),
        (["-m", "module.missing"], 2, ["module.missing"]),
        ([], 2, ["usage: ringloop run [-m MODULE | SCRIPT] [ARGS ...]"]),
    ],
    ids=[
        "script",
        "module",
        "in a package",
        "package",
        "package without main",
        "script as a module",
        "in a module",
        "nothing",
    ],
)
def test_what_cannot_be_run_is_named(
    tmp_path: Path, args: list[str], status: int, words: list[str]
) -> None:
    write(tmp_path / "package" / "__init__.py", "")
    write(tmp_path / "module.py", "")
    done = call([*MODULE, "run", *args], tmp_path)
    assert done.returncode == status
    assert done.stdout == ""
    assert [word for word in words if word not in done.stderr] == []
    assert "Traceback" not in done.stderr


def test_a_module_whose_package_fails_shows_where(tmp_path: Path) -> None:
    write(tmp_path / "package" / "__init__.py", "import missing_module")
    write(tmp_path / "package" / "module.py", "")
    done = call([*MODULE, "run", "-m", "package.module"], tmp_path)
    assert done.returncode == 1
    assert "package/__init__.py" in done.stderr


LOOPS = {
    "asyncio.run": """
asyncio.run(report())""",
    "asyncio.new_event_loop": """
loop = asyncio.new_event_loop()
loop.run_until_complete(report())
loop.close()""",
    "asyncio.Runner": """
with asyncio.Runner() as runner:
    runner.run(report())""",
    "policy": """
loop = asyncio.get_event_loop_policy().new_event_loop()
loop.run_until_complete(report())
loop.close()""",
}


@pytest.mark.skipif(sys.version_info >= (3, 16), reason="event loop policies end with 3.15")
@pytest.mark.parametrize("how", LOOPS)
@pytest.mark.parametrize("target", [["script.py"], ["-m", "script"]], ids=["script", "module"])
def test_every_new_loop_of_the_program_is_a_ringloop(
    tmp_path: Path, driver: str, how: str, target: list[str]
) -> None:
    write(
        tmp_path / "script.py",
        """
        import asyncio

        async def report():
            loop = asyncio.get_running_loop()
            await asyncio.sleep(0)
            print(type(loop).__module__, getattr(loop, "_driver_name", None))
        """
        + textwrap.indent(LOOPS[how], " " * 8),
    )
    done = call([*MODULE, "run", *target], tmp_path, {"RINGLOOP_DRIVER": driver})
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == ["ringloop.loop", driver]
    plain = call([sys.executable, *target], tmp_path)
    assert plain.stdout.split()[0] != "ringloop.loop"


def test_uvicorn_chooses_a_ringloop_where_nobody_does(tmp_path: Path) -> None:
    """It takes uvloop or a class of asyncio's, and asks no policy."""
    write(tmp_path / "uvicorn" / "__init__.py", "")
    write(tmp_path / "uvicorn" / "loops" / "__init__.py", "")
    write(
        tmp_path / "uvicorn" / "loops" / "auto.py",
        """
        import asyncio

        def auto_loop_factory(use_subprocess=False):
            return asyncio.SelectorEventLoop
        """,
    )
    write(
        tmp_path / "script.py",
        """
        from uvicorn.loops import auto
        loop = auto.auto_loop_factory(use_subprocess=False)()
        print(type(loop).__module__, auto.__file__)
        loop.close()
        """,
    )
    done = call([*MODULE, "run", "script.py"], tmp_path)
    path = tmp_path / "uvicorn" / "loops" / "auto.py"
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"ringloop.loop {path}\n"


def test_the_console_of_asyncio_ends_in_silence(tmp_path: Path, driver: str) -> None:
    """It leaves its loop open, which goes when the interpreter is half gone."""
    done = subprocess.run(
        [*MODULE, "run", "-m", "asyncio"],
        cwd=tmp_path,
        env=os.environ | {"RINGLOOP_DRIVER": driver},
        input="await asyncio.sleep(0, 'slept')\n",
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0
    assert "'slept'" in done.stdout
    assert done.stderr.strip().endswith("exiting asyncio REPL..."), done.stderr


def test_a_program_with_spawned_processes_works(tmp_path: Path) -> None:
    """They import the main module anew, by what it says of itself."""
    write(
        tmp_path / "script.py",
        """
        import multiprocessing

        def double(n):
            return 2 * n

        if __name__ == "__main__":
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                print(pool.map(double, [1, 2, 3]))
        """,
    )
    done = call([*MODULE, "run", "script.py"], tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[2, 4, 6]\n", "")


# -- the other commands --------------------------------------------------------------


@pytest.mark.parametrize("args", [["--help"], ["-h"]])
def test_help_lists_the_commands(command: list[str], tmp_path: Path, args: list[str]) -> None:
    done = call([*command, *args], tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: ringloop ")
    variables = ["DRIVER", "STREAMS", "TLS", "RESOLVER_THREADS"]
    words = ["run", "doctor", "bench", "--version", *(f"RINGLOOP_{name}" for name in variables)]
    assert [word for word in words if word not in done.stdout] == []


@pytest.mark.parametrize("name", ["run", "doctor", "bench"])
def test_each_command_has_help(tmp_path: Path, name: str) -> None:
    done = call([*MODULE, name, "--help"], tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"usage: ringloop {name}")


def test_version(command: list[str], tmp_path: Path) -> None:
    done = call([*command, "--version"], tmp_path)
    assert (done.returncode, done.stdout) == (0, f"ringloop {ringloop.__version__}\n")


@pytest.mark.parametrize("args", [[], ["nonsense"], ["--nonsense"]])
def test_a_wrong_command_is_a_usage_error(tmp_path: Path, args: list[str]) -> None:
    done = call([*MODULE, *args], tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("usage: ringloop ")


def test_doctor_tells_the_driver_by_words_and_exit_status(
    command: list[str], tmp_path: Path, driver: str
) -> None:
    done = call([*command, "doctor"], tmp_path, {"RINGLOOP_DRIVER": driver})
    assert done.returncode == (0 if driver == "uring" else 1)
    assert done.stderr == ""
    lines = done.stdout.splitlines()
    version = ".".join(map(str, sys.version_info[:3]))
    assert lines[0].startswith(f"ringloop {ringloop.__version__}, Python {version}")
    assert lines[1].startswith(f"new event loops use {driver}")
    assert os.uname().release in done.stdout
    if driver == "uring":
        assert "io_uring works" in done.stdout
        assert "features found in the kernel" in done.stdout


def test_doctor_says_what_keeps_ringloop_from_io_uring(tmp_path: Path, driver: str) -> None:
    done = call([*MODULE, "doctor"], tmp_path, {"RINGLOOP_DRIVER": "epoll"})
    assert done.returncode == 1
    if driver == "uring":  # that is: it would work here
        assert "RINGLOOP_DRIVER=epoll keeps ringloop from io_uring" in done.stdout
        assert "unset it" in done.stdout


def test_doctor_gives_the_way_to_more_open_files(tmp_path: Path) -> None:
    script = "ulimit -S -n 256 && exec " + " ".join([*MODULE, "doctor"])
    done = call(["/bin/sh", "-c", script], tmp_path)
    assert "may open 256 files" in done.stdout
    assert "ulimit -n" in done.stdout


def test_doctor_does_not_offer_the_limit_that_there_is(tmp_path: Path) -> None:
    script = "ulimit -n 256 && exec " + " ".join([*MODULE, "doctor"])
    done = call(["/bin/sh", "-c", script], tmp_path)
    assert "may open 256 files" in done.stdout
    assert "limits.conf" in done.stdout
    assert "ulimit -n" not in done.stdout


def test_doctor_survives_a_nonsense_driver(tmp_path: Path) -> None:
    done = call([*MODULE, "doctor"], tmp_path, {"RINGLOOP_DRIVER": "nonsense"})
    assert done.returncode == 1
    assert "RINGLOOP_DRIVER must be one of auto, uring, epoll" in done.stdout
    assert "Traceback" not in done.stderr
