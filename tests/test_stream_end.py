"""The end of a stream is noticed, whatever came before it and whenever that was.

io_uring misses it in some of these cases, and the driver has to find out by itself:
see `check_receives` in `_driver/uring.pyx`.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    import ringloop

    Run = Callable[..., Any]

ON_FAULTY_DRIVERS = True
BUFFERS = 1 << 20
RST = struct.pack("ii", 1, 0)  # struct linger: on, 0 seconds


def connected(family: str) -> tuple[socket.socket, socket.socket]:
    """A socket for the transport and its peer, which the kernel lets send much at once."""
    if family == "unix":
        near, far = socket.socketpair()
    else:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            near = socket.socket()
            near.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFERS)
            near.connect(listener.getsockname())
            far, _ = listener.accept()
    far.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFERS)
    far.setblocking(False)
    return near, far


def send_and_end(far: socket.socket, size: int, how: str) -> None:
    assert not size or far.send(bytes(size)) == size
    if how == "shutdown":
        far.shutdown(socket.SHUT_WR)
        return
    if how == "reset":
        far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RST)
    far.close()


class Reader(asyncio.Protocol):
    def __init__(self) -> None:
        self.received = 0
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        self.received += len(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.ended.set_result(None)


@pytest.mark.parametrize("when", ["before it reads", "while it waits", "while it is paused"])
@pytest.mark.parametrize("size", [0, 1, 65_537, 150_000])
@pytest.mark.parametrize(
    ("family", "how"),
    [("unix", "close"), ("unix", "shutdown"), ("tcp", "close"), ("tcp", "reset")],
)
def test_the_end_is_noticed(
    run: Run, loop: ringloop.EventLoop, family: str, how: str, size: int, when: str
) -> None:
    async def main() -> None:
        near, far = connected(family)
        if when == "before it reads":
            send_and_end(far, size, how)
        transport, protocol = await loop.create_connection(Reader, sock=near)
        if when != "before it reads":
            await asyncio.sleep(0)
            if when == "while it is paused":
                transport.pause_reading()
            await asyncio.sleep(0)
            send_and_end(far, size, how)
            await asyncio.sleep(0)
            transport.resume_reading()
        await protocol.ended
        if how != "reset":  # which may throw away what was not received yet
            assert protocol.received == size
        far.close()

    run(main())
