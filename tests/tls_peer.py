"""The other end of a TLS connection, by the ssl module alone, one step at a time."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable


class Peer:
    """TLS on a socket. Each step is the test's own: it may as well leave one out."""

    def __init__(
        self,
        sock: socket.socket,
        context: ssl.SSLContext,
        *,
        server_side: bool = True,
        server_hostname: str | None = None,
    ) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(
            self.incoming, self.outgoing, server_side=server_side, server_hostname=server_hostname
        )
        self.eof = False

    async def flush(self) -> None:
        if self.outgoing.pending:
            await asyncio.get_running_loop().sock_sendall(self.sock, self.outgoing.read())

    async def receive(self) -> bytes:
        return await asyncio.get_running_loop().sock_recv(self.sock, 65536)

    async def step(self, call: Callable[..., Any], *args: Any) -> Any:
        """Repeat a call of the SSL object until it has what it wants."""
        while True:
            try:
                result = call(*args)
            except ssl.SSLWantReadError:
                await self.flush()
                data = await self.receive()
                if data:
                    self.incoming.write(data)
                else:
                    self.eof = True
                    self.incoming.write_eof()
                continue
            except ssl.SSLError:
                with contextlib.suppress(ConnectionError):
                    await self.flush()  # the alert
                raise
            await self.flush()
            return result

    async def handshake(self) -> None:
        await self.step(self.tls.do_handshake)

    async def read(self, n: int = 65536) -> bytes:
        """Some plaintext; empty after the other end's close_notify."""
        try:
            data: bytes = await self.step(self.tls.read, n)
        except ssl.SSLZeroReturnError:
            return b""
        return data

    async def readexactly(self, n: int) -> bytes:
        data = b""
        while len(data) < n:
            piece = await self.read(n - len(data))
            assert piece, "close_notify came too early"
            data += piece
        return data

    async def write(self, data: bytes) -> None:
        await self.step(self.tls.write, data)

    async def send_close_notify(self) -> None:
        try:
            self.tls.unwrap()
        except ssl.SSLWantReadError:
            pass
        await self.flush()

    async def at_eof(self) -> None:
        """Wait until the other end has closed; a reset is as good."""
        try:
            while await asyncio.get_running_loop().sock_recv(self.sock, 65536):
                pass
        except ConnectionError:
            pass


class Inside(Peer):
    """TLS within the TLS of another peer."""

    def __init__(self, outer: Peer, context: ssl.SSLContext) -> None:
        super().__init__(outer.sock, context)
        self.outer = outer

    async def flush(self) -> None:
        if self.outgoing.pending:
            await self.outer.write(self.outgoing.read())

    async def receive(self) -> bytes:
        return await self.outer.read()


class Recorder(asyncio.Protocol):
    """A protocol that notes what it is told."""

    def __init__(self) -> None:
        loop = asyncio.get_running_loop()
        self.events: list[str] = []
        self.data = b""
        self.transport: Any = None
        self.lost: asyncio.Future[Exception | None] = loop.create_future()
        self.changed = asyncio.Event()

    def note(self, event: str) -> None:
        self.events.append(event)
        self.changed.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.note("made")

    def data_received(self, data: bytes) -> None:
        assert data
        self.data += data
        self.changed.set()

    def eof_received(self) -> None:
        self.note("eof")

    def connection_lost(self, exc: Exception | None) -> None:
        self.note("lost")
        self.lost.set_result(exc)

    def pause_writing(self) -> None:
        self.note("pause")

    def resume_writing(self) -> None:
        self.note("resume")

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self.changed.clear()
            await self.changed.wait()
