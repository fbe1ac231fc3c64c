"""Calls in other interpreters of this process, each with a GIL of its own."""

from __future__ import annotations

import os
import socket
import sys
import threading
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar, TypeVarTuple

from ringloop._extras import how_to_install
from ringloop.offload import _worker
from ringloop.offload._channel import Channel
from ringloop.offload._kept import of_loop
from ringloop.offload._pool import Pool, Worker, introduce
from ringloop.offload._processes import cpus

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

# ringloop itself cannot be imported there. What stands in for it has what the work may ask,
# so that modules which import ringloop for that, or for their own main program, can be.
CODE = """\
import importlib.util, sys, types
sys.path[:] = {path!r}
spec = importlib.util.spec_from_file_location("ringloop.offload", {file!r})
worker = importlib.util.module_from_spec(spec)
standin = sys.modules["ringloop"] = types.ModuleType("ringloop")
standin.__path__ = []
standin.offload = sys.modules["ringloop.offload"] = worker
spec.loader.exec_module(worker)
worker.serve({fd})
"""


def _interpreters() -> Any:
    """The module `concurrent.interpreters`, or its backport."""
    if sys.version_info < (3, 12):
        raise RuntimeError(
            "to_interpreter() needs Python 3.14, or 3.12 and a backport: before, all interpreters "
            "of a process share one GIL. Use to_process()"
        )
    for name in ("concurrent.interpreters", "backports.interpreters"):
        try:
            return import_module(name)
        except ImportError:
            pass
    raise RuntimeError(
        "to_interpreter() needs Python 3.14, or a backport of its concurrent.interpreters: "
        f"{how_to_install('interpreters')}. Or use to_process()"
    )


class InterpreterWorker(Worker):
    def __init__(self, channel: Channel, theirs: socket.socket) -> None:
        self.channel = channel
        self.ended = channel.loop.create_future()
        self.module = _interpreters()
        fd = theirs.detach()
        threading.Thread(target=self._run, args=(fd,), name="ringloop-offload", daemon=True).start()

    def _run(self, fd: int) -> None:
        how = "ended"
        try:
            interpreter = self.module.create()
            try:
                interpreter.exec(CODE.format(path=sys.path, file=_worker.__file__, fd=fd))
            finally:
                interpreter.close()
        except Exception as error:
            how = f"failed: {error}"
        os.close(fd)
        try:
            self.channel.loop.call_soon_threadsafe(self.ended.set_result, how)
        except RuntimeError:
            pass  # the loop was closed meanwhile: nobody waits

    def stop(self) -> None:
        self.channel.cancel()

    def kill(self) -> None:
        self.killed = True
        self.channel.hang_up()


async def _start_worker() -> InterpreterWorker:
    ours, theirs = socket.socketpair()
    return await introduce(InterpreterWorker(Channel(), theirs), ours, "")


def _pool_of_loop() -> Pool:
    return Pool(cpus(), "another interpreter", _start_worker)


async def to_interpreter(
    function: Callable[[*Ts], T],
    /,
    *args: *Ts,
    limiter: asyncio.Semaphore | None = None,
    progress: Callable[[Any], object] | None = None,
) -> T:
    """Call `function(*args)` in another interpreter, kept for the next call.

    Needs Python 3.14, or 3.12 and newer with ringloop's extra "interpreters", else raises
    RuntimeError. The function's module must be importable in a subinterpreter, which
    many compiled modules are not, ringloop among them: a stand-in there has
    `offload.report` and `offload.cancelled`.

    An interpreter cannot be stopped. When the caller is cancelled, `offload.cancelled()`
    becomes true there, and the call ends (in CancelledError) when the function does.

    `limiter`, `progress` and what is raised are as for `to_process()`; ValueError for a
    function of the main script, which is another module there.
    """
    if getattr(function, "__module__", None) == "__main__":
        raise ValueError(
            f"to_interpreter() does not find {getattr(function, '__qualname__', function)}, as "
            "other interpreters have a __main__ of their own: move it to a module"
        )
    _interpreters()
    pool = await of_loop(_pool_of_loop)
    return await pool.run(limiter, function, args, progress)  # type: ignore[no-any-return]
