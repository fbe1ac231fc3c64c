"""Say what this machine lacks to build ringloop, and how to get it; silent if nothing.

Runs before there is a virtual environment, so with the standard library only.
"""

from __future__ import annotations

import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

PYTHON = "python{}.{}".format(*sys.version_info[:2])


def lacking() -> Iterator[str]:
    """What is missing, a sentence each."""
    if importlib.util.find_spec("ensurepip") is None:
        yield (
            f"{sys.executable} cannot make virtual environments (no ensurepip); "
            f"on Debian and Ubuntu: apt install {PYTHON}-venv"
        )
    named = os.environ.get("CC")
    candidates = [named] if named else ["cc", "gcc", "clang"]
    compilers = [name for name in candidates if shutil.which(shlex.split(name)[0])]
    if not compilers:
        yield (
            f"there is no C compiler ({', '.join(candidates)}); "
            "on Debian and Ubuntu: apt install gcc libc6-dev"
        )
        return
    include = f"-I{sysconfig.get_path('include')}"
    trial = subprocess.run(
        [*shlex.split(compilers[0]), include, "-fsyntax-only", "-xc", "-"],
        input="#include <Python.h>\n",
        capture_output=True,
        text=True,
        check=False,
    )
    if trial.returncode:
        yield (
            f"{compilers[0]} cannot compile for {sys.executable}; "
            f"on Debian and Ubuntu: apt install {PYTHON}-dev libc6-dev\n{trial.stderr.rstrip()}"
        )


if __name__ == "__main__":
    found = list(lacking())
    for sentence in found:
        print(f"ringloop cannot be built: {sentence}", file=sys.stderr)
    sys.exit(1 if found else 0)
