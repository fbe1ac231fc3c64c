"""Servers: listening, accepting, closing."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import errno
import gc
import resource
import socket
import struct
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import drivers
import ringloop
from ringloop.testing.faulty import FaultyDriver

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    Run = Callable[..., Any]

TIMEOUT = 10


class Greeter(asyncio.Protocol):
    """Says hello; `open` counts those whose connection is not lost yet."""

    open = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        type(self).open += 1
        self.transport = transport
        transport.write(b"hello")

    def connection_lost(self, exc: Exception | None) -> None:
        type(self).open -= 1


@pytest.fixture(autouse=True)
def count() -> None:
    Greeter.open = 0


async def serve(host: Any = "127.0.0.1", port: int = 0, **options: Any) -> asyncio.Server:
    return await asyncio.get_running_loop().create_server(Greeter, host, port, **options)


def address_of(server: asyncio.Server) -> tuple[str, int]:
    address: tuple[str, int] = server.sockets[0].getsockname()[:2]
    return address


async def greeted(address: tuple[str, int]) -> bool:
    """Whether a new connection there is served."""
    reader, writer = await asyncio.open_connection(*address)
    said = await reader.read(5)
    writer.close()
    await writer.wait_closed()
    return said == b"hello"


async def closed(server: asyncio.Server) -> None:
    server.close()
    await server.wait_closed()
    while Greeter.open:
        await asyncio.sleep(0.001)


def test_a_server_is_an_asyncio_server(run: Run, loop: ringloop.EventLoop) -> None:
    async def main() -> None:
        server = await serve()
        assert isinstance(server, asyncio.AbstractServer)
        assert server.get_loop() is loop
        assert server.is_serving()
        assert len(server.sockets) == 1
        assert server.sockets[0].getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1
        assert await greeted(address_of(server))
        await closed(server)
        assert not server.is_serving()
        assert not server.sockets
        server.close()  # twice is no error

    run(main())


def test_start_serving_later(run: Run) -> None:
    async def main() -> None:
        server = await serve(start_serving=False)
        assert not server.is_serving()
        address = address_of(server)
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(*address)
        await server.start_serving()
        await server.start_serving()  # twice is no error
        assert server.is_serving()
        assert await greeted(address)
        await closed(server)

    run(main())


def test_serve_forever_serves_until_it_is_cancelled(run: Run) -> None:
    async def main() -> None:
        server = await serve(start_serving=False)
        address = address_of(server)
        serving = asyncio.create_task(server.serve_forever())
        while not server.is_serving():
            await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match="already being awaited"):
            await server.serve_forever()
        assert await greeted(address)
        serving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await serving
        assert not server.is_serving()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address)
        with pytest.raises(RuntimeError, match="is closed"):
            await server.serve_forever()

    run(main())


def test_async_with_closes(run: Run) -> None:
    async def main() -> None:
        async with await serve() as server:
            address = address_of(server)
            assert await greeted(address)
        assert not server.is_serving()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address)

    run(main())


@pytest.mark.parametrize("used", [False, True])
def test_the_port_is_free_as_soon_as_close_returns(run: Run, used: bool) -> None:
    async def main() -> None:
        for _ in range(20):
            server = await serve()
            address = address_of(server)
            if used:
                await asyncio.sleep(0)  # the accept is armed by now
            server.close()
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(address)
            with socket.socket() as other:  # without SO_REUSEADDR
                other.bind(address)
                other.listen()

    run(main())


def test_the_port_is_free_when_the_loop_that_served_has_stopped(
    loop: ringloop.EventLoop, run: Run
) -> None:
    server = run(serve())
    address = address_of(server)
    server.close()
    with socket.socket() as other:
        other.bind(address)
        other.listen()


def test_close_leaves_connections_alone(run: Run) -> None:
    async def main() -> None:
        server = await serve()
        reader, writer = await asyncio.open_connection(*address_of(server))
        assert await reader.readexactly(5) == b"hello"
        server.close()
        waiting = asyncio.create_task(server.wait_closed())
        for _ in range(5):
            await asyncio.sleep(0)
        assert Greeter.open == 1
        if sys.version_info >= (3, 12):  # until then it did not wait for connections
            assert not waiting.done()
        writer.close()
        await waiting
        await writer.wait_closed()
        while Greeter.open:
            await asyncio.sleep(0.001)

    run(main())


@pytest.mark.skipif(sys.version_info < (3, 13), reason="Server.close_clients came with 3.13")
@pytest.mark.parametrize("method", ["close_clients", "abort_clients"])
def test_clients_of_a_server_can_be_ended_together(run: Run, method: str) -> None:
    async def main() -> None:
        server = await serve()
        streams = [await asyncio.open_connection(*address_of(server)) for _ in range(10)]
        for reader, _ in streams:
            assert await reader.readexactly(5) == b"hello"
        transports = list(server._clients)  # type: ignore[attr-defined]
        assert len(transports) == 10
        if method == "close_clients":
            for transport in transports:
                transport.write(b"bye")  # which close() flushes and abort() does not
        getattr(server, method)()
        assert all(transport.is_closing() for transport in transports)
        server.close()
        await asyncio.wait_for(server.wait_closed(), TIMEOUT)
        for reader, writer in streams:
            assert await reader.read() == (b"bye" if method == "close_clients" else b"")
            writer.close()
            await writer.wait_closed()
        assert Greeter.open == 0

    run(main())


def test_a_client_that_nobody_closed_leaves_its_server(run: Run) -> None:
    made = asyncio.Event()

    class Forgotten(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            assert isinstance(transport, asyncio.Transport)
            self.transport = transport  # a cycle, which only the collector ends
            transport.pause_reading()  # else the loop would hold it
            made.set()

    async def main() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(Forgotten, "127.0.0.1", 0)
        gc.disable()  # or the warning may come before it is waited for
        try:
            reader, writer = await asyncio.open_connection(*address_of(server))
            await asyncio.wait_for(made.wait(), TIMEOUT)
            await asyncio.sleep(0)  # what called connection_made() lets go of it
            with pytest.warns(ResourceWarning, match="unclosed transport"):
                gc.collect()
        finally:
            gc.enable()
        assert await reader.read() == b""
        server.close()
        await asyncio.wait_for(server.wait_closed(), TIMEOUT)
        writer.close()
        await writer.wait_closed()

    run(main())


# -- options -----------------------------------------------------------------------------


def test_backlog_reaches_the_kernel(run: Run) -> None:
    async def main() -> None:
        server = await serve(backlog=77)
        info = server.sockets[0].getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 32)
        assert struct.unpack_from("I", info, 28)[0] == 77  # tcpi_sacked, of a listening socket
        await closed(server)

    run(main())


def test_reuse_port_shares_a_port(run: Run) -> None:
    async def main() -> None:
        first = await serve(reuse_port=True)
        port = address_of(first)[1]
        second = await serve(port=port, reuse_port=True)
        with pytest.raises(OSError, match="address already in use") as caught:
            await serve(port=port)
        assert caught.value.errno == errno.EADDRINUSE
        for _ in range(20):
            assert await greeted(("127.0.0.1", port))
        await closed(first)
        await closed(second)

    run(main())


def test_reuse_address_is_the_default(run: Run) -> None:
    async def main() -> None:
        for option, expected in ((None, 1), (True, 1), (False, 0)):
            server = await serve(reuse_address=option)
            sock = server.sockets[0]
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR) == expected
            await closed(server)

    run(main())


@pytest.mark.skipif(sys.version_info < (3, 13), reason="keep_alive came with 3.13")
def test_keep_alive_holds_for_accepted_connections(run: Run) -> None:
    async def main() -> None:
        server = await serve(keep_alive=True)
        reader, writer = await asyncio.open_connection(*address_of(server))
        await reader.readexactly(5)
        (transport,) = server._clients  # type: ignore[attr-defined]
        accepted = transport.get_extra_info("socket")
        assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
        writer.close()
        await writer.wait_closed()
        await closed(server)

    run(main())


def test_several_hosts_and_both_families(run: Run) -> None:
    async def main() -> None:
        server = await serve(["127.0.0.1", "127.0.0.2", "::1"])
        addresses = [sock.getsockname() for sock in server.sockets]
        assert sorted(address[0] for address in addresses) == ["127.0.0.1", "127.0.0.2", "::1"]
        for address in addresses:
            assert await greeted(address[:2])
        await closed(server)
        for address in addresses:
            with pytest.raises(ConnectionRefusedError):
                socket.create_connection(address[:2])

    run(main())


def test_a_listening_socket_of_the_caller(run: Run) -> None:
    async def main() -> None:
        sock = socket.create_server(("127.0.0.1", 0))
        server = await serve(None, None, sock=sock)  # type: ignore[arg-type]
        assert server.sockets[0].fileno() == sock.fileno()
        assert await greeted(address_of(server))
        await closed(server)
        assert sock.fileno() == -1

    run(main())


def test_each_connection_has_a_context_of_its_own(run: Run) -> None:
    var: contextvars.ContextVar[str] = contextvars.ContextVar("var")
    seen = []

    class Contextual(Greeter):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            seen.append(var.get())
            var.set("of a connection")
            super().connection_made(transport)

    async def main() -> None:
        var.set("of the server")
        loop = asyncio.get_running_loop()
        server = await loop.create_server(Contextual, "127.0.0.1", 0)
        var.set("later")
        for _ in range(3):
            assert await greeted(address_of(server))
        await closed(server)
        while Contextual.open:
            await asyncio.sleep(0.001)

    run(main())
    assert seen == ["of the server"] * 3


# -- trouble -----------------------------------------------------------------------------


def test_a_factory_that_raises_costs_its_connection_only(
    run: Run, loop: ringloop.EventLoop
) -> None:
    errors: list[Any] = []
    loop.set_exception_handler(lambda _, context: errors.append(context["exception"]))
    attempts = 0

    def factory() -> Greeter:
        nonlocal attempts
        attempts += 1
        if attempts % 2:
            raise ValueError("odd")
        return Greeter()

    async def main() -> None:
        server = await loop.create_server(factory, "127.0.0.1", 0)
        address = address_of(server)
        for _ in range(3):
            reader, writer = await asyncio.open_connection(*address)
            assert await reader.read() == b""
            writer.close()
            await writer.wait_closed()
            assert await greeted(address)
        await closed(server)

    run(main())
    assert [str(error) for error in errors] == ["odd"] * 3


@pytest.fixture
def many_fds() -> Iterator[int]:
    """How many connections this process and the kernel's backlog may have at once."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 4500 if hard == resource.RLIM_INFINITY else min(4500, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    somaxconn = int(Path("/proc/sys/net/core/somaxconn").read_text())
    yield min(2000, (max(soft, wanted) - 300) // 2, somaxconn)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_storm_of_connects_is_served_whole(run: Run, many_fds: int) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        server = await serve(backlog=many_fds)
        address = address_of(server)
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(socket.socket()) for _ in range(many_fds)]
            for client in clients:
                client.setblocking(False)
                assert client.connect_ex(address) in (0, errno.EINPROGRESS)
            said = await asyncio.gather(*(loop.sock_recv(client, 10) for client in clients))
            assert said == [b"hello"] * many_fds
            assert Greeter.open == many_fds
        await closed(server)

    run(main(), timeout=30)


def test_what_was_accepted_too_late_for_the_server_is_closed(run: Run) -> None:
    async def main() -> None:
        server = await serve()
        await asyncio.sleep(0)
        clients = [socket.create_connection(address_of(server)) for _ in range(5)]
        # The next iteration collects them, then this goes on, then they are told of.
        await asyncio.sleep(0)
        server.close()
        for client in clients:
            with client:
                client.setblocking(False)
                with contextlib.suppress(ConnectionResetError):  # or never accepted
                    said = await asyncio.get_running_loop().sock_recv(client, 10)
                    assert said in (b"", b"hello")
        await closed(server)

    run(main())  # and the fixture looks for leaked file descriptors


@pytest.mark.parametrize("error", [errno.EPERM, errno.EPROTO, errno.ENETDOWN])
def test_an_error_of_one_accept_does_not_end_the_others(
    error: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("asyncio.constants.ACCEPT_RETRY_DELAY", 0.001)
    driver = FaultyDriver(rate=0)
    told: list[Any] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: told.append(context))
        server = await serve()
        driver.accept_error = error
        async with asyncio.timeout(TIMEOUT):
            assert await greeted(address_of(server))
            await closed(server)

    with asyncio.Runner(loop_factory=lambda: ringloop.EventLoop(driver)) as runner:
        runner.run(main())
    assert [context["exception"].errno for context in told] == [error]
    assert told[0]["message"] == "socket.accept() failed"


def test_connections_that_were_accepted_but_not_served_end_with_the_loop(driver: str) -> None:
    loop = ringloop.EventLoop(drivers.make(driver))
    calls = 0

    def factory() -> asyncio.Protocol:
        nonlocal calls
        calls += 1
        raise SystemExit

    server = loop.run_until_complete(loop.create_server(factory, "127.0.0.1", 0))
    clients = [socket.create_connection(address_of(server)) for _ in range(5)]
    with pytest.raises(SystemExit):
        loop.run_forever()
    assert calls == 1
    loop.close()
    with pytest.warns(ResourceWarning, match="unclosed"):  # the listening socket's
        del loop, server
        gc.collect()
    for client in clients:
        client.settimeout(TIMEOUT)
        with client, contextlib.suppress(ConnectionResetError):
            assert client.recv(1) == b""


OUT_OF_FDS = """
    import asyncio, errno, os, resource, socket, sys, time
    import ringloop

    DELAY = asyncio.constants.ACCEPT_RETRY_DELAY = 0.1
    errors, served, ever = [], [], []

    class Greeter(asyncio.Protocol):
        def connection_made(self, transport):
            served.append(transport)
            ever.append(transport.get_extra_info("peername"))
            transport.write(b"hello")

    async def until(condition):
        async with asyncio.timeout(10):
            while not condition():
                await asyncio.sleep(0.01)

    async def main():
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: errors.append(
            (context["message"], context["exception"].errno, context["socket"].getsockname())))
        server = await loop.create_server(Greeter, "127.0.0.1", 0, start_serving=False)
        address = server.sockets[0].getsockname()
        clients = [socket.socket() for _ in range(20)]
        probe = os.dup(0)
        os.close(probe)
        limit = max(probe, *(client.fileno() for client in clients)) + 6
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
        await server.start_serving()  # io_uring looks at the limit when it is asked to accept
        for client in clients:
            client.connect(address)
        await until(lambda: errors)
        room = len(served)
        assert 1 <= room <= 6, room

        before, begun, cpu = len(errors), time.monotonic(), time.process_time()
        await asyncio.sleep(10 * DELAY)
        tries, cpu = len(errors) - before, time.process_time() - cpu
        passed = time.monotonic() - begun
        assert 1 <= tries <= passed / DELAY + 1, tries  # it goes on trying, but slowly
        assert cpu < 5 * DELAY, cpu
        assert len(served) == room

        while len(ever) < len(clients):
            while served:
                served.pop().close()
            count = len(ever)
            await until(lambda: len(ever) > count)
        assert sorted(ever) == sorted(client.getsockname() for client in clients)
        for _ in range(2):  # recv() stops the loop: what was written last must have left
            await asyncio.sleep(0)
        for client in clients:
            assert client.recv(10) == b"hello"
            client.close()
        server.close()
        print(set(errors) == {("socket.accept() out of system resource", errno.EMFILE, address)})

    ringloop.run(main(), driver=sys.argv[1])
"""


def test_out_of_file_descriptors_is_reported_and_survived(driver: str) -> None:
    child = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(OUT_OF_FDS), driver],
        capture_output=True,
        text=True,
        timeout=40,
        check=False,
    )
    assert child.returncode == 0, child.stderr
    assert child.stdout == "True\n"
