"""Worker classes for gunicorn, whose processes each serve on a ringloop of their own.

    gunicorn app:app --worker-class ringloop.workers.UvicornWorker    # an ASGI application
    gunicorn app:app --worker-class ringloop.workers.AiohttpWorker    # an aiohttp.web one

Each is made when it is asked for, on top of the worker class of Uvicorn or aiohttp: that
must be installed, the other need not be. Of uvicorn-worker it takes 0.4 or newer.
"""

from __future__ import annotations

import importlib
from typing import Any

import ringloop


def _uvicorn_worker() -> type:
    base: Any = importlib.import_module("uvicorn_worker").UvicornWorker
    if "setup_event_loop" in base.init_process.__code__.co_names:
        raise ImportError("uvicorn-worker is older than 0.4, and asks for no loop factory")
    options = base.CONFIG_KWARGS | {"loop": "ringloop:new_event_loop"}
    return type("UvicornWorker", (base,), {"CONFIG_KWARGS": options, "__module__": __name__})


def _aiohttp_worker() -> type:
    base: Any = importlib.import_module("aiohttp.worker").GunicornWebWorker

    def init_process(self: Any) -> None:
        ringloop.install()  # it asks asyncio for its loop, and for nothing else
        base.init_process(self)

    members = {"init_process": init_process, "__module__": __name__}
    return type("AiohttpWorker", (base,), members)


_MAKERS = {
    "UvicornWorker": (_uvicorn_worker, "gunicorn 'uvicorn-worker>=0.4'"),
    "AiohttpWorker": (_aiohttp_worker, "gunicorn aiohttp"),
}


def __getattr__(name: str) -> Any:
    """The worker class of that name. Raises ImportError if what it needs is missing."""
    if name not in _MAKERS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    make, packages = _MAKERS[name]
    try:
        worker = make()
    except ImportError as error:
        raise ImportError(
            f"{__name__}.{name} needs what is not there ({error}): pip install {packages}"
        ) from error
    globals()[name] = worker
    return worker
