"""Datagram endpoints, over IPv4, IPv6 and Unix sockets: every one arrives whole, or not at all."""

from __future__ import annotations

import asyncio
import contextvars
import errno
import gc
import logging
import os
import random
import socket
import struct
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest

import drivers
import ringloop

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Run = Callable[..., Any]
    Address = tuple[str, int]

ON_FAULTY_DRIVERS = True

LONGEST_V4 = 65507
LONGEST_V6 = 65527


class Endpoint(asyncio.DatagramProtocol):
    """Keeps what it is told, in order, and lets tests wait for it."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.got: asyncio.Queue[tuple[bytes, Any]] = asyncio.Queue()
        self.errors: asyncio.Queue[Exception] = asyncio.Queue()
        self.lost: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.DatagramTransport)
        assert isinstance(transport, asyncio.Transport)  # as the standard library's
        self.events.append("made")
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        self.got.put_nowait((data, addr))

    def error_received(self, exc: Exception) -> None:
        self.errors.put_nowait(exc)

    def pause_writing(self) -> None:
        self.events.append("pause")

    def resume_writing(self) -> None:
        self.events.append("resume")

    def connection_lost(self, exc: Exception | None) -> None:
        self.events.append("lost")
        self.lost.set_result(exc)

    @property
    def name(self) -> Any:
        return self.transport.get_extra_info("sockname")

    async def close(self) -> None:
        self.transport.close()
        assert await self.lost is None


async def endpoint(loop: asyncio.AbstractEventLoop, **options: Any) -> Endpoint:
    _, protocol = await loop.create_datagram_endpoint(Endpoint, **options)
    return protocol


async def bound(loop: asyncio.AbstractEventLoop, host: str = "127.0.0.1") -> Endpoint:
    return await endpoint(loop, local_addr=(host, 0))


async def unix(loop: asyncio.AbstractEventLoop, local: Any = None, remote: Any = None) -> Endpoint:
    return await endpoint(loop, family=socket.AF_UNIX, local_addr=local, remote_addr=remote)


async def nobody(loop: asyncio.AbstractEventLoop) -> Address:
    """An address that refuses."""
    with socket.socket(type=socket.SOCK_DGRAM) as gone:
        gone.bind(("127.0.0.1", 0))
        address: Address = gone.getsockname()
    return address


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0)


# -- data --------------------------------------------------------------------------------


@pytest.mark.parametrize("host, longest", [("127.0.0.1", LONGEST_V4), ("::1", LONGEST_V6)])
def test_every_size_arrives_whole(
    run: Run, loop: ringloop.EventLoop, host: str, longest: int
) -> None:
    async def main() -> None:
        server = await bound(loop, host)
        client = await endpoint(loop, remote_addr=server.name[:2])
        pattern = random.Random(1).randbytes(longest)
        for n in (1, 0, 64, 1472, 9000, 65000, longest):
            client.transport.sendto(pattern[:n])
            assert await server.got.get() == (pattern[:n], client.name)
            server.transport.sendto(pattern[longest - n :], client.name)
            assert await client.got.get() == (pattern[longest - n :], server.name)
        await client.close()
        await server.close()
        assert client.events == server.events == ["made", "lost"]

    run(main())


def test_unix_datagrams_of_every_size(run: Run, loop: ringloop.EventLoop, tmp_path: Path) -> None:
    """Longer ones than UDP's, too: as long as the socket's buffer allows."""
    path = str(tmp_path / "socket")

    async def main() -> None:
        server = await unix(loop, local=path)
        bound_client = await unix(loop, local=path + "2")
        pattern = random.Random(2).randbytes(180_000)
        for n in (1, 0, 70_000, 180_000):
            bound_client.transport.sendto(pattern[:n], path)
            assert await server.got.get() == (pattern[:n], path + "2")
            server.transport.sendto(pattern[:n], path + "2")
            assert await bound_client.got.get() == (pattern[:n], path)
        unbound = await unix(loop, remote=path)
        unbound.transport.sendto(b"anonymous")
        assert await server.got.get() == (b"anonymous", None)
        for each in (unbound, bound_client, server):
            await each.close()

    run(main())


def test_abstract_unix_names(run: Run, loop: ringloop.EventLoop) -> None:
    name = f"\0ringloop-test-{os.getpid()}-{random.getrandbits(64)}".encode()

    async def main() -> None:
        server = await unix(loop)
        server.transport.get_extra_info("socket").family  # noqa: B018 - it is a socket
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        sock.bind(name)
        sock.setblocking(False)
        receiver = await endpoint(loop, sock=sock)
        assert receiver.name == name
        server.transport.sendto(b"by bytes", name)
        server.transport.sendto(b"by str", name.decode())
        assert await receiver.got.get() == (b"by bytes", None)
        assert await receiver.got.get() == (b"by str", None)
        receiver.transport.sendto(b"me", name)
        assert await receiver.got.get() == (b"me", name)
        await server.close()
        await receiver.close()

    run(main())


def test_a_pair_of_unnamed_unix_sockets(run: Run, loop: ringloop.EventLoop) -> None:
    async def main() -> None:
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        one, two = await endpoint(loop, sock=near), await endpoint(loop, sock=far)
        one.transport.sendto(b"ping")
        assert (await two.got.get())[0] == b"ping"
        two.transport.sendto(b"pong")
        assert (await one.got.get())[0] == b"pong"
        await one.close()
        two.transport.sendto(b"to nobody")
        assert isinstance(await two.errors.get(), ConnectionRefusedError)
        await two.close()

    run(main())


def test_names_of_peers_are_those_of_the_socket_module(run: Run, loop: ringloop.EventLoop) -> None:
    async def main() -> None:
        for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
            receiver = await bound(loop, host)
            with socket.socket(family, socket.SOCK_DGRAM) as sender:
                sender.bind((host, 0))
                sender.sendto(b"x", receiver.name)
                assert await receiver.got.get() == (b"x", sender.getsockname())
                # The other way round: with fewer and with more parts, and as a new object.
                sender.settimeout(5)
                for address in (sender.getsockname(), (host, sender.getsockname()[1])):
                    receiver.transport.sendto(b"y", address)
                    assert sender.recvfrom(10) == (b"y", receiver.name)
            await receiver.close()

    run(main())


def test_one_name_on_sockets_of_two_families(run: Run, loop: ringloop.EventLoop) -> None:
    """The very same tuple means one thing on one of them, and nothing on the other."""

    async def main() -> None:
        four, six = await bound(loop), await bound(loop, "::1")
        four.transport.sendto(b"x", four.name)
        assert await four.got.get() == (b"x", four.name)
        six.transport.sendto(b"x", four.name)
        assert isinstance(await six.errors.get(), socket.gaierror)  # the socket module's word
        six.transport.sendto(b"y", six.name)
        assert await six.got.get() == (b"y", six.name)
        await four.close()
        await six.close()

    run(main())


def test_more_peers_than_are_remembered(run: Run, loop: ringloop.EventLoop) -> None:
    async def main() -> None:
        server = await bound(loop)
        socks = [socket.socket(type=socket.SOCK_DGRAM) for _ in range(400)]
        for turn in range(2):
            for i, sock in enumerate(socks):
                sock.sendto(b"%d" % (1000 * turn + i), server.name)
                data, address = await server.got.get()
                assert data == b"%d" % (1000 * turn + i)
                assert address[1] == sock.getsockname()[1]
                server.transport.sendto(data, address)
            for i, sock in enumerate(socks):
                sock.settimeout(5)
                assert sock.recv(10) == b"%d" % (1000 * turn + i)
        for sock in socks:
            sock.close()
        await server.close()

    run(main())


def test_host_names_are_resolved_in_their_turn(run: Run, loop: ringloop.EventLoop) -> None:
    async def main() -> None:
        server, client = await bound(loop), await bound(loop)
        port = server.name[1]
        for i in range(30):
            client.transport.sendto(b"%d" % i, ("localhost" if i % 3 else "127.0.0.1", port))
        assert [(await server.got.get())[0] for _ in range(30)] == [b"%d" % i for i in range(30)]
        client.transport.sendto(b"x", ("::1", port))
        assert isinstance(await client.errors.get(), socket.gaierror)
        client.transport.sendto(b"still here", server.name)
        assert (await server.got.get())[0] == b"still here"
        await client.close()
        await server.close()

    run(main())


def test_a_burst_is_in_order_and_uncorrupted(run: Run, loop: ringloop.EventLoop) -> None:
    """The kernel may drop what the receiver is too slow for, but nothing else happens."""

    async def main() -> None:
        server, client = await bound(loop), await bound(loop)
        text = random.Random(3).randbytes(5000)
        for i in range(5000):
            client.transport.sendto(struct.pack("!I", i) + text[: i % 700], server.name)
            if i % 1000 == 0:
                await asyncio.sleep(0)
        last, count = -1, 0
        while True:
            if server.got.empty():
                client.transport.sendto(b"end", server.name)  # dropped while there is no room
            data, address = await server.got.get()
            if data == b"end":
                break
            number = struct.unpack_from("!I", data)[0]
            assert number > last
            assert data[4:] == text[: number % 700]
            assert address == client.name
            last, count = number, count + 1
        await client.close()
        assert count >= 100
        await server.close()

    run(main())


def test_a_flood_leaves_others_their_turn(run: Run, loop: ringloop.EventLoop) -> None:
    async def main() -> None:
        server = await bound(loop)
        with socket.socket(type=socket.SOCK_DGRAM) as sender:
            for _ in range(150):
                sender.sendto(b"x", server.name)
        seen = []
        while server.got.qsize() < 150:
            await asyncio.sleep(0)
            seen.append(server.got.qsize())
        assert len(set(seen)) >= 4, "all of it was told at once"
        await server.close()

    run(main())


def test_bytearrays_may_change_after_sendto(run: Run, loop: ringloop.EventLoop) -> None:
    async def main() -> None:
        server, client = await bound(loop), await bound(loop)
        data = bytearray(b"before")
        client.transport.sendto(data, server.name)
        data[:] = b"after!"
        client.transport.sendto(memoryview(data)[::2], server.name)
        assert (await server.got.get())[0] == b"before"
        assert (await server.got.get())[0] == b"atr"
        await client.close()
        await server.close()

    run(main())


def test_broadcast(run: Run, loop: ringloop.EventLoop) -> None:
    async def main() -> None:
        receiver = await endpoint(loop, local_addr=("0.0.0.0", 0), allow_broadcast=True)
        port = receiver.name[1]
        allowed = await endpoint(loop, local_addr=("127.0.0.1", 0), allow_broadcast=True)
        allowed.transport.sendto(b"all of you", ("127.255.255.255", port))
        assert await receiver.got.get() == (b"all of you", allowed.name)
        forbidden = await bound(loop)
        forbidden.transport.sendto(b"all of you", ("127.255.255.255", port))
        assert isinstance(await forbidden.errors.get(), PermissionError)
        for each in (receiver, allowed, forbidden):
            await each.close()

    run(main())


def test_two_endpoints_with_reuse_port(run: Run, loop: ringloop.EventLoop) -> None:
    async def main() -> None:
        one = await endpoint(loop, local_addr=("127.0.0.1", 0), reuse_port=True)
        two = await endpoint(loop, local_addr=one.name, reuse_port=True)
        senders = [socket.socket(type=socket.SOCK_DGRAM) for _ in range(40)]
        for i, sender in enumerate(senders):
            sender.sendto(b"%d" % i, one.name)
        await until(lambda: one.got.qsize() + two.got.qsize() == 40)
        got = [e.got.get_nowait()[0] for e in (one, two) for _ in range(e.got.qsize())]
        assert sorted(got) == sorted(b"%d" % i for i in range(40))
        for sender in senders:
            sender.close()
        await one.close()
        await two.close()

    run(main())


def test_a_family_that_only_the_socket_module_knows(run: Run, loop: ringloop.EventLoop) -> None:
    """Netlink: ask the kernel for its interfaces."""

    async def main() -> None:
        sock = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM, 0)
        sock.bind((0, 0))
        sock.setblocking(False)
        client = await endpoint(loop, sock=sock)
        get_link, request_dump, new_link = 18, 0x301, 16
        header = struct.pack("=IHHII", 32, get_link, request_dump, 7, 0)
        client.transport.sendto(header + bytes(16), (0, 0))
        data, address = await client.got.get()
        assert address == (0, 0)
        assert struct.unpack_from("=IHHI", data)[1::2] == (new_link, 7)
        await client.close()

    run(main())


# -- errors ------------------------------------------------------------------------------


def test_refused_on_a_connected_socket(run: Run, loop: ringloop.EventLoop) -> None:
    """Each datagram is refused on its own, and the endpoint lives on."""

    async def main() -> None:
        address = await nobody(loop)
        client = await endpoint(loop, remote_addr=address)
        for _ in range(3):
            client.transport.sendto(b"x")
            assert isinstance(await client.errors.get(), ConnectionRefusedError)
        for _ in range(6):  # every second send hears of the one before
            client.transport.sendto(b"x")
        for _ in range(3):
            assert isinstance(await client.errors.get(), ConnectionRefusedError)
        with socket.socket(type=socket.SOCK_DGRAM) as back:
            back.bind(address)
            back.settimeout(5)
            for data in (b"now?", b"now!"):
                client.transport.sendto(data)
            assert back.recv(10).startswith(b"now")
        await client.close()

    run(main())


def test_one_refused_datagram_does_not_stop_the_others(run: Run, loop: ringloop.EventLoop) -> None:
    async def main() -> None:
        server, client = await bound(loop), await bound(loop)
        for i in range(100):
            client.transport.sendto(b"%d" % i, server.name)
            if i % 10 == 3:
                client.transport.sendto(bytes(65508), server.name)  # EMSGSIZE
            if i % 10 == 7:
                client.transport.sendto(b"", ("255.255.255.255", 9))  # EACCES
        assert [(await server.got.get())[0] for _ in range(100)] == [b"%d" % i for i in range(100)]
        numbers = [getattr(await client.errors.get(), "errno", None) for _ in range(20)]
        assert numbers == [errno.EMSGSIZE, errno.EACCES] * 10
        assert server.got.empty()
        await client.close()
        await server.close()

    run(main())


def test_bad_arguments(run: Run, loop: ringloop.EventLoop) -> None:
    async def main() -> None:
        server = await bound(loop)
        client = await endpoint(loop, remote_addr=server.name)
        for data in ("text", None, 3, [b"x"]):
            with pytest.raises(TypeError, match="bytes-like"):
                client.transport.sendto(data)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="Invalid address: must be None or"):
            client.transport.sendto(b"x", ("127.0.0.1", 1))
        client.transport.sendto(b"x", tuple(server.name))
        assert (await server.got.get())[0] == b"x"
        await client.close()
        await server.close()

    run(main())


@pytest.mark.parametrize("address", [None, 3, ("127.0.0.1",), ("127.0.0.1", 70000), (1, 2)])
def test_an_impossible_address_is_fatal_as_in_asyncio(
    run: Run, loop: ringloop.EventLoop, address: Any
) -> None:
    async def main() -> None:
        client = await bound(loop)
        reports: list[dict[str, Any]] = []
        loop.set_exception_handler(lambda _, context: reports.append(context))
        client.transport.sendto(b"x", address)
        assert isinstance(await client.lost, (TypeError, OverflowError))
        assert reports[0]["message"] == "Fatal write error on datagram transport"
        assert reports[0]["transport"] is client.transport
        assert reports[0]["protocol"] is client

    run(main())


def test_an_exception_in_datagram_received_is_reported_and_survived(
    run: Run, loop: ringloop.EventLoop
) -> None:
    async def main() -> None:
        reports: list[dict[str, Any]] = []
        loop.set_exception_handler(lambda _, context: reports.append(context))

        class Failing(Endpoint):
            def datagram_received(self, data: bytes, addr: Any) -> None:
                if data == b"1":
                    raise ZeroDivisionError
                super().datagram_received(data, addr)

        _, client = await loop.create_datagram_endpoint(Failing, local_addr=("127.0.0.1", 0))
        for i in range(4):
            client.transport.sendto(b"%d" % i, client.name)
        assert [(await client.got.get())[0] for _ in range(3)] == [b"0", b"2", b"3"]
        assert len(reports) == 1
        assert isinstance(reports[0]["exception"], ZeroDivisionError)
        assert reports[0]["transport"] is client.transport
        assert not client.transport.is_closing()
        await client.close()

    run(main())


def test_an_exception_in_error_received_is_survived(run: Run, loop: ringloop.EventLoop) -> None:
    """As in asyncio, the caller of sendto() gets it; where there is no caller, the handler."""

    class Failing(Endpoint):
        def error_received(self, exc: Exception) -> None:
            self.errors.put_nowait(exc)
            raise ZeroDivisionError

    async def main() -> None:
        reports: list[dict[str, Any]] = []
        loop.set_exception_handler(lambda _, context: reports.append(context))
        _, client = await loop.create_datagram_endpoint(Failing, local_addr=("127.0.0.1", 0))
        with pytest.raises(ZeroDivisionError):
            client.transport.sendto(bytes(65508), client.name)
        assert reports == []
        client.transport.sendto(b"x", client.name)
        assert (await client.got.get())[0] == b"x"
        await client.close()
        _, client = await loop.create_datagram_endpoint(Failing, remote_addr=await nobody(loop))
        client.transport.sendto(b"x")
        await client.errors.get()
        await until(lambda: bool(reports))
        assert isinstance(reports[0]["exception"], ZeroDivisionError)
        await client.close()

    run(main())


def test_keyboard_interrupt_in_a_callback_leaves_the_rest_for_later(
    run: Run, loop: ringloop.EventLoop
) -> None:
    client = run(bound(loop))
    for i in range(5):
        client.transport.sendto(b"%d" % i, client.name)
    got = []

    def receive(data: bytes, addr: Any) -> None:
        got.append(data)
        if data == b"1":
            raise KeyboardInterrupt

    client.datagram_received = receive
    with pytest.raises(KeyboardInterrupt):
        run(asyncio.sleep(10))
    assert got == [b"0", b"1"]
    run(until(lambda: len(got) == 5))
    assert got == [b"%d" % i for i in range(5)]
    run(client.close())


# -- flow control --------------------------------------------------------------------------


async def stuffed(loop: asyncio.AbstractEventLoop, path: str) -> tuple[socket.socket, Endpoint]:
    """A receiver that does not receive, and an endpoint whose socket is full."""
    receiver = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    receiver.bind(path)
    receiver.setblocking(False)
    client = await unix(loop, remote=path)
    client.transport.set_write_buffer_limits(high=1000, low=300)
    for i in range(10_000):
        client.transport.sendto(b"%d" % i)
        if client.events[-1] == "pause":
            break
    return receiver, client


def test_water_marks_and_order_on_a_full_socket(
    run: Run, loop: ringloop.EventLoop, tmp_path: Path
) -> None:
    async def main() -> None:
        receiver, client = await stuffed(loop, str(tmp_path / "socket"))
        assert client.events == ["made", "pause"]
        assert client.transport.get_write_buffer_size() > 1000
        assert client.transport.get_write_buffer_limits() == (300, 1000)
        got: list[bytes] = []
        while client.events[-1] == "pause":
            try:
                got.append(receiver.recv(100))
            except BlockingIOError:
                await asyncio.sleep(0)
        assert client.events == ["made", "pause", "resume"]
        assert client.transport.get_write_buffer_size() <= 300
        client.transport.sendto(b"last")
        while not got or got[-1] != b"last":
            try:
                got.append(receiver.recv(100))
            except BlockingIOError:
                await asyncio.sleep(0)
        assert got[:-1] == [b"%d" % i for i in range(len(got) - 1)]
        assert client.transport.get_write_buffer_size() == 0
        await client.close()
        receiver.close()

    run(main())


def test_close_sends_what_is_queued(run: Run, loop: ringloop.EventLoop, tmp_path: Path) -> None:
    async def main() -> None:
        receiver, client = await stuffed(loop, str(tmp_path / "socket"))
        client.transport.close()
        client.transport.close()
        assert client.transport.is_closing()
        for _ in range(5):
            await asyncio.sleep(0)
        assert not client.lost.done()
        got = []
        while not client.lost.done():
            try:
                got.append(receiver.recv(100))
            except BlockingIOError:
                await asyncio.sleep(0)
        assert client.lost.result() is None
        try:
            while True:
                got.append(receiver.recv(100))
        except BlockingIOError:
            pass
        assert got == [b"%d" % i for i in range(len(got))]
        receiver.close()

    run(main())


def test_abort_drops_what_is_queued(run: Run, loop: ringloop.EventLoop, tmp_path: Path) -> None:
    async def main() -> None:
        receiver, client = await stuffed(loop, str(tmp_path / "socket"))
        client.transport.abort()
        assert client.transport.get_write_buffer_size() == 0
        assert await client.lost is None
        client.transport.abort()
        receiver.close()
        fresh = await bound(loop)
        fresh.transport.sendto(b"x", fresh.name)
        fresh.transport.abort()
        await fresh.lost
        assert fresh.got.empty()
        assert fresh.events == ["made", "lost"]

    run(main())


def test_a_full_receiver_of_an_unconnected_unix_socket(
    run: Run, loop: ringloop.EventLoop, tmp_path: Path
) -> None:
    """The kernel calls the sender writable all the while."""
    path = str(tmp_path / "socket")

    async def main() -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
            receiver.bind(path)
            receiver.setblocking(False)
            client = await unix(loop)
            count = 0
            while client.transport.get_write_buffer_size() < 100:
                client.transport.sendto(b"%d" % count, path)
                count += 1
            got: list[bytes] = []
            while len(got) < count:
                try:
                    got.append(receiver.recv(100))
                except BlockingIOError:
                    await asyncio.sleep(0)
            assert got == [b"%d" % i for i in range(count)]
            assert client.transport.get_write_buffer_size() == 0
            while client.transport.get_write_buffer_size() < 100:
                client.transport.sendto(b"x", path)
            client.transport.abort()
            assert await client.lost is None

    run(main())


def test_an_error_behind_a_full_socket(run: Run, loop: ringloop.EventLoop, tmp_path: Path) -> None:
    """What waits is sent, but for the one that is refused; its callback may send, too."""

    async def main() -> None:
        receiver, client = await stuffed(loop, str(tmp_path / "socket"))

        def answer(exc: Exception) -> None:
            client.errors.put_nowait(exc)
            client.transport.sendto(b"from the callback")

        client.error_received = answer  # type: ignore[method-assign]
        client.transport.sendto(bytes(2_000_000))
        client.transport.sendto(b"after")
        got = [b""]
        while got[-1] != b"from the callback":
            try:
                got.append(receiver.recv(100))
            except BlockingIOError:
                await asyncio.sleep(0)
        assert got[-2] == b"after"
        assert client.errors.get_nowait().errno == errno.EMSGSIZE  # type: ignore[attr-defined]
        await client.close()
        receiver.close()

    run(main())


def test_pause_reading(run: Run, loop: ringloop.EventLoop) -> None:
    async def main() -> None:
        server = await bound(loop)
        transport: Any = server.transport
        with socket.socket(type=socket.SOCK_DGRAM) as sender:
            for _ in range(3):
                transport.pause_reading()
                assert not transport.is_reading()
                sender.sendto(b"x", server.name)
                for _ in range(5):
                    await asyncio.sleep(0)
                assert server.got.empty()
                transport.resume_reading()
                assert transport.is_reading()
                assert (await server.got.get())[0] == b"x"

            def pause(data: bytes, addr: Any) -> None:
                transport.pause_reading()
                del server.datagram_received
                server.got.put_nowait((data, addr))

            server.datagram_received = pause  # type: ignore[method-assign]
            for i in range(3):
                sender.sendto(b"%d" % i, server.name)
            assert (await server.got.get())[0] == b"0"
            for _ in range(5):
                await asyncio.sleep(0)
            assert server.got.empty()
            transport.resume_reading()
            assert [(await server.got.get())[0] for _ in range(2)] == [b"1", b"2"]
        await server.close()

    run(main())


# -- life ----------------------------------------------------------------------------------


def test_close_in_a_callback_ends_the_batch(run: Run, loop: ringloop.EventLoop) -> None:
    async def main() -> None:
        server = await bound(loop)
        got = []

        def receive(data: bytes, addr: Any) -> None:
            got.append(data)
            server.transport.sendto(b"bye", addr)
            server.transport.close()

        server.datagram_received = receive  # type: ignore[method-assign]
        with socket.socket(type=socket.SOCK_DGRAM) as sender:
            sender.settimeout(5)
            for _ in range(10):
                sender.sendto(b"x", server.name)
            assert await server.lost is None
            assert got == [b"x"]
            assert sender.recv(10) == b"bye"

    run(main())


@pytest.mark.parametrize("end", ["close", "abort"])
@pytest.mark.parametrize("queued", [False, True])
def test_the_port_is_free_once_the_connection_is_lost(
    run: Run, loop: ringloop.EventLoop, end: str, queued: bool
) -> None:
    async def main() -> None:
        server = await bound(loop)
        address, sock = server.name, server.transport.get_extra_info("socket")
        if queued:
            server.transport.sendto(b"x", address)
        getattr(server.transport, end)()
        await server.lost
        assert sock.fileno() == -1
        again = await endpoint(loop, local_addr=address)
        assert again.name == address
        await again.close()

    run(main())


def test_close_before_the_first_iteration(run: Run, loop: ringloop.EventLoop) -> None:
    async def main() -> None:
        class Hasty(Endpoint):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                super().connection_made(transport)
                self.transport.sendto(b"x", self.name)
                transport.close()

        _, hasty = await loop.create_datagram_endpoint(Hasty, local_addr=("127.0.0.1", 0))
        assert await hasty.lost is None
        assert hasty.events == ["made", "lost"]

    run(main())


def test_sendto_after_the_end_is_dropped_and_logged(
    run: Run, loop: ringloop.EventLoop, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        server = await bound(loop)
        client = await endpoint(loop, remote_addr=server.name)
        await client.close()
        with caplog.at_level(logging.WARNING, "asyncio"):
            for _ in range(5):
                client.transport.sendto(b"x")
        assert "socket.send() raised exception." in caplog.text
        assert client.transport.get_write_buffer_size() == 0
        await server.close()
        assert server.got.empty()

    run(main())


def test_what_a_transport_says_of_itself(run: Run, loop: ringloop.EventLoop) -> None:
    async def main() -> None:
        server = await bound(loop)
        client = await endpoint(loop, remote_addr=server.name)
        info = client.transport.get_extra_info
        assert info("peername") == server.name
        assert info("sockname")[0] == "127.0.0.1"
        assert info("socket").fileno() > 0
        assert info("nothing", 5) == 5
        assert server.transport.get_extra_info("peername", 5) is None
        fd = info("socket").fileno()
        assert repr(client.transport) == (
            f"<DatagramTransport fd={fd} read=polling write=<idle, bufsize=0>>"
        )
        with pytest.raises(RuntimeError, match="is used by transport"):
            loop.add_reader(fd, print)
        assert client.transport.get_protocol() is client
        client.transport.close()
        assert "closing" in repr(client.transport)
        await client.lost
        assert repr(client.transport) == "<DatagramTransport closed>"
        await server.close()

    run(main())


def test_another_protocol_takes_over(run: Run, loop: ringloop.EventLoop) -> None:
    async def main() -> None:
        server = await bound(loop)
        second = Endpoint()
        server.transport.set_protocol(second)
        server.transport.sendto(b"x", server.name)
        assert (await second.got.get())[0] == b"x"
        server.transport.close()
        assert await second.lost is None

    run(main())


def test_callbacks_run_in_the_context_of_the_creation(run: Run, loop: ringloop.EventLoop) -> None:
    variable = contextvars.ContextVar("variable", default="outside")

    class Seeing(Endpoint):
        def datagram_received(self, data: bytes, addr: Any) -> None:
            self.got.put_nowait((data, variable.get()))

    async def main() -> None:
        variable.set("creation")
        _, server = await loop.create_datagram_endpoint(Seeing, local_addr=("127.0.0.1", 0))
        variable.set("later")
        server.transport.sendto(b"x", server.name)
        assert await server.got.get() == (b"x", "creation")
        await server.close()

    run(main())


def test_sendto_sends_at_once(run: Run, loop: ringloop.EventLoop) -> None:
    """Code that blocks the loop afterwards, or leaves it, has sent what it meant to."""

    async def main() -> None:
        client = await bound(loop)
        with socket.socket(type=socket.SOCK_DGRAM) as receiver:
            receiver.bind(("127.0.0.1", 0))
            receiver.settimeout(5)
            for host in ("127.0.0.1", "localhost"):
                client.transport.sendto(b"x", (host, receiver.getsockname()[1]))
                assert client.transport.get_write_buffer_size() == 0
                assert receiver.recv(10) == b"x"
        client.transport.sendto(bytes(65508), client.name)
        assert client.errors.qsize() == 1
        await client.close()

    run(main())


def test_an_unclosed_transport_is_closed_though_warnings_are_errors(
    run: Run, loop: ringloop.EventLoop, monkeypatch: pytest.MonkeyPatch
) -> None:
    raised: list[str] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda args: raised.append(str(args.exc_value)))

    async def main() -> None:
        with socket.socket(type=socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            sock.bind(("127.0.0.1", 0))
            transport, _ = await loop.create_datagram_endpoint(asyncio.DatagramProtocol, sock=sock)
            transport.pause_reading()  # type: ignore[attr-defined]
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                del transport, _
                while not raised:
                    await asyncio.sleep(0)  # the watch's last completion
                    gc.collect()
            assert sock.fileno() == -1
        assert raised[0].startswith("unclosed transport <DatagramTransport fd=")

    run(main())


def test_an_unclosed_transport_warns_and_closes_its_socket(driver: str) -> None:
    loop = ringloop.EventLoop(drivers.make(driver))
    server = loop.run_until_complete(bound(loop))
    fd = server.transport.get_extra_info("socket").fileno()
    address = server.name
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loop.close()
        del server
        gc.collect()
    assert any("unclosed transport <DatagramTransport fd=" in str(w.message) for w in caught)
    with pytest.raises(OSError):
        os.fstat(fd)
    with socket.socket(type=socket.SOCK_DGRAM) as sock:
        sock.bind(address)


def test_many_endpoints_come_and_go(run: Run, loop: ringloop.EventLoop) -> None:
    """The fixture looks for what is left: operations, fds, warnings."""

    async def one(i: int) -> None:
        server = await bound(loop)
        client = await endpoint(loop, remote_addr=server.name)
        client.transport.sendto(b"%d" % i)
        assert (await server.got.get())[0] == b"%d" % i
        for each in (client, server):
            if i % 2:
                each.transport.sendto(b"more", None if each is client else client.name)
            (each.transport.abort if i % 3 else each.transport.close)()
        await client.lost
        await server.lost

    async def main() -> None:
        for turn in range(3):
            await asyncio.gather(*(one(turn * 40 + i) for i in range(40)))

    run(main())


def test_loops_in_two_threads_do_not_mix_datagrams(driver: str) -> None:
    """The receive buffers are shared by all of a process."""

    def echo(seed: int) -> int:
        async def main() -> int:
            loop = asyncio.get_running_loop()
            server, client = await bound(loop), await bound(loop)
            choose = random.Random(seed)
            right = 0
            for _ in range(20):
                sizes = [choose.randrange(20_000) for _ in range(8)]
                expected = [choose.randbytes(size) for size in sizes]
                for data in expected:
                    client.transport.sendto(data, server.name)
                for data in expected:
                    right += await server.got.get() == (data, client.name)
            await client.close()
            await server.close()
            return right

        with asyncio.Runner(loop_factory=lambda: ringloop.EventLoop(drivers.make(driver))) as it:
            return it.run(asyncio.wait_for(main(), 20))

    with ThreadPoolExecutor(2) as threads:
        assert list(threads.map(echo, (1, 2))) == [160, 160]


def test_a_loop_that_moved_to_another_thread_goes_on_receiving(
    run: Run, loop: ringloop.EventLoop
) -> None:
    server = run(bound(loop))
    with ThreadPoolExecutor(1) as threads:
        server.transport.sendto(b"x", server.name)
        assert threads.submit(run, server.got.get()).result()[0] == b"x"
    server.transport.sendto(b"y", server.name)
    assert run(server.got.get())[0] == b"y"
    run(server.close())


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_forked_child_leaves_the_parents_endpoint_alone(
    run: Run, loop: ringloop.EventLoop
) -> None:
    async def main() -> None:
        server = await bound(loop)
        server.transport.sendto(b"before", server.name)
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                server.transport.abort()
            except RuntimeError as exc:
                status = 0 if "fork" in str(exc) else 2
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert (await server.got.get())[0] == b"before"
        server.transport.sendto(b"alive", server.name)
        assert (await server.got.get())[0] == b"alive"
        await server.close()

    run(main())


def test_memory_stays_as_it_is(run: Run, loop: ringloop.EventLoop) -> None:
    """No reference to data, addresses or errors is lost or left."""

    async def main() -> None:
        server, client = await bound(loop), await bound(loop)

        async def turn() -> None:
            for i in range(50):
                client.transport.sendto(b"%100d" % i, server.name)
                client.transport.sendto(bytes(65508), server.name)
            for _ in range(50):
                await server.got.get()
                await client.errors.get()

        for _ in range(3):
            await turn()
        gc.collect()
        before = sys.getallocatedblocks()
        for _ in range(20):
            await turn()
        gc.collect()
        assert sys.getallocatedblocks() - before < 300
        await client.close()
        await server.close()

    run(main())
