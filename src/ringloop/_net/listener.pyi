import asyncio
import ssl
from collections.abc import Callable, Mapping
from socket import socket

from ringloop._core.loop import CoreLoop
from ringloop._driver.base import Sink

class Listener(Sink):
    def __init__(
        self,
        loop: CoreLoop,
        sock: socket,
        factory: Callable[[], asyncio.BaseProtocol],
        sslcontext: ssl.SSLContext | None,
        server: asyncio.AbstractServer | None,
        ssl_timeouts: Mapping[str, float | None],
    ) -> None: ...
    def start(self) -> None: ...
    def stop(self) -> None: ...
    def _handshake_done(self, future: asyncio.Future[object]) -> None: ...
