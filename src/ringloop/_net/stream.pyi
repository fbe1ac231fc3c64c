import asyncio
from asyncio.constants import _SendfileMode
from collections.abc import Mapping
from socket import socket
from typing import Any, final

from ringloop._core.loop import CoreLoop
from ringloop._net.writing import WriteHalf

# asyncio.Transport is no base that Python sees, but isinstance() does: it is what the
# transport gives as its `__class__`.
@final
class StreamTransport(WriteHalf, asyncio.Transport):
    _start_tls_compatible: bool
    _sendfile_compatible: _SendfileMode
    @property
    def _sock(self) -> socket | None: ...
    @property
    def _protocol_paused(self) -> bool: ...
    def leave_server(self) -> None: ...
    def _address(self, raw: bytes | None) -> Any: ...
    def _connection_made(self) -> None: ...
    def _call_connection_lost(self, exc: BaseException | None) -> None: ...
    def _fatal_error(
        self, exc: BaseException, message: str = "Fatal error on transport"
    ) -> None: ...
    def _force_close(self, exc: BaseException | None) -> None: ...

def make_transport(
    loop: CoreLoop,
    sock: socket,
    protocol: asyncio.BaseProtocol,
    waiter: asyncio.Future[None] | None = None,
    extra: Mapping[str, Any] | None = None,
    server: asyncio.AbstractServer | None = None,
) -> StreamTransport: ...
