"""Worker classes for gunicorn, where that is not installed; the rest is in tests/services."""

from __future__ import annotations

import subprocess
import sys
import types
from typing import Any

import pytest

from ringloop import workers


@pytest.mark.parametrize(
    ("worker", "packages"),
    [("UvicornWorker", "gunicorn 'uvicorn-worker>=0.4'"), ("AiohttpWorker", "gunicorn aiohttp")],
)
def test_what_is_missing_is_named(worker: str, packages: str) -> None:
    code = (
        "import sys\n"
        "sys.modules.update(dict.fromkeys(['gunicorn', 'uvicorn_worker', 'aiohttp']))\n"
        f"from ringloop.workers import {worker}"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"pip install {packages}" in done.stderr.splitlines()[-1]


def test_a_uvicorn_worker_that_takes_no_loop_factory_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class UvicornWorker:
        config: Any

        def init_process(self) -> None:
            self.config.setup_event_loop()

    module: Any = types.ModuleType("uvicorn_worker")
    module.UvicornWorker = UvicornWorker
    monkeypatch.setitem(sys.modules, "uvicorn_worker", module)
    monkeypatch.delitem(vars(workers), "UvicornWorker", raising=False)
    with pytest.raises(ImportError, match=r"older than 0\.4.*uvicorn-worker>=0\.4"):
        workers.UvicornWorker  # noqa: B018


def test_other_names_are_not_there() -> None:
    with pytest.raises(AttributeError, match="NoWorker"):
        workers.NoWorker  # noqa: B018
