"""The examples of docs/tools.md, each run as it stands there but for its ports."""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest

from requirement import missing
from services.debugger import Debugger
from services.ports import free_port
from services.serving import DOCS, Serving, environment, examples

if TYPE_CHECKING:
    from pathlib import Path

    import ringloop

START_S = 60
# A coroutine that tells whose loop it runs on, in a module of its own.
ON = """
import asyncio

async def on():
    await asyncio.sleep(0.01)
    return type(asyncio.get_running_loop()).__module__
"""
USE_ON = "from told import on\nawait on()\n"

# What the libraries themselves warn about is theirs.
pytestmark = [pytest.mark.filterwarnings("ignore")]


def needs(*modules: str) -> None:
    for module in modules:
        if importlib.util.find_spec(module) is None:
            missing(f"{module} is not installed: make test-services does that")


def example(heading: str) -> list[str]:
    return [text for _, text in examples("tools.md", heading)]


def ran(command: list[str], driver: str, folder: Path, stdin: str = "") -> str:
    """What it printed; it must end well and say nothing of trouble."""
    (folder / "told.py").write_text(ON)
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment(driver, IPYTHONDIR=str(folder), PYTHONPATH=str(folder)),
        input=stdin,
        capture_output=True,
        text=True,
        timeout=START_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for trouble in ("Traceback", "Exception ignored", "was never retrieved"):
        assert trouble not in done.stderr, done.stderr
    return done.stdout


# -- tests ---------------------------------------------------------------------------


def run_tests(folder: Path, driver: str, mark: str) -> None:
    (folder / "test_it.py").write_text(
        "import asyncio, pytest, ringloop\n"
        f"@pytest.mark.{mark}\n"
        "async def test_it():\n"
        "    await asyncio.sleep(0.01)\n"
        "    assert isinstance(asyncio.get_running_loop(), ringloop.EventLoop)\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(folder)]
    assert "1 passed" in ran(command, driver, folder)


def test_pytest_asyncio(driver: str, tmp_path: Path) -> None:
    needs("pytest_asyncio")
    (conftest,) = example("pytest-asyncio")
    (tmp_path / "conftest.py").write_text(conftest)
    run_tests(tmp_path, driver, "asyncio")


def test_anyio(driver: str, tmp_path: Path) -> None:
    needs("anyio")
    program, conftest = example("AnyIO")
    main = f"{ON}\nasync def main():\n    print(await on())\n"
    assert ran([sys.executable, "-c", main + program], driver, tmp_path) == "ringloop.loop\n"
    (tmp_path / "conftest.py").write_text(conftest)
    run_tests(tmp_path, driver, "anyio")


# -- consoles and notebooks ----------------------------------------------------------


def test_pythons_own_console(driver: str, tmp_path: Path) -> None:
    (command,) = example("Python's own")
    said = ran(shlex.split(command), driver, tmp_path, USE_ON)
    assert "'ringloop.loop'" in said


def test_ipython(driver: str, tmp_path: Path) -> None:
    needs("IPython")
    (command,) = example("IPython")
    plain = ["--simple-prompt", "--no-banner", "--no-confirm-exit"]
    said = ran([*shlex.split(command), *plain], driver, tmp_path, USE_ON)
    assert "Out[2]: 'ringloop.loop'" in said
    cells = f"import ringloop; ringloop.install()\n{USE_ON}"
    said = ran(["ipython", *plain], driver, tmp_path, cells)
    assert "Out[3]: 'ringloop.loop'" in said


def test_jupyter(driver: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs("jupyter_client", "ipykernel")
    folder = tmp_path / "kernels" / "ringloop"
    folder.mkdir(parents=True)
    (spec,) = example("Jupyter")
    (folder / "kernel.json").write_text(spec)
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    start: Any = importlib.import_module("jupyter_client.manager").start_new_kernel
    started = environment(driver)
    manager, client = start(kernel_name="ringloop", startup_timeout=START_S, env=started)
    try:

        def cell(text: str) -> str:
            """What it shows, or the name of its exception."""
            shown: list[str] = []

            def output(message: dict[str, Any]) -> None:
                data = message["content"].get("data", {})
                shown.extend([data["text/plain"]] if "text/plain" in data else [])

            reply = client.execute_interactive(text, timeout=START_S, output_hook=output)
            return str(reply["content"].get("ename") or "".join(shown))

        assert cell(f"{ON}\nawait on()") == "'ringloop.loop'"
        assert cell("import ringloop; ringloop.run(on())") == "RuntimeError"
        echo = "await asyncio.create_subprocess_exec('echo', 'hello', stdout=-1)"
        assert cell(f"(await ({echo}).communicate())[0]") == "b'hello\\n'"
        assert cell("await asyncio.gather(*(asyncio.to_thread(abs, -n) for n in range(3)))") == (
            "[0, 1, 2]"
        )
    finally:
        client.stop_channels()
        manager.shutdown_kernel()


# -- debugging and monitoring --------------------------------------------------------


PROGRAM = """
import asyncio
import ringloop

async def work(number):
    await asyncio.sleep(0.01)
    return number * 2  # line 7

async def main():
    loop = asyncio.get_running_loop()
    print(await asyncio.gather(work(1), work(2)), type(loop).__module__)

{start}
"""


@pytest.mark.parametrize("start", ["ringloop.run(main())", "asyncio.run(main())"])
def test_debugpy(driver: str, start: str, tmp_path: Path) -> None:
    needs("debugpy")
    port = free_port()
    (command,) = example("debugpy")
    command = command.replace("5678", str(port))
    if start.startswith("asyncio"):
        command = command.replace("program.py", "-m ringloop run program.py")
    program = tmp_path / "program.py"
    program.write_text(PROGRAM.format(start=start))
    with subprocess.Popen(
        shlex.split(command),
        cwd=tmp_path,
        env=environment(driver, PYDEVD_DISABLE_FILE_VALIDATION="1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as child:
        try:
            with Debugger(port, START_S) as debugger:
                debugger.start(str(program), 7)
                for expected in ("1", "2"):
                    assert debugger.stopped() == 7
                    assert debugger.evaluate("number") == expected
                    assert debugger.evaluate("asyncio.get_running_loop().is_running()") == "True"
                    debugger.go_on()
                debugger.ended()
            said, _ = child.communicate(timeout=START_S)
        finally:
            child.kill()
    assert "[2, 4] ringloop.loop" in said, said


def test_aiomonitor(driver: str, tmp_path: Path) -> None:
    needs("aiomonitor")
    (text,) = example("aiomonitor")
    names = ("port", "webui_port", "console_port")
    free: set[int] = set()
    while len(free) < len(names):
        free.add(free_port())
    ports = dict(zip(names, free, strict=True))
    given = ", ".join(f"{name}={port}" for name, port in ports.items())
    text = text.replace("get_running_loop())", f"get_running_loop(), {given})")
    (tmp_path / "program.py").write_text(text)
    with subprocess.Popen(
        [sys.executable, "program.py"], cwd=tmp_path, env=environment(driver)
    ) as child:
        try:
            url = f"http://127.0.0.1:{ports['webui_port']}/api/live-tasks"
            deadline = time.monotonic() + START_S
            while True:
                try:
                    with urllib.request.urlopen(url, data=b"", timeout=START_S) as response:
                        tasks = json.loads(response.read())["tasks"]
                    break
                except OSError:
                    assert child.poll() is None
                    assert time.monotonic() < deadline
                    time.sleep(0.05)
            assert "main()" in [task["coro"] for task in tasks]
        finally:
            child.kill()


def test_opentelemetry(driver: str, tmp_path: Path) -> None:
    needs("opentelemetry.sdk", "opentelemetry.instrumentation.asyncio")
    (text,) = example("OpenTelemetry")
    before = """
import asyncio, os
os.environ["OTEL_PYTHON_ASYNCIO_COROUTINE_NAMES_TO_TRACE"] = "work"
os.environ["OTEL_PYTHON_ASYNCIO_TO_THREAD_FUNCTION_NAMES_TO_TRACE"] = "think"
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
exporter = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)

async def work():
    await asyncio.sleep(0.001)

def think():
    pass

async def main():
    with trace.get_tracer("test").start_as_current_span("all"):
        await asyncio.gather(work(), work())
        await asyncio.to_thread(think)
        async with asyncio.TaskGroup() as group:
            group.create_task(work())
"""
    after = """
spans = exporter.get_finished_spans()
(whole,) = [span for span in spans if span.name == "all"]
of_it = [s.name for s in spans if s.parent and s.parent.span_id == whole.context.span_id]
print(sorted(of_it))
"""
    said = ran([sys.executable, "-c", before + text + after], driver, tmp_path)
    work, think = "'asyncio coro-work'", "'asyncio to_thread-think'"
    assert said == f"[{work}, {work}, {work}, {think}]\n"


def test_uvicorn_reloads(driver: str, tmp_path: Path) -> None:
    needs("uvicorn", "starlette", "fastapi")
    reload = Serving("Uvicorn's reload", "starlette_site", driver, tmp_path, page="tools.md")
    with reload as serving:
        assert serving.get("/state")[0] == "0 listen, 0 wait"
        (tmp_path / "app.py").write_text("from fastapi_site import app\n")
        deadline = time.monotonic() + START_S
        later = time.time()
        while serving.status("/state") != 404:
            # The first look at the files may come after the change: a change since then.
            later += 10
            os.utime(tmp_path / "app.py", (later, later))
            assert time.monotonic() < deadline, serving.said()
            time.sleep(1)
        loop = serving.get("/hello")[1]["x-loop"]
        assert "EventLoop running=True" in loop
        assert "_Unix" not in loop
        assert serving.terminate() in (0, -signal.SIGTERM), serving.said()


# -- processes -----------------------------------------------------------------------


def test_process_pool_of_the_example(driver: str, tmp_path: Path) -> None:
    (text,) = example("multiprocessing")
    (tmp_path / "program.py").write_text(text)
    assert ran([sys.executable, "program.py"], driver, tmp_path) == "[0, 1, 4, 9]\n"


IN_THE_CHILD = """
def square(number):  # on a loop of the child's own
    async def main():
        await asyncio.sleep(0.01)
        return number * number

    try:
        LOOP.call_soon(print)
    except NameError:
        pass  # it was not inherited
    except RuntimeError as error:
        assert "create a new one in the child" in str(error), error
    else:
        raise AssertionError("the parent's loop was used")
    return ringloop.run(main())
"""


@pytest.mark.parametrize("method", ["spawn", "forkserver", "fork"])
def test_process_pool(driver: str, method: str, tmp_path: Path) -> None:
    (text,) = example("multiprocessing")
    before, body, after = re.split(r"(def square.*?\n\n\n)", text, flags=re.S)
    assert body
    text = f"{before}{IN_THE_CHILD}\n{after}".replace("forkserver", method)
    text = text.replace("    loop = ", "    global LOOP\n    LOOP = loop = ")
    (tmp_path / "program.py").write_text(text)
    assert ran([sys.executable, "program.py"], driver, tmp_path) == "[0, 1, 4, 9]\n"


def test_what_the_page_says_of_fork(loop: ringloop.EventLoop) -> None:
    receiving, sending = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            loop.call_soon(print)
        except RuntimeError as error:
            os.write(sending, str(error).encode())
        os._exit(0)
    os.close(sending)
    with os.fdopen(receiving) as told:
        text = told.read()
    assert os.waitpid(pid, 0)[1] == 0
    assert text
    assert f'RuntimeError ("{text}")' in (DOCS / "tools.md").read_text()
