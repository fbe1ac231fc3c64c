"""Files without blocking the loop, at the speed of synchronous code.

Names and meaning are those of `open()`, `os`, `shutil`, `pathlib` and `tempfile`; what may
block is awaited. Works on any asyncio event loop; on a ringloop with io_uring, what the
caches cannot answer goes to the ring, elsewhere to threads.
"""

from ringloop.fs import tempfile
from ringloop.fs._dirs import (
    Scandir,
    access,
    chmod,
    copyfile,
    copytree,
    exists,
    getsize,
    glob,
    isdir,
    isfile,
    islink,
    listdir,
    makedirs,
    readlink,
    removedirs,
    renames,
    rmtree,
    scandir,
    sendfile,
    statvfs,
    utime,
    walk,
)
from ringloop.fs._file import BinaryFile
from ringloop.fs._meta import (
    link,
    lstat,
    mkdir,
    remove,
    rename,
    replace,
    rmdir,
    stat,
    symlink,
    unlink,
)
from ringloop.fs._open import open
from ringloop.fs._path import Path
from ringloop.fs._text import TextFile
from ringloop.fs._watch import Event, Watch, watch
from ringloop.fs._whole import read_bytes, read_many
from ringloop.fs._write import read_text, write_bytes, write_text

__all__ = [
    "BinaryFile",
    "Event",
    "Path",
    "Scandir",
    "TextFile",
    "Watch",
    "access",
    "chmod",
    "copyfile",
    "copytree",
    "exists",
    "getsize",
    "glob",
    "isdir",
    "isfile",
    "islink",
    "link",
    "listdir",
    "lstat",
    "makedirs",
    "mkdir",
    "open",
    "read_bytes",
    "read_many",
    "read_text",
    "readlink",
    "remove",
    "removedirs",
    "rename",
    "renames",
    "replace",
    "rmdir",
    "rmtree",
    "scandir",
    "sendfile",
    "stat",
    "statvfs",
    "symlink",
    "tempfile",
    "unlink",
    "utime",
    "walk",
    "watch",
    "write_bytes",
    "write_text",
]
