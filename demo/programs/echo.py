"""An echo service: whatever a client sends comes back to it.

    python echo.py PORT

Port 0 takes any free port; the line printed at the start names it. SIGTERM or Ctrl-C stops it.
"""

import asyncio
import signal
import sys
from typing import cast

HOST = "127.0.0.1"
BACKLOG = 1024  # Clients may all connect at the same moment; the default of 100 turns some away.


class Echo(asyncio.Protocol):
    """One client's connection."""

    transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)

    # A client that sends without reading must not fill this process's memory.

    def pause_writing(self) -> None:
        self.transport.pause_reading()

    def resume_writing(self) -> None:
        self.transport.resume_reading()


async def main(port: int) -> None:
    """Serve until a signal."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for signum in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(signum, stop.set)

    try:
        server = await loop.create_server(Echo, HOST, port, backlog=BACKLOG)
    except OSError as error:
        sys.exit(
            f"cannot listen on {HOST}:{port} ({error}): name another port, or 0 for a free one"
        )

    port = server.sockets[0].getsockname()[1]
    kind = f"{type(loop).__module__}.{type(loop).__qualname__}"
    print(f"listening on {HOST}:{port}, loop {kind}", flush=True)
    await stop.wait()
    server.close()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
