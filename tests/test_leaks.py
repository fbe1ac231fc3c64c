"""Connections come and go, and everything is as it was before."""

from __future__ import annotations

import asyncio
import gc
import resource
import socket
import subprocess
import sys
import textwrap
import tracemalloc
import weakref
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from machine import own_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import ringloop

    Run = Callable[..., Any]

TIMEOUT = 10
KIB = 1024


class Echo(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


class Client(asyncio.Protocol):
    """Sends something, takes the answer, closes."""

    def __init__(self, message: bytes) -> None:
        self.message = message
        self.left = len(message)
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        transport.write(self.message)

    def data_received(self, data: bytes) -> None:
        self.left -= len(data)
        if self.left == 0:
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set_result(None)


async def connect_and_close(path: str, times: int) -> None:
    """So many connections, one after the other, a few of them with much data."""
    loop = asyncio.get_running_loop()
    for i in range(times):
        message = bytes(200_000 if i % 50 == 0 else 100)
        _, client = await loop.create_unix_connection(lambda m=message: Client(m), path)  # type: ignore[misc]
        await client.lost


async def at_rest(loop: ringloop.EventLoop, operations: int) -> None:
    """Until the last completions have come."""
    while loop._live_operations() > operations:
        await asyncio.sleep(0.001)
    gc.collect()


# Through Unix sockets: so many TCP connections would leave no port for other tests.


@pytest.mark.measures_memory
def test_a_hundred_thousand_connections_leave_no_fd_operation_nor_memory(
    run: Run, loop: ringloop.EventLoop, tmp_path: Path
) -> None:
    process = psutil.Process()
    path = str(tmp_path / "socket")

    async def main() -> tuple[int, int, int]:
        server = await loop.create_unix_server(Echo, path)
        await asyncio.sleep(0)
        operations = loop._live_operations()
        await connect_and_close(path, 2000)  # tables and the allocator's arenas grow once
        await at_rest(loop, operations)
        fds, before = process.num_fds(), own_bytes()
        await connect_and_close(path, 100_000)
        await at_rest(loop, operations)
        after = own_bytes()
        assert process.num_fds() == fds
        assert loop._live_operations() == operations
        server.close()
        return operations, before, after

    _, before, after = run(main(), timeout=60)
    assert after - before < 2 << 20, f"{(after - before) / KIB:.0f} KiB more"


def test_connections_leave_no_python_memory(
    run: Run, loop: ringloop.EventLoop, tmp_path: Path
) -> None:
    path = str(tmp_path / "socket")

    async def main() -> None:
        server = await loop.create_unix_server(Echo, path)
        await asyncio.sleep(0)
        operations = loop._live_operations()
        await connect_and_close(path, 100)
        await at_rest(loop, operations)
        tracemalloc.start(8)
        await connect_and_close(path, 100)
        await at_rest(loop, operations)
        before, snapshot = tracemalloc.get_traced_memory()[0], tracemalloc.take_snapshot()
        await connect_and_close(path, 1000)
        await at_rest(loop, operations)
        grown = tracemalloc.get_traced_memory()[0] - before
        biggest = tracemalloc.take_snapshot().compare_to(snapshot, "lineno")[:5]
        # 20 bytes a connection would be a leak; the snapshot itself is left out.
        own = sum(stat.size_diff for stat in biggest if "tracemalloc" in str(stat.traceback))
        assert grown - own < 20_000, "\n".join(map(str, biggest))
        server.close()

    try:
        run(main(), timeout=60)
    finally:
        tracemalloc.stop()


# -- idle connections ----------------------------------------------------------------------

# The server is a process of its own, so that the clients' memory is not counted. RSS is
# looked at when the server has listened, answered once and collected its garbage, and
# again when so many connections have had an answer and are idle. The difference counts
# all that a connection costs in user space: transport, protocol, their dicts, a slot in
# each table. The kernel's socket buffers are not in RSS. Its part that is no file's is what
# counts: pages of files come and go as the kernel likes.
IDLE_SERVER = """
    import asyncio, gc, sys
    from pathlib import Path
    import ringloop

    class Echo(asyncio.Protocol):
        __slots__ = ("transport",)
        def connection_made(self, transport):
            self.transport = transport
        def data_received(self, data):
            self.transport.write(data)

    async def main():
        loop = asyncio.get_running_loop()
        server = await loop.create_server(Echo, "127.0.0.1", 0, backlog=1000)
        print(server.sockets[0].getsockname()[1], flush=True)
        ended = loop.create_future()

        def asked():
            if not sys.stdin.readline():
                loop.remove_reader(sys.stdin)
                ended.set_result(None)
            else:
                gc.collect()
                status = Path("/proc/self/status").read_text()
                print(int(status.split("RssAnon:")[1].split()[0]) * 1024, flush=True)

        loop.add_reader(sys.stdin, asked)
        await ended

    ringloop.run(main(), driver=sys.argv[1])
"""


@pytest.fixture
def many_fds() -> Iterator[int]:
    """Raises the limit of file descriptors; how many more there may be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = 12_000 if hard == resource.RLIM_INFINITY else min(12_000, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, limit), hard))
    yield max(soft, limit) - 300
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.measures_memory
@pytest.mark.parametrize("size", [100, 500_000], ids=["after a message", "after a flood"])
def test_an_idle_connection_costs_less_than_two_kib(driver: str, many_fds: int, size: int) -> None:
    # A flood is a megabyte of traffic a connection: of 10,000 it took a tenth of all tests' time.
    count = min(10_000 if size == 100 else 3_000, many_fds)
    server = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(IDLE_SERVER), driver],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    )
    assert server.stdin is not None
    assert server.stdout is not None

    def answered(sock: socket.socket) -> None:
        """Large messages in pieces, so that neither side waits for the other."""
        left = size
        while left:
            sock.sendall(bytes(min(left, 50_000)))
            expected = min(left, 50_000)
            while expected:
                expected -= len(sock.recv(expected))
            left -= min(left, 50_000)

    def memory() -> int:
        assert server.stdin is not None
        assert server.stdout is not None
        server.stdin.write("rss?\n")
        return int(server.stdout.readline())

    socks: list[socket.socket] = []
    with server:
        try:
            address = ("127.0.0.1", int(server.stdout.readline()))
            with socket.create_connection(address, TIMEOUT) as first:
                answered(first)
            memory()
            before = memory()
            for _ in range(count):
                socks.append(socket.create_connection(address, TIMEOUT))
                answered(socks[-1])
            each = (memory() - before) / count
        finally:
            for sock in socks:
                sock.close()
            server.stdin.close()
    assert server.returncode == 0
    assert each < 2 * KIB, f"{each:.0f} bytes a connection"


# -- lifetimes -------------------------------------------------------------------------------


@pytest.fixture
def no_gc() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


class Cyclic(asyncio.Protocol):
    """As protocols are: it knows its transport, which knows it."""

    def __init__(self, way: str) -> None:
        self.way = way
        self.lost = asyncio.get_running_loop().create_future()
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.info = transport.get_extra_info("socket"), transport.get_extra_info("peername")
        if self.way == "raises in connection_made":
            raise ValueError("on purpose")

    def data_received(self, data: bytes) -> None:
        if self.way in ("close", "abort"):
            self.transport.write(b"bye")
            getattr(self.transport, self.way)()
        elif self.way == "raises in data_received":
            raise ValueError("on purpose")
        elif self.way == "paused":
            self.transport.pause_reading()
            self.transport.resume_reading()
        elif self.way == "flow control":
            self.transport.write(bytes(1 << 20))

    def connection_lost(self, exc: Exception | None) -> None:
        # To keep `exc` would be a cycle of our own making, by its traceback.
        self.lost.set_result(None)
        if self.way == "raises in connection_lost":
            raise ValueError("on purpose")


WAYS = [
    "peer closes",
    "peer resets",
    "close",
    "abort",
    "paused",
    "flow control",
    "raises in connection_made",
    "raises in data_received",
    "raises in connection_lost",
]


@pytest.mark.usefixtures("no_gc")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("side", ["client", "server"])
def test_a_lost_connection_is_freed_without_the_garbage_collector(
    run: Run, loop: ringloop.EventLoop, side: str, way: str
) -> None:
    # A handler that keeps nothing; the default one logs.
    loop.set_exception_handler(lambda _, context: None)

    async def connect() -> tuple[socket.socket, Cyclic]:
        if side == "client":
            with socket.create_server(("127.0.0.1", 0)) as listener:
                _, protocol = await loop.create_connection(
                    lambda: Cyclic(way), *listener.getsockname()
                )
                peer, _ = listener.accept()
            return peer, protocol
        accepted: asyncio.Future[Cyclic] = loop.create_future()

        def factory() -> Cyclic:
            protocol = Cyclic(way)
            accepted.set_result(protocol)
            return protocol

        server = await loop.create_server(factory, "127.0.0.1", 0)
        peer = socket.create_connection(server.sockets[0].getsockname())
        protocol = await accepted
        server.close()
        return peer, protocol

    async def live_and_die() -> tuple[weakref.ref[Any], weakref.ref[Any]]:
        peer, protocol = await connect()
        with peer:
            peer.sendall(b"hello")
            for _ in range(20):
                await asyncio.sleep(0)
            if way == "peer resets":
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        await protocol.lost
        return weakref.ref(protocol), weakref.ref(protocol.transport)

    async def main() -> None:
        protocol, transport = await live_and_die()
        deadline = loop.time() + TIMEOUT
        while (protocol() or transport()) and loop.time() < deadline:
            await asyncio.sleep(0.001)  # the last completions
        assert protocol() is None, gc.get_referrers(protocol())
        assert transport() is None, gc.get_referrers(transport())

    run(main())


@pytest.mark.usefixtures("no_gc")
def test_a_kept_exception_keeps_no_transport(run: Run, loop: ringloop.EventLoop) -> None:
    kept: list[BaseException | None] = []

    class Keeping(asyncio.Protocol):
        def connection_lost(self, exc: Exception | None) -> None:
            kept.append(exc)
            lost.set_result(None)

    lost = loop.create_future()

    async def main() -> weakref.ref[Any]:
        near, far = socket.socketpair()
        transport, _ = await loop.create_connection(Keeping, sock=near)
        transport.write(bytes(32 << 20))
        far.close()
        await lost
        return weakref.ref(transport)

    transport = run(main())
    deadline = loop.time() + TIMEOUT
    while transport() and loop.time() < deadline:
        run(asyncio.sleep(0.001))
    assert isinstance(kept[0], ConnectionError)
    assert transport() is None


@pytest.mark.usefixtures("no_gc")
def test_a_closed_server_is_freed_without_the_garbage_collector(
    run: Run, loop: ringloop.EventLoop
) -> None:
    class Factory:
        def __call__(self) -> Echo:
            return Echo()

    async def main() -> weakref.ref[Any]:
        factory = Factory()
        server = await loop.create_server(factory, "127.0.0.1", 0)
        await asyncio.sleep(0)
        server.close()
        await server.wait_closed()
        server._protocol_factory = None  # type: ignore[attr-defined]
        return weakref.ref(factory)

    factory = run(main())
    deadline = loop.time() + TIMEOUT
    while factory() and loop.time() < deadline:
        run(asyncio.sleep(0.001))
    assert factory() is None, "the listener still has it"
