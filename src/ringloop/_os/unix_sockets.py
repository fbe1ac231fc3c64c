"""Unix sockets by name, as the standard library's Unix loop opens and removes them."""

from __future__ import annotations

from asyncio import unix_events
from types import CellType, FunctionType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable


class _Serving:
    _stop_listening: Callable[[socket.socket], None]

    def _stop_serving(self, sock: socket.socket) -> None:
        self._stop_listening(sock)
        sock.close()


class UnixSocketMethods(_Serving):
    """Methods that the standard library's Unix loop has and its base class lacks."""

    create_unix_connection = unix_events._UnixSelectorEventLoop.create_unix_connection
    create_unix_server = unix_events._UnixSelectorEventLoop.create_unix_server

    def _init_unix_sockets(self) -> None:
        # create_unix_server notes the inode of what it bound, since 3.13.
        self._unix_server_sockets: dict[socket.socket, int] = {}


# Since 3.13 it removes the socket's file, then calls super(): that is to mean ours.
_borrowed = vars(unix_events._UnixSelectorEventLoop).get("_stop_serving")
if _borrowed is not None and _borrowed.__code__.co_freevars == ("__class__",):
    UnixSocketMethods._stop_serving = FunctionType(  # type: ignore[method-assign]
        _borrowed.__code__, _borrowed.__globals__, closure=(CellType(UnixSocketMethods),)
    )
