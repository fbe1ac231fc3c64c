"""ringloop: asyncio on io_uring, with an epoll driver where io_uring is not to be had.

    import ringloop
    ringloop.run(main())

`EventLoop` is the loop itself; the rest is ways to come to it. The packages `ringloop.fs`,
`ringloop.streams`, `ringloop.offload` and `ringloop.debug` are imported when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from ringloop._version import __version__
from ringloop.loop import EventLoop, backend_info, new_event_loop
from ringloop.runner import install, run

if TYPE_CHECKING:
    from types import ModuleType

_PACKAGES = ("debug", "fs", "offload", "streams")

__all__ = [
    "EventLoop",
    "__version__",
    "backend_info",
    "install",
    "new_event_loop",
    "run",
]


def __getattr__(name: str) -> "ModuleType":
    # `import ringloop` is all that a program needs, and the loop alone starts faster.
    if name in _PACKAGES:
        return import_module(f"ringloop.{name}")
    raise AttributeError(f"module 'ringloop' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_PACKAGES})
