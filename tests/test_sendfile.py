"""loop.sendfile() and loop.sock_sendfile(): native where it can be, and what goes wrong."""

from __future__ import annotations

import asyncio
import io
import os
import random
import socket
from asyncio import SendfileNotAvailableError
from typing import TYPE_CHECKING, Any, BinaryIO

import pytest

from certificates import Contexts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import ringloop

    Run = Callable[..., Any]

ON_FAULTY_DRIVERS = True
TIMEOUT = 10
SIZE = 1_500_000  # more than the socket buffers below take, and no multiple of anything
DATA = random.Random(7).randbytes(SIZE)
Pair = tuple[socket.socket, socket.socket]


def tcp_pair() -> Pair:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.socket()
        near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
        near.connect(listener.getsockname())
        far, _ = listener.accept()
    return near, far


@pytest.fixture(params=[tcp_pair, socket.socketpair], ids=["tcp", "unix"])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    near, far = request.param()
    with near, far:
        near.setblocking(False)
        far.settimeout(TIMEOUT)
        yield near, far


@pytest.fixture
def file(tmp_path: Path) -> Iterator[BinaryIO]:
    path = tmp_path / "file"
    path.write_bytes(DATA)
    with path.open("rb") as opened:
        yield opened


def read_all(sock: socket.socket) -> bytes:
    pieces = []
    while piece := sock.recv(1 << 20):
        pieces.append(piece)
    return b"".join(pieces)


class Protocol(asyncio.Protocol):
    def __init__(self) -> None:
        self.received = b""
        self.flow: list[str] = []
        self.lost: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        self.received += data

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set_result(exc)

    def pause_writing(self) -> None:
        self.flow.append("pause")

    def resume_writing(self) -> None:
        self.flow.append("resume")


async def connected(
    loop: ringloop.EventLoop, sock: socket.socket
) -> tuple[asyncio.Transport, Protocol]:
    transport, protocol = await loop.create_connection(Protocol, sock=sock)
    return transport, protocol


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(TIMEOUT):
        while not condition():
            await asyncio.sleep(0)


@pytest.fixture
def native(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What each os.sendfile() sent; a test that does not use it must not see any."""
    calls: list[int] = []
    real = os.sendfile

    def counting(out: int, source: int, offset: int, count: int) -> int:
        sent = real(out, source, offset, count)
        calls.append(sent)
        return sent

    monkeypatch.setattr(os, "sendfile", counting)
    return calls


# -- what arrives --------------------------------------------------------------------


def expected_bytes(offset: int, count: int | None) -> bytes:
    return DATA[offset:] if count is None else DATA[offset : offset + count]


CUTS = [(0, None), (0, 1), (1, 1_000_000), (SIZE - 5, 100), (SIZE + 5, None), (4096, SIZE * 2)]


@pytest.mark.parametrize(("offset", "count"), CUTS)
def test_a_transport_sends_its_buffer_then_the_file_then_what_is_written_after(
    run: Run,
    loop: ringloop.EventLoop,
    pair: Pair,
    file: BinaryIO,
    native: list[int],
    offset: int,
    count: int | None,
) -> None:
    near, far = pair
    before = random.Random(8).randbytes(300_000)
    expected = expected_bytes(offset, count)

    async def main() -> None:
        transport, protocol = await connected(loop, near)
        reading = asyncio.create_task(asyncio.to_thread(read_all, far))
        transport.write(before)
        assert await loop.sendfile(transport, file, offset, count, fallback=False) == len(expected)
        transport.write(b"after")
        transport.close()
        assert await reading == before + expected + b"after"
        assert await protocol.lost is None

    run(main())
    assert sum(native) == len(expected)
    assert file.tell() == (offset + len(expected) if expected else 0)


@pytest.mark.parametrize(("offset", "count"), CUTS)
def test_a_socket_sends_the_file(
    run: Run,
    loop: ringloop.EventLoop,
    pair: Pair,
    file: BinaryIO,
    native: list[int],
    offset: int,
    count: int | None,
) -> None:
    near, far = pair
    expected = expected_bytes(offset, count)

    async def main() -> None:
        reading = asyncio.create_task(asyncio.to_thread(read_all, far))
        assert await loop.sock_sendfile(near, file, offset, count, fallback=False) == len(expected)
        near.shutdown(socket.SHUT_WR)
        assert await reading == expected

    run(main())
    assert sum(native) == len(expected)
    assert file.tell() == (offset + len(expected) if expected else 0)


def test_what_was_read_ahead_does_not_move_the_files_position(
    run: Run, loop: ringloop.EventLoop, pair: Pair, file: BinaryIO
) -> None:
    near, far = pair

    async def main() -> None:
        assert file.read(10) == DATA[:10]
        assert await loop.sock_sendfile(near, file, 100, 50) == 50
        assert file.tell() == 150
        assert file.read(10) == DATA[150:160]
        assert far.recv(100) == DATA[100:150]

    run(main())


def test_a_piece_far_into_a_file_of_gigabytes(
    run: Run, loop: ringloop.EventLoop, pair: Pair, tmp_path: Path
) -> None:
    near, far = pair
    offset = (5 << 30) - 100
    path = tmp_path / "sparse"

    async def main() -> None:
        with path.open("wb") as writing:
            writing.truncate(8 << 30)
            writing.seek(offset)
            writing.write(DATA[:1000])
        with path.open("rb") as file:
            transport, protocol = await connected(loop, near)
            # A count of more than 2 GiB is cut off by the kernel, and here by the peer.
            task = asyncio.create_task(loop.sendfile(transport, file, offset, 3 << 30))
            found = b""
            while len(found) < 1000:
                found += await asyncio.to_thread(far.recv, 1000 - len(found))
            assert found == DATA[:1000]
            task.cancel()
            await asyncio.wait([task])
            assert file.tell() > offset
            transport.abort()
            await protocol.lost

    run(main())


def test_a_file_that_shrinks_ends_early(
    run: Run, loop: ringloop.EventLoop, pair: Pair, tmp_path: Path
) -> None:
    near, far = pair
    path = tmp_path / "file"
    path.write_bytes(DATA)

    async def main() -> None:
        with path.open("rb") as file:
            transport, protocol = await connected(loop, near)
            task = asyncio.create_task(loop.sendfile(transport, file, 0, SIZE))
            await asyncio.sleep(0)
            far.recv(1, socket.MSG_PEEK)
            os.truncate(path, SIZE // 2 + 1)
            reading = asyncio.create_task(asyncio.to_thread(read_all, far))
            sent = await task
            transport.close()
            found = await reading
            await protocol.lost
            # A page that was in the socket already when it was cut off may hold zeros.
            assert len(found) == sent == file.tell() < SIZE
            assert found[: SIZE // 2] == DATA[: SIZE // 2]

    run(main())


# -- fallbacks -----------------------------------------------------------------------


def test_files_that_have_no_descriptor_use_the_fallback(
    run: Run, loop: ringloop.EventLoop, pair: Pair, native: list[int]
) -> None:
    near, far = pair
    file = io.BytesIO(DATA)

    async def main() -> None:
        with pytest.raises(SendfileNotAvailableError):
            await loop.sock_sendfile(near, file, fallback=False)
        transport, protocol = await connected(loop, near)
        with pytest.raises(SendfileNotAvailableError):
            await loop.sendfile(transport, file, fallback=False)
        reading = asyncio.create_task(asyncio.to_thread(read_all, far))
        assert await loop.sendfile(transport, file, 10, 1_000_000) == 1_000_000
        assert file.tell() == 1_000_010
        transport.close()
        assert await reading == DATA[10:1_000_010]
        await protocol.lost

    run(main())
    assert native == []


@pytest.mark.parametrize("cancelled", [False, True])
def test_the_fallback_waits_for_a_slow_peer(
    run: Run, loop: ringloop.EventLoop, pair: Pair, cancelled: bool
) -> None:
    near, far = pair
    file = io.BytesIO(DATA)
    errors: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: errors.append(context))

    async def main() -> None:
        transport, protocol = await connected(loop, near)
        task = asyncio.create_task(loop.sendfile(transport, file))
        await until(lambda: transport._protocol_paused)  # type: ignore[attr-defined]
        for _ in range(20):  # long enough for as many pieces of the file
            await loop.run_in_executor(None, int)
        assert errors == []
        assert not task.done()
        assert transport.get_write_buffer_size() <= transport.get_write_buffer_limits()[1] + 16384
        assert protocol.flow == []
        if cancelled:
            task.cancel()
            await asyncio.wait([task])
            assert protocol.flow == ["pause"]
        reading = asyncio.create_task(asyncio.to_thread(read_all, far))
        sent = file.tell() if cancelled else await task
        assert transport.get_protocol() is protocol
        transport.close()
        assert await reading == DATA[:sent]
        assert sent == SIZE or cancelled
        await protocol.lost
        # Whoever stops the last of the file is told, and told once that there is room again.
        assert protocol.flow in ([], ["pause", "resume"])

    run(main())
    assert errors == []


def test_files_that_sendfile_refuses_are_not_available_to_it(
    run: Run, loop: ringloop.EventLoop, pair: Pair, native: list[int]
) -> None:
    near, _ = pair

    async def main() -> None:
        rx, tx = os.pipe()
        os.write(tx, b"through a pipe")
        os.close(tx)
        with os.fdopen(rx, "rb", buffering=0) as file:
            with pytest.raises(SendfileNotAvailableError, match=r"os\.sendfile call failed"):
                await loop.sock_sendfile(near, file, fallback=False)
            assert file.read() == b"through a pipe"

    run(main())
    assert native == []


def test_tls_uses_the_fallback(
    run: Run, loop: ringloop.EventLoop, file: BinaryIO, native: list[int], tmp_path: Path
) -> None:
    contexts = Contexts(tmp_path)

    async def main() -> None:
        received = loop.create_future()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            received.set_result(await reader.read())
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=contexts.server)
        _, writer = await asyncio.open_connection(
            *server.sockets[0].getsockname(), ssl=contexts.client, server_hostname="localhost"
        )
        with pytest.raises(RuntimeError, match="fallback is disabled"):
            await loop.sendfile(writer.transport, file, fallback=False)
        assert await loop.sendfile(writer.transport, file) == SIZE
        writer.close()
        assert await received == DATA
        server.close()
        await server.wait_closed()
        try:
            await writer.wait_closed()
        except OSError:
            pass  # how it ends is not what is tested here

    run(main())
    assert native == []
    assert file.tell() == SIZE


# -- bad arguments -------------------------------------------------------------------


WRONG: list[tuple[Any, Any, type[Exception]]] = [
    (0, 0, ValueError),
    (0, -1, ValueError),
    (0, 1.5, TypeError),
    (0, "1", TypeError),
    (-1, None, ValueError),
    (1.5, None, TypeError),
]


def test_wrong_offsets_and_counts(
    run: Run, loop: ringloop.EventLoop, pair: Pair, file: BinaryIO
) -> None:
    near, far = pair

    async def main() -> None:
        for offset, count, error in WRONG:
            with pytest.raises(error, match="must be a"):
                await loop.sock_sendfile(near, file, offset, count)
        transport, protocol = await connected(loop, near)
        for offset, count, error in WRONG:
            with pytest.raises(error, match="must be a"):
                await loop.sendfile(transport, file, offset, count)
        transport.write(b"still works")
        transport.close()
        await protocol.lost
        assert far.recv(100) == b"still works"

    run(main())


def test_what_cannot_be_sent_or_sent_to(
    run: Run, loop: ringloop.EventLoop, pair: Pair, file: BinaryIO, tmp_path: Path
) -> None:
    near, far = pair

    async def main() -> None:
        path = tmp_path / "text"
        with path.open("w+") as text, pytest.raises(ValueError, match="binary mode"):
            await loop.sock_sendfile(near, text)  # type: ignore[arg-type]
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
            udp.setblocking(False)
            with pytest.raises(ValueError, match="only SOCK_STREAM"):
                await loop.sock_sendfile(udp, file)
        transport, protocol = await connected(loop, near)
        with pytest.raises(RuntimeError, match="is used by transport"):
            await loop.sock_sendfile(near, file)
        transport.write_eof()
        with pytest.raises(RuntimeError, match=r"Cannot call sendfile\(\) after write_eof"):
            await loop.sendfile(transport, file)
        transport.close()
        with pytest.raises(RuntimeError, match="Transport is closing"):
            await loop.sendfile(transport, file)
        await protocol.lost
        assert far.recv(10) == b""
        closed = file
        closed.close()
        with pytest.raises(ValueError, match="closed file"):
            await loop.sock_sendfile(near, closed)

    run(main())


# -- in the middle -------------------------------------------------------------------


async def stuck_sendfile(
    loop: ringloop.EventLoop, transport: asyncio.Transport, file: BinaryIO, native: list[int]
) -> asyncio.Task[int]:
    """A sendfile() that waits for a peer which does not read."""
    task = asyncio.create_task(loop.sendfile(transport, file))
    await until(lambda: bool(native) and loop._live_operations() > 0)
    for _ in range(20):
        await asyncio.sleep(0)
    assert 0 < sum(native) < SIZE
    assert not task.done()
    return task


def test_meanwhile_writing_is_refused_and_reading_paused(
    run: Run, loop: ringloop.EventLoop, pair: Pair, file: BinaryIO, native: list[int]
) -> None:
    near, far = pair

    async def main() -> None:
        transport, protocol = await connected(loop, near)
        task = await stuck_sendfile(loop, transport, file, native)
        with pytest.raises(RuntimeError, match="unable to write; sendfile is in progress"):
            transport.write(b"x")
        with pytest.raises(RuntimeError, match="unable to writelines; sendfile is in progress"):
            transport.writelines([b"x"])
        with pytest.raises(RuntimeError, match="unable to sendfile; sendfile is in progress"):
            await loop.sendfile(transport, file)
        assert not transport.is_reading()
        far.sendall(b"kept for later")
        for _ in range(5):
            await asyncio.sleep(0)
        assert protocol.received == b""
        reading = asyncio.create_task(asyncio.to_thread(read_all, far))
        assert await task == SIZE
        assert transport.is_reading()
        await until(lambda: protocol.received == b"kept for later")
        transport.close()
        assert await reading == DATA
        await protocol.lost

    run(main())


def test_after_a_cancellation_the_transport_works_and_the_file_tells_how_far_it_came(
    run: Run, loop: ringloop.EventLoop, pair: Pair, file: BinaryIO, native: list[int]
) -> None:
    near, far = pair

    async def main() -> None:
        transport, protocol = await connected(loop, near)
        task = await stuck_sendfile(loop, transport, file, native)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        sent = file.tell()
        assert sent == sum(native)
        # At once, while the wait of the first may still be in flight.
        transport.write(b"between")
        reading = asyncio.create_task(asyncio.to_thread(read_all, far))
        assert await loop.sendfile(transport, file, sent) == SIZE - sent
        transport.close()
        assert await reading == DATA[:sent] + b"between" + DATA[sent:]
        await protocol.lost

    run(main())


def test_cancelled_before_the_buffer_was_sent_nothing_of_the_file_leaves(
    run: Run, loop: ringloop.EventLoop, pair: Pair, file: BinaryIO, native: list[int]
) -> None:
    near, far = pair
    before = random.Random(9).randbytes(4_000_000)

    async def main() -> None:
        transport, protocol = await connected(loop, near)
        transport.write(before)
        task = asyncio.create_task(loop.sendfile(transport, file))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        transport.write(b"after")
        transport.close()
        assert await asyncio.to_thread(read_all, far) == before + b"after"
        await protocol.lost

    run(main())
    assert native == []
    assert file.tell() == 0


@pytest.mark.parametrize("method", ["close", "abort"])
def test_a_transport_that_is_closed_meanwhile_ends_it(
    run: Run,
    loop: ringloop.EventLoop,
    pair: Pair,
    file: BinaryIO,
    native: list[int],
    method: str,
) -> None:
    near, far = pair

    async def main() -> None:
        transport, protocol = await connected(loop, near)
        task = await stuck_sendfile(loop, transport, file, native)
        getattr(transport, method)()
        with pytest.raises(ConnectionError, match="closed while it sent a file"):
            await task
        assert await protocol.lost is None
        found = await asyncio.to_thread(read_all, far)
        assert found == DATA[: len(found)]
        assert file.tell() == sum(native)

    run(main())


def test_closing_with_a_full_buffer_sends_the_buffer_and_no_file(
    run: Run, loop: ringloop.EventLoop, pair: Pair, file: BinaryIO, native: list[int]
) -> None:
    near, far = pair
    before = random.Random(10).randbytes(4_000_000)

    async def main() -> None:
        transport, protocol = await connected(loop, near)
        transport.write(before)
        task = asyncio.create_task(loop.sendfile(transport, file))
        await asyncio.sleep(0)
        transport.close()
        assert await asyncio.to_thread(read_all, far) == before
        with pytest.raises(ConnectionError):
            await task
        await protocol.lost

    run(main())
    assert native == []


def reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    sock.close()


def test_a_peer_that_resets_in_the_middle_is_a_connection_error(
    run: Run, loop: ringloop.EventLoop, file: BinaryIO, native: list[int]
) -> None:
    async def main() -> None:
        near, far = tcp_pair()
        near.setblocking(False)
        transport, protocol = await connected(loop, near)
        task = await stuck_sendfile(loop, transport, file, native)
        reset(far)
        with pytest.raises(ConnectionError):
            await task
        assert file.tell() == sum(native)
        transport.abort()
        await protocol.lost

        native.clear()
        near, far = tcp_pair()
        with near:
            near.setblocking(False)
            task = asyncio.create_task(loop.sock_sendfile(near, file))
            await until(lambda: bool(native))
            reset(far)
            with pytest.raises(ConnectionError):
                await task
            # At the first attempt, too: no other way to send would do any better.
            with pytest.raises(ConnectionError):
                await loop.sock_sendfile(near, file, fallback=False)

    run(main())


def test_cancelling_sock_sendfile(
    run: Run, loop: ringloop.EventLoop, pair: Pair, file: BinaryIO, native: list[int]
) -> None:
    near, far = pair

    async def main() -> None:
        at_rest = loop._live_operations()
        task = asyncio.create_task(loop.sock_sendfile(near, file))
        await until(lambda: loop._live_operations() > at_rest)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert file.tell() == sum(native) > 0
        near.close()
        assert await asyncio.to_thread(read_all, far) == DATA[: file.tell()]

    run(main())


def test_a_piece_that_is_not_in_memory_is_read_by_a_thread_first(
    run: Run,
    loop: ringloop.EventLoop,
    pair: Pair,
    file: BinaryIO,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    near, far = pair
    events: list[tuple[str, int]] = []
    real_pread, real_sendfile = os.pread, os.sendfile

    def cold(fd: int, buffers: Any, offset: int, flags: int) -> int:
        assert flags == os.RWF_NOWAIT
        raise BlockingIOError

    def pread(fd: int, size: int, offset: int) -> bytes:
        events.append(("read", offset))
        return real_pread(fd, size, offset)

    def sendfile(out: int, source: int, offset: int, count: int) -> int:
        events.append(("send", offset))
        return real_sendfile(out, source, offset, count)

    monkeypatch.setattr(os, "preadv", cold)
    monkeypatch.setattr(os, "pread", pread)
    monkeypatch.setattr(os, "sendfile", sendfile)

    async def main() -> None:
        reading = asyncio.create_task(asyncio.to_thread(read_all, far))
        assert await loop.sock_sendfile(near, file) == SIZE
        near.shutdown(socket.SHUT_WR)
        assert await reading == DATA

    run(main())
    reads = [offset for kind, offset in events if kind == "read"]
    assert reads == list(range(0, SIZE + 1, 262144))
    for offset in reads:
        assert events.index(("read", offset)) < events.index(("send", offset))
