import asyncio
from collections.abc import Mapping
from typing import Any, final

from _typeshed import HasFileno

from ringloop._core.loop import CoreLoop
from ringloop._driver.base import Sink
from ringloop._net.writing import WriteHalf

# asyncio's classes are no bases that Python sees, but isinstance() does: they are what
# the transports give as their `__class__`.
@final
class ReadPipeTransport(Sink, asyncio.ReadTransport):
    _pipe: HasFileno | None
    def __init__(
        self,
        loop: CoreLoop,
        pipe: HasFileno,
        protocol: asyncio.Protocol,
        waiter: asyncio.Future[None] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None: ...
    def _connection_made(self) -> None: ...
    def _call_connection_lost(self, exc: Exception | None) -> None: ...

@final
class WritePipeTransport(WriteHalf, asyncio.Transport):
    _pipe: HasFileno | None
    def __init__(
        self,
        loop: CoreLoop,
        pipe: HasFileno,
        protocol: asyncio.BaseProtocol,
        waiter: asyncio.Future[None] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> None: ...
    def _connection_made(self) -> None: ...
    def _call_connection_lost(self, exc: Exception | None) -> None: ...

class PipeMethods:
    def _make_read_pipe_transport(
        self,
        pipe: HasFileno,
        protocol: asyncio.Protocol,
        waiter: asyncio.Future[None] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> ReadPipeTransport: ...
    def _make_write_pipe_transport(
        self,
        pipe: HasFileno,
        protocol: asyncio.BaseProtocol,
        waiter: asyncio.Future[None] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> WritePipeTransport: ...
