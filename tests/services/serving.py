"""Servers of web applications, started as docs/integrations.md says."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING

from services.ports import free_port

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

DOCS = Path(__file__).parents[2] / "docs"
SITES = Path(__file__).parent / "sites"
START_S = 60
END_S = 30

# What each server needs to be installed.
SERVERS = {
    "Uvicorn": ["uvicorn", "websockets"],
    "Gunicorn": ["gunicorn", "uvicorn_worker", "websockets"],
    "Hypercorn": ["hypercorn"],
    "Daphne": ["daphne"],
    "Granian": ["granian"],
    "aiohttp": ["aiohttp"],
    "Sanic": ["sanic"],
}


def examples(page: str, heading: str) -> list[tuple[str, str]]:
    """The language and text of each block under a heading of a page."""
    text = (DOCS / page).read_text()
    section = re.split(r"^##+ ", text.split(f"### {heading}\n", 1)[1], maxsplit=1, flags=re.M)[0]
    blocks = re.findall(r"```(\w+)\n(.*?)```", section, flags=re.S)
    assert blocks, heading
    return blocks


def environment(driver: str, **more: str) -> dict[str, str]:
    """Of a child that runs on that driver and finds the programs of this environment."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return os.environ | {"RINGLOOP_DRIVER": driver, "PATH": path} | more


class Serving:
    """A server in a process of its own, in `folder`; a context manager.

    `site` is a module of `sites` that its application `app` comes from, or None if the
    example has its own. `edit` changes the example's text, `arguments` are more of the
    command's.
    """

    def __init__(
        self,
        server: str,
        site: str | None,
        driver: str,
        folder: Path,
        *,
        page: str = "integrations.md",
        edit: Callable[[str], str] = str,
        arguments: tuple[str, ...] = (),
    ) -> None:
        self.folder = folder
        self.port = free_port()
        if site is not None:
            (folder / "app.py").write_text(f"from {site} import app\n")
        ((language, text),) = examples(page, server)
        text = edit(text.replace("8000", str(self.port)))
        if language == "sh":
            self.command = [*shlex.split(text), *arguments]
        else:
            (folder / "serve.py").write_text(text)
            self.command = [sys.executable, "serve.py", *arguments]
        paths = os.pathsep.join([str(folder), str(SITES)])
        self.environment = environment(driver, PYTHONPATH=paths, PYTHONFAULTHANDLER="1")
        self.log = folder / "log"

    def __enter__(self) -> Serving:
        with self.log.open("wb") as log:
            self.child = subprocess.Popen(
                self.command,
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return self

    def __exit__(self, *exc: object) -> None:
        if self.child.poll() is None:
            os.killpg(self.child.pid, signal.SIGKILL)
        self.child.wait()

    def said(self) -> str:
        return f"the server said:\n{self.log.read_text()[-3000:]}"

    def get(self, path: str = "/") -> tuple[str, Mapping[str, str]]:
        """What it answers, once it is up, and the headers of that."""
        url = f"http://127.0.0.1:{self.port}{path}"
        deadline = time.monotonic() + START_S
        while True:
            try:
                with urllib.request.urlopen(url, timeout=START_S) as response:
                    return response.read().decode(), response.headers
            except OSError as error:
                assert self.child.poll() is None, f"it ended; {self.said()}"
                assert time.monotonic() < deadline, f"no answer ({error}); {self.said()}"
                time.sleep(0.05)

    def status(self, path: str) -> int | None:
        """That of an answer, None if there was none."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=START_S):
                return 200
        except urllib.error.HTTPError as error:
            error.close()
            return error.code
        except OSError:  # a process that ends closes what it was not asked on yet
            return None

    def terminate(self) -> int:
        """SIGTERM; the exit status. Where it does not end, its stacks."""
        self.child.send_signal(signal.SIGTERM)
        try:
            return self.child.wait(END_S)
        except subprocess.TimeoutExpired:
            self.child.send_signal(signal.SIGABRT)  # of the fault handler
            self.child.wait()
            raise AssertionError(f"it did not end; {self.said()}") from None
