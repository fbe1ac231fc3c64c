"""The event loop: the compiled core joined to asyncio's own base class."""

from __future__ import annotations

import asyncio
import os
import weakref
from asyncio import constants
from typing import TYPE_CHECKING, Any

from ringloop._core.fast import add_fast_forms
from ringloop._core.loop import CoreLoop
from ringloop._driver import choose
from ringloop._driver.choose import open_driver
from ringloop._net.datagram import make_datagram_transport
from ringloop._net.listener import Listener
from ringloop._net.sendfile import SendfileMethods
from ringloop._net.sock_ops import SocketMethods
from ringloop._net.stream import make_transport
from ringloop._net.watch import WatchMethods
from ringloop._os.pipes import PipeMethods
from ringloop._os.processes import ProcessMethods
from ringloop._os.resolver import ResolverMethods
from ringloop._os.signals import SignalMethods
from ringloop._os.unix_sockets import UnixSocketMethods
from ringloop._tls.methods import TLSMethods

if TYPE_CHECKING:
    import socket
    import ssl
    from collections.abc import Callable

    from ringloop._driver.base import Driver

_loops: weakref.WeakSet[EventLoop] = weakref.WeakSet()


class EventLoop(
    CoreLoop,
    WatchMethods,
    SocketMethods,
    SendfileMethods,
    ResolverMethods,
    TLSMethods,
    SignalMethods,
    PipeMethods,
    ProcessMethods,
    UnixSocketMethods,
    asyncio.BaseEventLoop,
):
    """An asyncio event loop on io_uring or epoll.

    `driver` is "uring", "epoll" or "auto": io_uring where it works, else epoll.
    "auto" defers to the environment variable RINGLOOP_DRIVER. Raises RuntimeError
    with the reason when "uring" is asked for and cannot work here. The environment
    variable RINGLOOP_RESOLVER_THREADS says how many threads look up names at most (16);
    ValueError if it is no positive number.
    """

    _own_streams_by_default = False

    # All that the classes above keep in a loop. While the loop has no dict, the interpreter
    # finds its methods without a look into that.
    __slots__ = (
        "_asyncgens",
        "_asyncgens_shutdown_called",
        "_clock_resolution",
        "_coroutine_origin_tracking_enabled",
        "_coroutine_origin_tracking_saved_depth",
        "_default_executor",
        "_exception_handler",
        "_executor_shutdown_called",
        "_internal_fds",
        "_listeners",
        "_old_agen_hooks",
        "_outer_wakeup_fd",
        "_own_streams",
        "_readers",
        "_ready",
        "_resolver",
        "_resolver_threads",
        "_ringloop_offload",
        "_scheduled",
        "_signal_handlers",
        "_signal_rx",
        "_signal_tx",
        "_signals_running",
        "_timer_cancelled_count",
        "_unix_server_sockets",
        "_waited_for",
        "_writers",
    )

    # By a name that is still there when a loop nobody closed goes with the interpreter.
    _close_base = asyncio.BaseEventLoop.close

    def __init__(self, driver: str | Driver = "auto") -> None:
        self._init_resolver()
        self._open(open_driver(driver))
        asyncio.BaseEventLoop.__init__(self)
        # Whether asyncio.open_connection() and its kin create ringloop's streams on it.
        self._own_streams = self._own_streams_by_default
        self._listeners: dict[socket.socket, Listener] = {}
        self._init_watches()
        self._init_signals()
        self._init_processes()
        self._init_unix_sockets()
        _loops.add(self)

    def close(self) -> None:
        """Close the loop; it must not be running. Closing twice is no error."""
        if self.is_running():
            raise RuntimeError("Cannot close a running event loop")
        if self.is_closed():
            return
        try:
            self._remove_signal_handlers()
        finally:  # only the main thread may remove them
            self._close_base()
            self._close_resolver()
            self._close_core()
            self._close_signal_sockets()

    def _make_socket_transport(
        self,
        sock: socket.socket,
        protocol: asyncio.BaseProtocol,
        waiter: asyncio.Future[None] | None = None,
        *,
        extra: dict[str, Any] | None = None,
        server: asyncio.AbstractServer | None = None,
    ) -> asyncio.Transport:
        self._check_closed()
        self._ensure_fd_no_transport(sock)
        return make_transport(self, sock, protocol, waiter, extra, server)

    def _make_datagram_transport(
        self,
        sock: socket.socket,
        protocol: asyncio.BaseProtocol,
        address: Any = None,
        waiter: asyncio.Future[None] | None = None,
        extra: dict[str, Any] | None = None,
    ) -> asyncio.DatagramTransport:
        self._check_closed()
        self._ensure_fd_no_transport(sock)
        return make_datagram_transport(self, sock, protocol, address, waiter, extra)

    def _start_serving(
        self,
        protocol_factory: Callable[[], asyncio.BaseProtocol],
        sock: socket.socket,
        sslcontext: ssl.SSLContext | None = None,
        server: asyncio.AbstractServer | None = None,
        backlog: int = 100,
        ssl_handshake_timeout: float | None = constants.SSL_HANDSHAKE_TIMEOUT,
        ssl_shutdown_timeout: float | None = constants.SSL_SHUTDOWN_TIMEOUT,
    ) -> None:
        timeouts = {
            "ssl_handshake_timeout": ssl_handshake_timeout,
            "ssl_shutdown_timeout": ssl_shutdown_timeout,
        }
        listener = Listener(self, sock, protocol_factory, sslcontext, server, timeouts)
        self._listeners[sock] = listener
        listener.start()

    def _stop_listening(self, sock: socket.socket) -> None:
        listener = self._listeners.pop(sock, None)
        if listener is not None:
            listener.stop()


add_fast_forms(EventLoop)


def _after_fork_in_child() -> None:
    for loop in list(_loops):
        loop._after_fork_in_child()
        loop._drop_signals_in_child()


os.register_at_fork(after_in_child=_after_fork_in_child)


def new_event_loop() -> EventLoop:
    """A new event loop, for anything that takes a loop factory."""
    return EventLoop()


def backend_info() -> dict[str, Any]:
    """What a new loop of this process runs on.

    Keys: `driver` ("uring" or "epoll"), `requested` (RINGLOOP_DRIVER or "auto"),
    `reason` (why not io_uring; None where it is used), `kernel` (release),
    `features` (what was found in the kernel), `tls` ("direct": libssl is called
    directly, "memory": through ssl.MemoryBIO, None: this Python has no ssl) and
    `tls_reason` (why not directly). Raises like `EventLoop()`, and RuntimeError or
    ValueError if RINGLOOP_TLS asks for what cannot be or is not known.
    """
    info = choose.backend_info()
    try:
        from ringloop._tls.choose import engine_info  # noqa: PLC0415 - Python may lack ssl
    except ImportError as error:
        info["tls"], info["tls_reason"] = None, str(error)
    else:
        info["tls"], info["tls_reason"] = engine_info()
    return info
