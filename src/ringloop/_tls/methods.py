"""The loop's methods for TLS. They import it when they are called: Python may lack ssl."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

from ringloop._net.stream import make_transport

if TYPE_CHECKING:
    import socket
    import ssl
    from collections.abc import Callable

    from ringloop.loop import EventLoop


class TLSMethods:
    """`start_tls`, and the hook of `create_connection` and its like."""

    _check_closed: Callable[[], None]
    _ensure_fd_no_transport: Callable[[Any], None]
    call_soon: Callable[..., asyncio.Handle]
    create_future: Callable[[], asyncio.Future[Any]]

    def _make_ssl_transport(
        self,
        rawsock: socket.socket,
        protocol: asyncio.BaseProtocol,
        sslcontext: ssl.SSLContext,
        waiter: asyncio.Future[None] | None = None,
        *,
        server_side: bool = False,
        server_hostname: str | None = None,
        extra: dict[str, Any] | None = None,
        server: asyncio.AbstractServer | None = None,
        ssl_handshake_timeout: float | None = None,
        ssl_shutdown_timeout: float | None = None,
        call_connection_made: bool = True,
    ) -> asyncio.Transport:
        from ringloop._tls.transport import TLSTransport  # noqa: PLC0415 - needs ssl

        self._check_closed()
        self._ensure_fd_no_transport(rawsock)
        tls = TLSTransport(
            cast("EventLoop", self),
            protocol,
            sslcontext,
            waiter,
            server_side,
            server_hostname,
            call_connection_made,
            ssl_handshake_timeout,
            ssl_shutdown_timeout,
        )
        make_transport(cast("EventLoop", self), rawsock, tls, None, extra, server)
        return tls

    async def start_tls(
        self,
        transport: asyncio.BaseTransport,
        protocol: asyncio.BaseProtocol,
        sslcontext: ssl.SSLContext,
        *,
        server_side: bool = False,
        server_hostname: str | None = None,
        ssl_handshake_timeout: float | None = None,
        ssl_shutdown_timeout: float | None = None,
    ) -> asyncio.Transport | None:
        """Speak TLS on a connection from now on; the transport that does so.

        None, as in asyncio, if `transport` was closed before.
        `transport` must be one of a loop's stream transports, TLS ones included;
        TypeError for others. What a server's StreamReader has read beyond the last
        plaintext is the beginning of the client's handshake, and is used as such.
        """
        import ssl  # noqa: PLC0415 - slow, not all use it

        from ringloop._tls.transport import TLSTransport  # noqa: PLC0415 - needs ssl

        if not isinstance(sslcontext, ssl.SSLContext):
            raise TypeError(
                f"sslcontext is expected to be an instance of ssl.SSLContext, got {sslcontext!r}"
            )
        if not getattr(transport, "_start_tls_compatible", False):
            raise TypeError(f"transport {transport!r} is not supported by start_tls()")
        transport = cast("asyncio.Transport", transport)
        if transport.is_closing():
            return None
        waiter = self.create_future()
        tls = TLSTransport(
            cast("EventLoop", self),
            protocol,
            sslcontext,
            waiter,
            server_side,
            server_hostname,
            False,
            ssl_handshake_timeout,
            ssl_shutdown_timeout,
        )
        # Nothing may arrive before connection_made() was called.
        transport.pause_reading()
        tls._take_over(transport)
        made = self.call_soon(tls.connection_made, transport)
        if server_side and (early := _read_early(protocol)):
            self.call_soon(tls.data_received, early)
        resume = self.call_soon(transport.resume_reading)
        try:
            await waiter
        except BaseException:
            transport.close()
            made.cancel()
            resume.cancel()
            raise
        return tls


def _read_early(protocol: asyncio.BaseProtocol) -> bytes:
    """Take what a stream protocol has received and nobody has read yet."""
    reader = getattr(protocol, "_stream_reader", None)
    if not isinstance(protocol, asyncio.StreamReaderProtocol) or reader is None:
        return b""
    early = bytes(reader._buffer)
    reader._buffer.clear()
    return early
