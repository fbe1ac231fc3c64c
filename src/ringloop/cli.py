"""The command line: `python -m ringloop`, and the console script `ringloop`."""

from __future__ import annotations

import argparse
import builtins
import importlib.util
import io
import pkgutil
import runpy
import sys
import types
from importlib.machinery import PathFinder
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ringloop
from ringloop import bench
from ringloop.streams import default as default_streams

if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec

EPILOG = """\
environment:
  RINGLOOP_DRIVER   auto (default): io_uring where it works, else epoll; uring; epoll
  RINGLOOP_STREAMS  ringloop (default): `run` makes asyncio's streams ringloop's; stdlib
  RINGLOOP_TLS      auto (default): call libssl directly where that works; direct; memory
  RINGLOOP_RESOLVER_THREADS  how many threads of a loop look up names at most (16)

examples:
  ringloop run app.py --port 8080    run a program unchanged on ringloop
  ringloop run -m mypackage.server   the same for a module
  ringloop doctor                    what this machine can do, and what would help
"""


def _add_run(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = commands.add_parser(
        "run",
        usage="ringloop run [-m MODULE | SCRIPT] [ARGS ...]",
        help="run a program unchanged, with its new event loops ringloops",
        description="Run a script or module as `python` would, with its new event loops "
        "ringloops: of asyncio.run(), asyncio.new_event_loop() and asyncio.Runner(), and of "
        "uvicorn where no --loop is given. What it does not change: a loop that the program "
        "makes by its class (uvloop, asyncio.SelectorEventLoop) or by a loop factory, and new "
        "Python processes (uvicorn --workers or --reload, hypercorn, multiprocessing's spawn).",
    )
    parser.add_argument("-m", dest="module", action="store_true", help="TARGET is a module")
    parser.add_argument("target", metavar="TARGET", help="a script, or with -m a module")


def _split(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Our own arguments, and those of the program that `run` starts, untouched."""
    if argv[:1] == ["run"]:
        for i, arg in enumerate(argv[1:], start=1):
            if arg.startswith("-m") and arg != "-m":
                return ["run", "-m", arg[2:]], list(argv[i + 1 :])
            if not arg.startswith("-") or arg == "-":
                return list(argv[: i + 1]), list(argv[i + 1 :])
    return list(argv), []


def _why_no_module(name: str) -> str | None:
    """Why `run -m` cannot start this module, in one sentence; None if it can be found."""
    try:
        spec = importlib.util.find_spec(name)
        if spec is None:
            return f"No module named {name!r}"
        if spec.submodule_search_locations is not None and not importlib.util.find_spec(
            f"{name}.__main__"
        ):
            return f"{name!r} is a package without __main__.py"
    except ModuleNotFoundError as error:
        if name.endswith(".py") and error.name == name:
            return f"No module named {name!r}; a script is run without -m"
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            return str(error)
        # Else its package misses something, and the traceback tells where.
    return None


class _UvicornsChoice:
    """Finds the module by which uvicorn chooses a loop where it was told none.

    uvicorn asks no policy, but takes uvloop if that is installed, else a class of asyncio's.
    """

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != "uvicorn.loops.auto":
            return None
        spec = PathFinder.find_spec(name, path, target)
        loader: Any = spec and spec.loader
        if loader is not None:
            execute = loader.exec_module

            def exec_module(module: Any) -> None:
                execute(module)
                module.auto_loop_factory = lambda use_subprocess=False: ringloop.new_event_loop

            loader.exec_module = exec_module
        return spec


def _run(target: str, is_module: bool, args: list[str]) -> int:
    ringloop.install()
    sys.meta_path.insert(0, _UvicornsChoice)
    if default_streams.wanted():
        # For good: the process is the program's, and every loop in it.
        ringloop.EventLoop._own_streams_by_default = True
        default_streams.install()
    sys.argv = [target, *args]
    # The program has a main module of its own; for its __builtins__ exec() would put a dict.
    program = types.ModuleType("__main__")
    program.__dict__["__builtins__"] = builtins
    if is_module:
        if not sys.flags.safe_path:
            sys.path[0] = str(Path.cwd())
        if reason := _why_no_module(target):
            print(f"ringloop run: {reason}", file=sys.stderr)
            return 2
        sys.modules["__main__"] = program
        runpy._run_module_as_main(target)  # type: ignore[attr-defined]
        return 0
    script = Path(target)
    if not script.exists():
        print(f"ringloop run: there is no file {target!r}", file=sys.stderr)
        return 2
    sys.modules["__main__"] = program
    path = str(script.absolute())
    if pkgutil.get_importer(path) is not None:
        # A folder or an archive. As the interpreter itself does: its __main__.py, by a name
        # that argv keeps.
        if not sys.flags.safe_path:
            sys.path[0] = path
        else:
            sys.path.insert(0, path)
        runpy._run_module_as_main("__main__", alter_argv=False)  # type: ignore[attr-defined]
        return 0
    if not sys.flags.safe_path:
        sys.path[0] = str(script.resolve().parent)
    # Not runpy.run_path(), which has argv[0] and __file__ the same: the interpreter
    # leaves argv[0] as it was typed and makes __file__ absolute.
    program.__file__ = path
    with io.open_code(path) as file:
        # This module's own `from __future__` is not the program's.
        code = compile(file.read(), path, "exec", dont_inherit=True)
    exec(code, program.__dict__)
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status."""
    parser = argparse.ArgumentParser(
        prog="ringloop",
        description="asyncio on io_uring.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"ringloop {ringloop.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_run(commands)
    commands.add_parser(
        "doctor",
        help="explain what this machine can do and what would make it faster",
        description="Explain in words which driver ringloop uses here, why, and what "
        "would make it faster. Exit status 0 with io_uring, 1 without.",
    )
    bench.add_arguments(
        commands.add_parser("bench", help="measure ringloop beside its peers on this machine")
    )
    ours, theirs = _split(sys.argv[1:] if argv is None else argv)
    args = parser.parse_args(ours)
    if args.command == "run":
        return _run(args.target, args.module, theirs)
    if args.command == "doctor":
        from ringloop import doctor  # noqa: PLC0415 - `run` shall start without it

        return doctor.main()
    return bench.main(args)


if __name__ == "__main__":
    sys.exit(main())
