"""Servers on any asyncio event loop: what the benchmark measures.

    python -P on_loop.py --loop uvloop servers.py --kind protocol

prints the port on stdout, and ends on SIGTERM or when stdin is closed. Each kind is
written the plain way, as its users write it; nothing here tunes one loop.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import os
import socket
import ssl
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

READ_BYTES = 65536
BACKLOG = 4096
"""All connections of the load generator come at once."""


class EchoProtocol(asyncio.Protocol):
    transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # A cast, and not an assertion: uvloop's transports are not asyncio.Transport's.
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


async def keep_serving(server: asyncio.AbstractServer) -> None:
    # Not server.serve_forever(): rloop 0.5 closes the listener in it.
    await asyncio.Event().wait()


async def serve_protocol(listener: socket.socket, message_bytes: int) -> None:
    """`transport.write` from `data_received`."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(EchoProtocol, sock=listener, backlog=BACKLOG)
    await keep_serving(server)


def tls_context() -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(Path(__file__).with_name("localhost.pem"))
    return context


async def serve_tls(listener: socket.socket, message_bytes: int) -> None:
    """The same as `serve_protocol`, with `ssl=`."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        EchoProtocol, sock=listener, backlog=BACKLOG, ssl=tls_context()
    )
    await keep_serving(server)


async def serve_streams(listener: socket.socket, message_bytes: int) -> None:
    """`asyncio.start_server`: whatever has arrived is read, and sent back."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(READ_BYTES):
            writer.write(data)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(handle, sock=listener, backlog=BACKLOG)
    await keep_serving(server)


async def serve_readexactly(
    listener: socket.socket, message_bytes: int, context: ssl.SSLContext | None = None
) -> None:
    """`asyncio.start_server`: a request of known size is read whole, then answered."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                writer.write(await reader.readexactly(message_bytes))
                await writer.drain()
        except asyncio.IncompleteReadError:
            writer.close()

    server = await asyncio.start_server(handle, sock=listener, backlog=BACKLOG, ssl=context)
    await keep_serving(server)


async def serve_tls_streams(listener: socket.socket, message_bytes: int) -> None:
    """The same, with `ssl=`."""
    await serve_readexactly(listener, message_bytes, tls_context())


async def serve_readline(listener: socket.socket, message_bytes: int) -> None:
    """`asyncio.start_server`: a line is read, then answered."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            writer.write(line)
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(
        handle, sock=listener, backlog=BACKLOG, limit=max(65536, 2 * message_bytes)
    )
    await keep_serving(server)


async def serve_sock(listener: socket.socket, message_bytes: int) -> None:
    """`sock_accept`, and a task a connection with `sock_recv` and `sock_sendall`."""
    loop = asyncio.get_running_loop()

    async def handle(connection: socket.socket) -> None:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with connection:
            while data := await loop.sock_recv(connection, READ_BYTES):
                await loop.sock_sendall(connection, data)

    tasks = set()
    while True:
        connection, _ = await loop.sock_accept(listener)
        connection.setblocking(False)
        task = asyncio.create_task(handle(connection))
        tasks.add(task)
        task.add_done_callback(tasks.discard)


class EchoDatagrams(asyncio.DatagramProtocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.transport.sendto(data, addr)


async def serve_udp(sock: socket.socket, message_bytes: int) -> None:
    """`transport.sendto` from `datagram_received`; one socket for all clients."""
    loop = asyncio.get_running_loop()
    await loop.create_datagram_endpoint(EchoDatagrams, sock=sock)
    await asyncio.Event().wait()


async def serve_uvicorn(listener: socket.socket, message_bytes: int) -> None:
    """An ASGI application that answers with `message_bytes` bytes, under uvicorn."""
    uvicorn = importlib.import_module("uvicorn")
    body = b"x" * message_bytes
    headers = [(b"content-length", str(message_bytes).encode()), (b"content-type", b"text/plain")]

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    config = uvicorn.Config(
        application, http="httptools", ws="none", lifespan="off", access_log=False
    )
    await uvicorn.Server(config).serve(sockets=[listener])


KINDS: dict[str, Callable[[socket.socket, int], Awaitable[None]]] = {
    "protocol": serve_protocol,
    "streams": serve_streams,
    "readexactly": serve_readexactly,
    "readline": serve_readline,
    "sock": serve_sock,
    "udp": serve_udp,
    "tls": serve_tls,
    "tls_streams": serve_tls_streams,
    "uvicorn": serve_uvicorn,
}


def end_if_stdin_closed() -> None:
    if not os.read(sys.stdin.fileno(), 1):
        os._exit(0)


async def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="servers.py")
    parser.add_argument("--kind", required=True, choices=KINDS)
    parser.add_argument("--size", type=int, default=1024, help="bytes a request or an answer")
    options = parser.parse_args(arguments)
    asyncio.get_running_loop().add_reader(sys.stdin.fileno(), end_if_stdin_closed)
    if options.kind == "udp":
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind(("127.0.0.1", 0))
    else:
        # As the loops make it of host and port: asyncio sets TCP_NODELAY only by this protocol.
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        sock.bind(("127.0.0.1", 0))
        sock.listen(BACKLOG)
    sock.setblocking(False)
    print(sock.getsockname()[1], flush=True)
    await KINDS[options.kind](sock, options.size)
