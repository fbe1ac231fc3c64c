"""A pytest plugin that gives a suite, which knows nothing of it, the loop under test.

RINGLOOP_DOWNSTREAM_LOOP is "uring", "epoll" or "asyncio" (nothing changes). Loops come from
the event loop policy, or from asyncio.SelectorEventLoop where a suite names that. How many
were made is written to the file RINGLOOP_DOWNSTREAM_COUNT: none means that nothing was tested.
RINGLOOP_DOWNSTREAM_REPLACE names a package that is replaced by ringloop.compat's of that name.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import pkgutil
import sys
from pathlib import Path
from typing import Any

KIND = os.environ["RINGLOOP_DOWNSTREAM_LOOP"]
REPLACE = os.environ.get("RINGLOOP_DOWNSTREAM_REPLACE")
made = 0


def count(cls: Any) -> None:
    plain = cls.__init__

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        global made  # noqa: PLW0603
        made += 1
        plain(self, *args, **kwargs)

    cls.__init__ = __init__


if KIND == "asyncio":
    count(asyncio.SelectorEventLoop)
else:
    os.environ["RINGLOOP_DRIVER"] = KIND
    import ringloop

    count(ringloop.EventLoop)
    ringloop.install()
    asyncio.SelectorEventLoop = ringloop.EventLoop  # type: ignore[assignment]


def replace(name: str) -> None:
    """Make `import name` find ringloop.compat's package, and so for what is in it."""
    ours = importlib.import_module(f"ringloop.compat.{name}")
    for found in pkgutil.walk_packages(ours.__path__, f"{ours.__name__}."):
        importlib.import_module(found.name)
    for module in [
        m for m in sys.modules if m == ours.__name__ or m.startswith(ours.__name__ + ".")
    ]:
        sys.modules[module.removeprefix("ringloop.compat.")] = sys.modules[module]


if REPLACE:
    replace(REPLACE)


def pytest_unconfigure() -> None:
    with Path(os.environ["RINGLOOP_DOWNSTREAM_COUNT"]).open("a") as file:
        file.write(f"{made}\n")
