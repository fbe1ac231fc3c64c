"""The package as users get it: what is installed, and that it works from there.

CI runs this against the wheel in an environment of its own (tools/test-wheel).
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import pkgutil
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import ringloop
from requirement import missing

PACKAGE = Path(ringloop.__file__).parent
ECHO = """
import asyncio, ringloop

async def answer(reader, writer):
    writer.write(await reader.readline())
    writer.close()

async def main():
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    writer.write(b"hello\\n")
    line = await reader.readline()
    writer.close()
    server.close()
    print(asyncio.get_running_loop()._driver_name, line.decode().strip())

if __name__ == "__main__":
    asyncio.run(main())
"""


def spec_of(name: str) -> importlib.machinery.ModuleSpec:
    spec = importlib.util.find_spec(name)
    assert spec is not None, name
    return spec


def modules() -> list[str]:
    return [m.name for m in pkgutil.walk_packages([str(PACKAGE)], "ringloop.")]


def compiled() -> list[str]:
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    return [name for name in modules() if str(spec_of(name).origin).endswith(suffix)]


def run(*command: str, cwd: Path) -> str:
    """What a command prints, away from the sources; it must succeed and not complain."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (0, ""), done
    return done.stdout


def test_everything_comes_from_site_packages() -> None:
    origin = importlib.metadata.distribution("ringloop").read_text("direct_url.json") or "{}"
    if json.loads(origin).get("dir_info", {}).get("editable"):
        pytest.skip("this is an editable install, which imports from the sources")
    site = Path(sysconfig.get_path("platlib")).resolve()
    for name in ["ringloop", *modules()]:
        assert Path(str(spec_of(name).origin)).resolve().is_relative_to(site), name


def test_the_compiled_modules_are_all_there() -> None:
    assert {name.split(".")[1] for name in compiled()} == {
        "_core",
        "_driver",
        "_net",
        "_os",
        "_tls",
        "fs",
        "streams",
        "testing",
    }


def test_type_checkers_find_a_stub_for_each_compiled_module() -> None:
    assert (PACKAGE / "py.typed").exists()
    for name in compiled():
        assert PACKAGE.joinpath(*name.split(".")[1:]).with_suffix(".pyi").exists(), name


def test_the_compiled_modules_load_wherever_a_wheel_may() -> None:
    """A wheel is for glibc 2.28 and newer (tools/build-wheel), and building one takes minutes.

    What to avoid is easily missed: `fstat`, for one, is a symbol of glibc 2.33.
    """
    if shutil.which("objdump") is None:
        missing("objdump is not installed (package binutils)")
    found = set()
    for name in compiled():
        symbols = subprocess.run(
            ["objdump", "-T", str(spec_of(name).origin)], capture_output=True, text=True, check=True
        )
        for release, symbol in re.findall(r"\bGLIBC_2\.(\d+)\S*\s+(\w+)", symbols.stdout):
            found.add((int(release), symbol, name))
    assert found
    assert [wanted for wanted in sorted(found) if wanted[0] > 28] == []


def test_the_version_is_the_metadatas() -> None:
    assert importlib.metadata.version("ringloop") == ringloop.__version__


def test_it_needs_no_other_package() -> None:
    required = importlib.metadata.requires("ringloop") or []
    assert [name for name in required if "extra ==" not in name] == []


def test_the_console_script_runs_a_program(tmp_path: Path, driver: str) -> None:
    script = Path(sysconfig.get_path("scripts")) / "ringloop"
    assert run(str(script), "--version", cwd=tmp_path) == f"ringloop {ringloop.__version__}\n"
    program = tmp_path / "echo.py"
    program.write_text(ECHO)
    environment = f"RINGLOOP_DRIVER={driver}"
    said = run("env", environment, str(script), "run", str(program), cwd=tmp_path)
    assert said == f"{driver} hello\n"


def test_ringloop_run_works_in_an_isolated_interpreter(tmp_path: Path, driver: str) -> None:
    program = f"{ECHO.partition('if __name__')[0]}\nringloop.run(main(), driver={driver!r})"
    assert run(sys.executable, "-I", "-c", program, cwd=tmp_path) == f"{driver} hello\n"


def test_packages_are_imported_when_they_are_first_used() -> None:
    code = """
import sys, ringloop
print("ringloop.fs" in sys.modules, "fs" in dir(ringloop), ringloop.fs.open.__name__)
try:
    ringloop.nonsense
except AttributeError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.stdout.splitlines() == [
        "False True open",
        "module 'ringloop' has no attribute 'nonsense'",
    ], done.stderr
