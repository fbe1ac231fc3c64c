"""Builds the C programs of the benchmark at first use, into the user's cache."""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

FLAGS = ["-O2", "-std=gnu11", "-Wall", "-Wextra"]
PROGRAMS = ["load", "echo_epoll", "echo_udp", "echo_uring", "files_uring", "files_in_order"]


class CompilerError(Exception):
    """The C programs cannot be built; the message says what to do."""


def _sources() -> dict[str, bytes]:
    folder = Path(__file__).with_name("csrc")
    return {path.name: path.read_bytes() for path in sorted(folder.glob("*.[ch]"))}


def _cache_folder(key: str) -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "ringloop" / "bench" / f"{platform.machine()}-{key[:16]}"


def command() -> list[str]:
    return shlex.split(os.environ.get("CC", "cc"))


def version() -> str | None:
    """The compiler's own first line about itself; None if there is no compiler."""
    try:
        return subprocess.check_output([*command(), "--version"], text=True).partition("\n")[0]
    except (OSError, subprocess.CalledProcessError):
        return None


def build() -> dict[str, Path]:
    """The programs by name, compiled if this version of them is not yet in the cache."""
    compiler = command()
    if shutil.which(compiler[0]) is None:
        raise CompilerError(
            f"no C compiler ({compiler[0]}): install one (Debian: apt install gcc libc6-dev)"
        )
    sources = _sources()
    key = hashlib.sha256(repr((compiler, FLAGS, sources)).encode()).hexdigest()
    folder = _cache_folder(key)
    if folder.is_dir():
        return {name: folder / name for name in PROGRAMS}
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as name:
            scratch = Path(name)
            for source, content in sources.items():
                (scratch / source).write_bytes(content)
            (finished := scratch / "finished").mkdir()
            for program in PROGRAMS:
                _compile(compiler, scratch / f"{program}.c", finished / program)
            try:
                finished.rename(folder)  # whole or not at all
            except OSError:
                if not folder.is_dir():  # else another process was faster
                    raise
    except OSError as error:
        raise CompilerError(
            f"cannot write to {folder.parent} ({error.strerror}): "
            "set XDG_CACHE_HOME to a folder that can be written"
        ) from error
    return {name: folder / name for name in PROGRAMS}


def _compile(compiler: list[str], source: Path, program: Path) -> None:
    result = subprocess.run(
        [*compiler, *FLAGS, "-o", str(program), str(source), "-ldl"],
        capture_output=True,
        text=True,
        check=False,
    )
    if result.returncode:
        raise CompilerError(f"{shlex.join(compiler)} cannot build {source.name}: {result.stderr}")
