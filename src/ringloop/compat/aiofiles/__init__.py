"""The names of aiofiles over `ringloop.fs`: switching is one import.

    from ringloop.compat import aiofiles        # instead of: import aiofiles

Everything has aiofiles' signature. `loop` is taken and not needed. Of `executor`: files
that were opened here need none; what does go to a thread (a wrapped object, a call
with `dir_fd`) goes to that executor if one is given, and else to threads of ringloop's own.
"""

from ringloop.compat.aiofiles import os, ospath, tempfile, threadpool
from ringloop.compat.aiofiles.threadpool import (
    open,
    stderr,
    stderr_bytes,
    stdin,
    stdin_bytes,
    stdout,
    stdout_bytes,
)

__all__ = [
    "open",
    "os",
    "ospath",
    "stderr",
    "stderr_bytes",
    "stdin",
    "stdin_bytes",
    "stdout",
    "stdout_bytes",
    "tempfile",
    "threadpool",
]
