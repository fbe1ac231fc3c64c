"""What programs and tests written for asyncio's own loop look at, or replace, works here, too."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from typing import TYPE_CHECKING, Any
from unittest import mock

import pytest

import ringloop
from certificates import Authority

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Run = Callable[..., Any]

ON_FAULTY_DRIVERS = True


async def connect(
    loop: ringloop.EventLoop, protocol: asyncio.Protocol | None = None
) -> tuple[asyncio.Transport, socket.socket]:
    """A transport and the blocking socket at its other end."""
    near, far = socket.socketpair()
    far.settimeout(10)
    transport, _ = await loop.create_connection(lambda: protocol or asyncio.Protocol(), sock=near)
    return transport, far


def everything(sock: socket.socket) -> bytes:
    pieces = list(iter(lambda: sock.recv(65536), b""))
    sock.close()
    return b"".join(pieces)


# -- attributes ----------------------------------------------------------------------


def test_a_method_of_a_transport_can_be_replaced(run: Run, loop: ringloop.EventLoop) -> None:
    async def main() -> None:
        transport, far = await connect(loop)
        with mock.patch.object(transport, "write") as write:
            transport.write(b"not sent")
        write.assert_called_once_with(b"not sent")
        transport.write(b"sent")
        transport.close()
        assert await loop.run_in_executor(None, everything, far) == b"sent"

    run(main())


def test_attributes_of_every_kind_of_transport_can_be_set(
    run: Run, loop: ringloop.EventLoop, tmp_path: Path
) -> None:
    context = Authority(tmp_path).server()

    async def main() -> None:
        stream, far = await connect(loop)
        datagram, _ = await loop.create_datagram_endpoint(
            asyncio.DatagramProtocol, local_addr=("127.0.0.1", 0)
        )
        r, w = os.pipe()
        reading, _ = await loop.connect_read_pipe(asyncio.Protocol, os.fdopen(r, "rb", 0))
        writing, _ = await loop.connect_write_pipe(asyncio.Protocol, os.fdopen(w, "wb", 0))
        handshake = asyncio.ensure_future(
            loop.start_tls(stream, asyncio.Protocol(), context, server_side=True)
        )
        await asyncio.sleep(0)
        tls = stream.get_protocol()
        assert tls._ssl_protocol._sslcontext is context  # type: ignore[attr-defined]
        for transport in (stream, datagram, reading, writing, tls):
            transport.note = transport  # type: ignore[union-attr] # a cycle, which must not leak
            assert transport.note is transport  # type: ignore[union-attr]
        far.close()
        with pytest.raises(ConnectionError):
            await handshake
        for other in (datagram, reading, writing):
            other.close()
        await asyncio.sleep(0.01)

    run(main())


def test_start_tls_gives_nothing_for_a_transport_that_was_closed(
    run: Run, loop: ringloop.EventLoop, tmp_path: Path
) -> None:
    context = Authority(tmp_path).server()

    async def main() -> None:
        for end in ("close", "abort"):
            transport, far = await connect(loop)
            getattr(transport, end)()
            protocol = asyncio.Protocol()
            assert await loop.start_tls(transport, protocol, context, server_side=True) is None
            far.close()

    run(main())


# -- small writes --------------------------------------------------------------------


def test_a_small_write_is_not_in_the_buffer_when_one_looks(
    run: Run, loop: ringloop.EventLoop
) -> None:
    async def main() -> None:
        transport, far = await connect(loop)
        for _ in range(3):
            transport.write(b"small")
            assert transport.get_write_buffer_size() == 0
            assert far.recv(100) == b"small"
        transport.write(b"as ever")
        transport.close()
        assert await loop.run_in_executor(None, everything, far) == b"as ever"

    run(main())


def test_what_a_full_socket_does_not_take_is_in_the_buffer_and_arrives_in_order(
    run: Run, loop: ringloop.EventLoop
) -> None:
    async def main() -> None:
        transport, far = await connect(loop)
        sent = bytearray()
        for i in range(100_000):
            piece = b"%08d" % i * 20
            transport.write(piece)
            sent += piece
            if transport.get_write_buffer_size() > 1000:
                break
        else:
            pytest.fail("the socket took everything")
        received = loop.run_in_executor(None, everything, far)
        while transport.get_write_buffer_size():
            await asyncio.sleep(0)
        transport.close()
        assert await received == sent

    run(main())


@pytest.mark.parametrize("eof", [False, True])
def test_looking_at_the_buffer_does_not_keep_it_from_ending(
    run: Run, loop: ringloop.EventLoop, *, eof: bool
) -> None:
    async def main() -> None:
        transport, far = await connect(loop)
        transport.write(b"the last")
        if eof:
            transport.write_eof()
        else:
            transport.close()
        assert transport.get_write_buffer_size() == 0
        assert await loop.run_in_executor(None, everything, far) == b"the last"
        transport.close()
        assert transport.get_write_buffer_size() == 0

    run(main())


# -- abort ---------------------------------------------------------------------------


def test_a_small_write_before_abort_arrives(run: Run, loop: ringloop.EventLoop) -> None:
    async def main() -> None:
        transport, far = await connect(loop)
        transport.write(b"the last")
        transport.abort()
        transport.write(b"too late")
        assert await loop.run_in_executor(None, everything, far) == b"the last"

    run(main())


def test_a_small_write_before_an_error_in_the_protocol_arrives(
    run: Run, loop: ringloop.EventLoop
) -> None:
    class Fails(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = transport

        def data_received(self, data: bytes) -> None:
            assert isinstance(self.transport, asyncio.Transport)
            self.transport.write(b"bad request")
            raise ValueError(data)

    async def main() -> None:
        errors: list[Any] = []
        loop.set_exception_handler(lambda _, context: errors.append(context["exception"]))
        _, far = await connect(loop, Fails())
        far.send(b"?")
        assert await loop.run_in_executor(None, everything, far) == b"bad request"
        assert [type(error) for error in errors] == [ValueError]

    run(main())


def test_what_a_full_socket_does_not_take_is_dropped_by_abort(
    run: Run, loop: ringloop.EventLoop
) -> None:
    async def main() -> None:
        transport, far = await connect(loop)
        transport.write(bytes(1 << 20))
        kept = transport.get_write_buffer_size()
        assert kept
        transport.write(b"small")
        transport.abort()
        received = await loop.run_in_executor(None, everything, far)
        assert len(received) <= (1 << 20) - kept + 1
        assert not any(received)

    run(main())


@pytest.mark.parametrize("blocked", [False, True], ids=["idle", "sending"])
def test_the_socket_is_closed_one_iteration_after_abort(
    run: Run, loop: ringloop.EventLoop, *, blocked: bool
) -> None:
    async def main() -> None:
        transport, far = await connect(loop)
        sock = transport.get_extra_info("socket")
        fd = sock.fileno()
        if blocked:
            transport.write(bytes(1 << 20))
        await asyncio.sleep(0.01)
        transport.abort()
        await asyncio.sleep(0)
        assert sock.fileno() == -1
        # Its number belongs to somebody else at once, whom late completions do not reach.
        second, other = await connect(loop)
        assert second.get_extra_info("socket").fileno() == fd
        other.send(b"for the second")
        await loop.run_in_executor(None, everything, far)  # the kernel has let go of it
        second.write(b"from the second")
        second.close()
        assert await loop.run_in_executor(None, everything, other) == b"from the second"

    run(main())


# -- the clock -----------------------------------------------------------------------


def test_timers_go_by_a_time_that_was_replaced(run: Run, loop: ringloop.EventLoop) -> None:
    async def main() -> None:
        seen: list[str] = []
        now = loop.time()
        start = time.monotonic()
        with mock.patch.object(loop, "time", return_value=now) as clock:
            loop.call_later(4, seen.append, "later")
            loop.call_at(now + 1, seen.append, "at")
            for expected in ([], ["at"], ["at", "later"]):
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                assert seen == expected
                clock.return_value += 2
        assert time.monotonic() - start < 1
        # The real one is back.
        loop.call_later(0.01, seen.append, "soon")
        await asyncio.sleep(0.02)
        assert seen[2:] == ["soon"]

    run(main())


class Skips(ringloop.EventLoop):
    """Its clock can be moved on."""

    skipped = 0.0

    def time(self) -> float:
        return super().time() + self.skipped


@pytest.mark.parametrize("made", ["as it is", "by __class__"])
def test_timers_go_by_the_time_of_a_subclass(driver: str, made: str) -> None:
    class Plain(ringloop.EventLoop):
        pass

    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, Skips)
        seen: list[str] = []
        loop.call_later(5, seen.append, "later")
        await asyncio.sleep(0.01)
        assert not seen
        loop.skipped = 5
        await asyncio.sleep(0.01)
        assert seen == ["later"]

    if driver not in ("uring", "epoll"):
        pytest.skip("the clock has no part in what this driver gets wrong")
    loop = Skips(driver) if made == "as it is" else Plain(driver)
    loop.__class__ = Skips
    try:
        loop.run_until_complete(asyncio.wait_for(main(), 60))
    finally:
        loop.close()


def test_an_error_of_a_time_that_was_replaced_is_raised(driver: str) -> None:
    class Broken(ringloop.EventLoop):
        def time(self) -> float:
            raise ZeroDivisionError

    if driver not in ("uring", "epoll"):
        pytest.skip("the clock has no part in what this driver gets wrong")
    loop = Broken(driver)
    try:
        with pytest.raises(ZeroDivisionError):
            loop.call_later(1, print)
        loop.call_at(1, print)
        with pytest.raises(ZeroDivisionError):
            loop.run_forever()
    finally:
        loop.close()
