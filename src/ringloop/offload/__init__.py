"""Work that would hold up the loop: in threads, processes, interpreters, on a Dask cluster.

One call for each, alike in all else:

    result = await offload.to_process(function, argument, progress=print)

works on any asyncio event loop. See docs/cpu-bound.md for which to take, and when none.
"""

from ringloop.offload._channel import RemoteError, RemoteTraceback
from ringloop.offload._dask import Dask, Remote, from_dask
from ringloop.offload._interpreters import to_interpreter
from ringloop.offload._pool import WorkerDiedError
from ringloop.offload._processes import ProcessPool, to_process
from ringloop.offload._threads import to_thread
from ringloop.offload._worker import cancelled, report

__all__ = [
    "Dask",
    "ProcessPool",
    "Remote",
    "RemoteError",
    "RemoteTraceback",
    "WorkerDiedError",
    "cancelled",
    "from_dask",
    "report",
    "to_interpreter",
    "to_process",
    "to_thread",
]
