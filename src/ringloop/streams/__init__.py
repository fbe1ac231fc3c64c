"""asyncio's streams, compiled: the same names, the same results, less time.

The classes are subclasses of asyncio's. docs/streams.md says what differs, and when
asyncio.open_connection() and its kin create them by themselves.
"""

from ringloop.streams.classes import StreamReader, StreamReaderProtocol, StreamWriter
from ringloop.streams.connect import (
    open_connection,
    open_unix_connection,
    start_server,
    start_unix_server,
)

__all__ = [
    "StreamReader",
    "StreamReaderProtocol",
    "StreamWriter",
    "open_connection",
    "open_unix_connection",
    "start_server",
    "start_unix_server",
]
