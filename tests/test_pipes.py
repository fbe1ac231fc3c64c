"""Pipe transports: every kind of file that they take, flow control, and each way to end."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import io
import logging
import os
import pty
import random
import socket
import sys
import tty
import warnings
from typing import TYPE_CHECKING, Any

import pytest

import drivers
import ringloop

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Run = Callable[..., Any]

ON_FAULTY_DRIVERS = True

KIB = 1024


class Reader(asyncio.Protocol):
    """Collects what comes; notes every call in `events`."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.data = bytearray()
        self.events: list[str] = []
        self.lost: asyncio.Future[Exception | None] = self.loop.create_future()
        self.arrived = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.events.append("made")

    def data_received(self, data: bytes) -> None:
        assert type(data) is bytes
        assert data
        self.data += data
        self.arrived.set()

    def eof_received(self) -> None:
        self.events.append("eof")

    def connection_lost(self, exc: Exception | None) -> None:
        self.events.append("lost")
        self.lost.set_result(exc)

    async def until(self, n: int) -> bytes:
        """Wait until `n` bytes came in all; take them."""
        while len(self.data) < n:
            self.arrived.clear()
            await self.arrived.wait()
        taken = bytes(self.data[:n])
        del self.data[:n]
        return taken


class Writer(asyncio.BaseProtocol):
    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.events: list[str] = []
        self.lost: asyncio.Future[Exception | None] = self.loop.create_future()
        self.may_write = asyncio.Event()
        self.may_write.set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.events.append("made")

    def pause_writing(self) -> None:
        assert self.may_write.is_set()
        self.may_write.clear()

    def resume_writing(self) -> None:
        assert not self.may_write.is_set()
        self.may_write.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.events.append("lost")
        self.lost.set_result(exc)


def files(kind: str, folder: Path) -> tuple[Any, Any]:
    """The file to read from and the one to write to."""
    if kind == "pipe":
        r, w = os.pipe()
        return os.fdopen(r, "rb", 0), os.fdopen(w, "wb", 0)
    if kind == "buffered":
        r, w = os.pipe()
        return os.fdopen(r, "rb"), os.fdopen(w, "wb")
    if kind == "fifo":
        os.mkfifo(folder / "fifo")
        r = os.open(folder / "fifo", os.O_RDONLY | os.O_NONBLOCK)
        return os.fdopen(r, "rb", 0), (folder / "fifo").open("wb", 0)
    if kind == "socket":
        return socket.socketpair()
    assert kind == "terminal"
    master, slave = pty.openpty()
    tty.setraw(slave)
    return os.fdopen(slave, "rb", 0), os.fdopen(master, "wb", 0)


async def connect(
    loop: ringloop.EventLoop, r: Any, w: Any
) -> tuple[asyncio.ReadTransport, Reader, asyncio.WriteTransport, Writer]:
    source, reader = await loop.connect_read_pipe(Reader, r)
    sink, writer = await loop.connect_write_pipe(Writer, w)
    return source, reader, sink, writer


async def close(source: Any, reader: Reader, sink: Any, writer: Writer) -> None:
    """Close both ends and see that they say so once."""
    sink.close()
    assert await writer.lost is None
    source.close()
    await reader.lost
    assert writer.events == ["made", "lost"]
    assert reader.events.count("lost") == 1


# -- data ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["pipe", "buffered", "fifo", "socket", "terminal"])
def test_every_kind_of_file_carries_data(
    run: Run, loop: ringloop.EventLoop, tmp_path: Path, kind: str
) -> None:
    data = random.Random(18).randbytes(300 * KIB)

    async def main() -> None:
        r, w = files(kind, tmp_path)
        source, reader, sink, writer = ends = await connect(loop, r, w)
        assert isinstance(source, asyncio.ReadTransport)
        assert isinstance(sink, asyncio.WriteTransport)
        assert source.get_extra_info("pipe") is r
        assert sink.get_extra_info("pipe") is w
        assert source.get_extra_info("x", 5) == 5
        assert source.get_protocol() is reader
        assert sink.get_protocol() is writer
        assert not os.get_blocking(r.fileno())
        for size in (1, 10, 5000, 0, 70_000, len(data), 3):
            sink.write(data[:size])
            assert await reader.until(size) == data[:size]
            await writer.may_write.wait()
        await close(*ends)
        assert r.fileno() == -1 if kind == "socket" else r.closed

    run(main())


def test_much_data_in_pieces_of_all_sizes_arrives_in_order(
    run: Run, loop: ringloop.EventLoop, tmp_path: Path
) -> None:
    rng = random.Random(19)
    data = rng.randbytes(1 << 20)

    async def main() -> None:
        source, reader, sink, writer = await connect(loop, *files("pipe", tmp_path))
        start = 0
        while start < len(data):
            size = rng.choice((1, 100, 5000, 65536, 100_000))
            piece = data[start : start + size]
            start += size
            sink.write(rng.choice((bytes, bytearray, memoryview))(piece))
            await writer.may_write.wait()
        sink.write_eof()
        assert sink.can_write_eof()
        assert await writer.lost is None
        assert await reader.lost is None
        assert reader.data == data
        assert reader.events == ["made", "eof", "lost"]
        assert source.is_closing()

    run(main())


def test_writelines_and_a_buffer_that_changes_after_write(
    run: Run, loop: ringloop.EventLoop, tmp_path: Path
) -> None:
    async def main() -> None:
        _, reader, sink, _ = ends = await connect(loop, *files("pipe", tmp_path))
        buffer = bytearray(b"x" * 200_000)  # more than a pipe holds
        sink.write(buffer)
        buffer[:] = bytes(len(buffer))
        sink.writelines([b"a", bytearray(b"b"), memoryview(b"c"), b""])
        assert await reader.until(200_003) == b"x" * 200_000 + b"abc"
        await close(*ends)

    run(main())


def test_what_can_be_written_is_in_the_pipe_when_write_returns(
    run: Run, loop: ringloop.EventLoop
) -> None:
    async def main() -> None:
        r, w = os.pipe()
        sink, writer = await loop.connect_write_pipe(Writer, os.fdopen(w, "wb", 0))
        sink.write(b"now")
        assert os.read(r, 10) == b"now"
        sink.close()
        await writer.lost
        os.close(r)

    run(main())


def test_writing_text_is_a_type_error(run: Run, loop: ringloop.EventLoop, tmp_path: Path) -> None:
    async def main() -> None:
        ends = await connect(loop, *files("pipe", tmp_path))
        with pytest.raises(TypeError, match="bytes-like"):
            ends[2].write("text")  # type: ignore[arg-type]
        await close(*ends)

    run(main())


def test_regular_files_are_refused_and_left_alone(
    run: Run, loop: ringloop.EventLoop, tmp_path: Path
) -> None:
    async def main() -> None:
        with (tmp_path / "file").open("w+b") as file:
            with pytest.raises(ValueError, match="pipes/sockets only"):
                await loop.connect_read_pipe(Reader, file)
            with pytest.raises(ValueError, match="pipes, sockets and character devices"):
                await loop.connect_write_pipe(Writer, file)
            assert not file.closed
            assert os.get_blocking(file.fileno())

    run(main())


def test_a_device_that_cannot_be_waited_for(run: Run, loop: ringloop.EventLoop) -> None:
    """Writing to /dev/null works; reading ends with what the kernel says, and no hang."""
    errors: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: errors.append(context))

    async def main() -> None:
        sink, writer = await loop.connect_write_pipe(
            Writer, os.fdopen(os.open("/dev/null", os.O_WRONLY), "wb", 0)
        )
        sink.write(bytes(300_000))
        assert sink.get_write_buffer_size() == 0
        sink.close()
        assert await writer.lost is None
        _, reader = await loop.connect_read_pipe(
            Reader, os.fdopen(os.open("/dev/null", os.O_RDONLY), "rb", 0)
        )
        assert isinstance(await reader.lost, PermissionError)

    run(main())
    assert [type(e["exception"]) for e in errors] == [PermissionError]


# -- flow control ------------------------------------------------------------------------


def test_writing_pauses_above_the_high_mark_and_resumes_at_the_low_one(
    run: Run, loop: ringloop.EventLoop, tmp_path: Path
) -> None:
    async def main() -> None:
        source, reader, sink, writer = ends = await connect(loop, *files("pipe", tmp_path))
        source.pause_reading()
        assert sink.get_write_buffer_limits() == (16 * KIB, 64 * KIB)
        sink.set_write_buffer_limits(high=100_000, low=10)
        sink.write(bytes(64 * KIB))  # what the pipe takes
        sink.write(bytes(100_000))
        assert sink.get_write_buffer_size() == 100_000
        assert writer.may_write.is_set()
        sink.write(b"!")
        assert not writer.may_write.is_set()
        source.resume_reading()
        await writer.may_write.wait()
        assert sink.get_write_buffer_size() <= 10
        assert await reader.until(64 * KIB + 100_001) == bytes(64 * KIB + 100_000) + b"!"
        await close(*ends)

    run(main())


def test_what_was_written_is_let_go_of_though_something_always_waits(
    run: Run, loop: ringloop.EventLoop, tmp_path: Path
) -> None:
    piece = bytes(8 * KIB)

    async def main() -> None:
        r, w = files("pipe", tmp_path)
        sink, writer = await loop.connect_write_pipe(Writer, w)
        references = []
        os.set_blocking(r.fileno(), False)
        with r:
            for _ in range(2000):
                sink.write(piece)
                references.append(sys.getrefcount(piece))
                while not writer.may_write.is_set():
                    r.read(64 * KIB)
                    await asyncio.sleep(0)
            assert max(references) < 100
            sink.abort()
            await writer.lost

    run(main())


def test_a_paused_reader_hears_nothing_and_then_all_of_it(
    run: Run, loop: ringloop.EventLoop, tmp_path: Path
) -> None:
    async def main() -> None:
        source, reader, sink, _ = ends = await connect(loop, *files("pipe", tmp_path))
        for how_long in (0, 1, 5):
            source.pause_reading()
            source.pause_reading()
            assert not source.is_reading()
            sink.write(b"abc")
            for _ in range(how_long):
                await asyncio.sleep(0)
            assert reader.data == b""
            source.resume_reading()
            source.resume_reading()
            assert source.is_reading()
            assert await reader.until(3) == b"abc"
        await close(*ends)
        source.pause_reading()
        source.resume_reading()
        assert not source.is_reading()

    run(main())


def test_pausing_and_resuming_at_random_loses_nothing(
    run: Run, loop: ringloop.EventLoop, tmp_path: Path
) -> None:
    rng = random.Random(20)
    data = rng.randbytes(400_000)

    async def main() -> None:
        source, reader, sink, writer = await connect(loop, *files("pipe", tmp_path))
        sink.write(data)
        sink.close()
        while not reader.lost.done():
            rng.choice((source.pause_reading, source.resume_reading))()
            if rng.random() < 0.1:
                source.resume_reading()
            await asyncio.sleep(0)
        assert reader.data == data
        assert await writer.lost is None

    run(main())


def test_a_pause_before_the_first_read_and_in_data_received(
    run: Run, loop: ringloop.EventLoop, tmp_path: Path
) -> None:
    class Shy(Reader):
        transport: asyncio.ReadTransport

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            assert isinstance(transport, asyncio.ReadTransport)
            super().connection_made(transport)
            self.transport = transport
            transport.pause_reading()

        def data_received(self, data: bytes) -> None:
            self.transport.pause_reading()
            super().data_received(data)

    async def main() -> None:
        r, w = files("pipe", tmp_path)
        source, reader = await loop.connect_read_pipe(Shy, r)
        sink, writer = await loop.connect_write_pipe(Writer, w)
        sink.write(b"one")
        for _ in range(5):
            await asyncio.sleep(0)
        assert reader.data == b""
        source.resume_reading()
        assert await reader.until(3) == b"one"
        sink.write(b"two")
        for _ in range(5):
            await asyncio.sleep(0)
        assert reader.data == b""
        source.resume_reading()
        assert await reader.until(3) == b"two"
        await close(source, reader, sink, writer)

    run(main())


# -- the end -----------------------------------------------------------------------------


def test_close_writes_what_is_buffered_and_takes_no_more(
    run: Run, loop: ringloop.EventLoop, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        source, reader, sink, writer = await connect(loop, *files("pipe", tmp_path))
        sink.write(bytes(300_000))
        assert sink.get_write_buffer_size() > 0
        sink.close()
        assert sink.is_closing()
        for _ in range(7):
            sink.write(b"late")
        sink.close()
        assert await writer.lost is None
        assert await reader.lost is None
        assert reader.data == bytes(300_000)
        source.close()

    with caplog.at_level(logging.WARNING, "asyncio"):
        run(main())
    assert [r.message for r in caplog.records] == [
        "pipe closed by peer or os.write(pipe, data) raised exception."
    ] * 2


def test_abort_drops_what_is_buffered(run: Run, loop: ringloop.EventLoop, tmp_path: Path) -> None:
    async def main() -> None:
        _, reader, sink, writer = await connect(loop, *files("pipe", tmp_path))
        sink.write(bytes(300_000))
        sink.abort()
        sink.abort()
        sink.close()
        assert sink.get_write_buffer_size() == 0
        assert await writer.lost is None
        assert await reader.lost is None
        assert 0 < len(reader.data) < 300_000
        assert writer.events == ["made", "lost"]

    run(main())


@pytest.mark.parametrize("kind", ["pipe", "fifo", "socket"])
def test_an_idle_writer_notices_that_nobody_reads_any_more(
    run: Run, loop: ringloop.EventLoop, tmp_path: Path, kind: str
) -> None:
    async def main() -> None:
        r, w = files(kind, tmp_path)
        sink, writer = await loop.connect_write_pipe(Writer, w)
        for _ in range(10):
            await asyncio.sleep(0)
        assert not sink.is_closing()
        r.close()
        assert await writer.lost is None
        assert sink.is_closing()

    run(main())


def test_a_reader_that_goes_with_data_on_its_way_is_a_broken_pipe(
    run: Run, loop: ringloop.EventLoop, tmp_path: Path
) -> None:
    async def main() -> None:
        r, w = files("pipe", tmp_path)
        sink, writer = await loop.connect_write_pipe(Writer, w)
        sink.write(bytes(300_000))
        await asyncio.sleep(0)
        r.close()
        assert isinstance(await writer.lost, BrokenPipeError)

    run(main())


def test_writing_to_nobody_is_a_broken_pipe_and_closes_at_once(
    run: Run, loop: ringloop.EventLoop, tmp_path: Path
) -> None:
    async def main() -> None:
        r, w = files("pipe", tmp_path)
        sink, writer = await loop.connect_write_pipe(Writer, w)
        r.close()
        sink.write(b"x")
        assert sink.is_closing()
        sink.write(b"y")
        assert isinstance(await writer.lost, BrokenPipeError)

    run(main())


def test_a_terminal_whose_other_side_closes_ends_with_its_error(
    run: Run, loop: ringloop.EventLoop
) -> None:
    """EIO is how a terminal says so: no noise for the exception handler."""
    errors: list[Any] = []
    loop.set_exception_handler(lambda _, context: errors.append(context))

    async def main() -> None:
        master, slave = pty.openpty()
        tty.setraw(slave)
        _, reader = await loop.connect_read_pipe(Reader, os.fdopen(master, "rb", 0))
        os.write(slave, b"bye")
        assert await reader.until(3) == b"bye"
        os.close(slave)
        exc = await reader.lost
        assert isinstance(exc, OSError)
        assert not errors

    run(main())


def test_closing_in_data_received_ends_the_data(
    run: Run, loop: ringloop.EventLoop, tmp_path: Path
) -> None:
    class Once(Reader):
        transport: asyncio.BaseTransport

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            self.transport = transport

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self.transport.close()

    async def main() -> None:
        r, w = files("pipe", tmp_path)
        w.write(bytes(65536))
        _, reader = await loop.connect_read_pipe(Once, r)
        with w:
            assert await reader.lost is None
        assert 0 < len(reader.data) <= 65536
        assert reader.events == ["lost"]

    run(main())


def test_an_exception_in_data_received_is_reported_and_reading_goes_on(
    run: Run, loop: ringloop.EventLoop, tmp_path: Path
) -> None:
    class Fails(Reader):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            raise ZeroDivisionError

    errors: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: errors.append(context))

    async def main() -> None:
        r, w = files("pipe", tmp_path)
        source, reader = await loop.connect_read_pipe(Fails, r)
        with w:
            for _ in range(2):
                w.write(b"x")
                assert await reader.until(1) == b"x"
            assert [type(e["exception"]) for e in errors] == [ZeroDivisionError] * 2
            assert errors[0]["transport"] is source
        assert await reader.lost is None

    run(main())


def test_callbacks_run_in_the_context_of_the_connection(
    run: Run, loop: ringloop.EventLoop, tmp_path: Path
) -> None:
    variable = contextvars.ContextVar("variable", default="outside")
    seen: list[str] = []

    class Looks(Reader):
        def data_received(self, data: bytes) -> None:
            seen.append(variable.get())
            variable.set("set by data_received")
            super().data_received(data)

        def connection_lost(self, exc: Exception | None) -> None:
            seen.append(variable.get())
            super().connection_lost(exc)

    async def main() -> None:
        variable.set("inside")
        r, w = files("pipe", tmp_path)
        _, reader = await loop.connect_read_pipe(Looks, r)
        variable.set("later")
        w.write(b"x")
        await reader.until(1)
        w.close()
        await reader.lost
        assert variable.get() == "later"

    run(main())
    assert seen == ["inside", "set by data_received"]


# -- whose the fd is -----------------------------------------------------------------------


def test_an_unclosed_transport_is_closed_though_warnings_are_errors(
    driver: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    raised: list[str] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda args: raised.append(str(args.exc_value)))
    loop = ringloop.EventLoop(drivers.make(driver))
    r, w = files("pipe", tmp_path)
    ends = loop.run_until_complete(connect(loop, r, w))
    loop.close()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        del loop, ends
        gc.collect()
    assert r.closed
    assert w.closed
    assert sum("PipeTransport open fd=" in text for text in raised) == 2


class Probe(io.FileIO):
    """Opens a pipe before and after it is closed: nobody else may close those numbers."""

    others: list[int]
    closes = 0

    def close(self) -> None:
        if not self.closed:
            self.closes += 1
            self.others = list(os.pipe())
            super().close()
            self.others += os.pipe()  # has the number that has just become free

    def check(self) -> None:
        assert self.closes == 1
        for fd in self.others:
            os.close(fd)  # EBADF, were it closed already


@pytest.mark.parametrize("end", ["close", "garbage"])
def test_the_fd_is_closed_once(driver: str, end: str) -> None:
    """Closed twice, the second may hit a descriptor that somebody has opened in between."""
    loop = ringloop.EventLoop(drivers.make(driver))
    r, w = os.pipe()
    probes = [Probe(r, "rb"), Probe(w, "wb")]

    async def main() -> None:
        source, reader, sink, writer = await connect(loop, *probes)
        if end == "close":
            await close(source, reader, sink, writer)
        del source, reader, sink, writer
        await asyncio.sleep(0)

    loop.run_until_complete(main())
    if end == "garbage":
        with pytest.warns(ResourceWarning, match="unclosed transport"):
            loop.close()
            del loop
            gc.collect()
    else:
        loop.close()
    for probe in probes:
        probe.check()


def test_a_cancelled_connect_closes_the_pipe(
    run: Run, loop: ringloop.EventLoop, tmp_path: Path
) -> None:
    async def main() -> None:
        r, w = files("pipe", tmp_path)
        for connect in (
            lambda: loop.connect_read_pipe(Reader, r),
            lambda: loop.connect_write_pipe(Writer, w),
        ):
            connecting: asyncio.Task[Any] = loop.create_task(connect())
            await asyncio.sleep(0)
            connecting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await connecting
        while not (r.closed and w.closed):
            await asyncio.sleep(0)

    run(main())


def test_one_terminal_serves_for_reading_and_writing(run: Run, loop: ringloop.EventLoop) -> None:
    """Through one fd: ending one transport must not make the other deaf."""

    async def main() -> None:
        master, slave = pty.openpty()
        tty.setraw(slave)
        source, reader = await loop.connect_read_pipe(
            Reader, os.fdopen(master, "rb", 0, closefd=False)
        )
        sink, writer = await loop.connect_write_pipe(
            Writer, os.fdopen(master, "wb", 0, closefd=False)
        )
        sink.write(b"to the slave")
        assert os.read(slave, 100) == b"to the slave"
        sink.close()
        await writer.lost
        for _ in range(3):
            await asyncio.sleep(0)
        os.write(slave, b"to the master")
        assert await reader.until(13) == b"to the master"
        source.close()
        await reader.lost
        os.close(master)
        os.close(slave)

    run(main())


def test_the_repr_says_how_things_are(run: Run, loop: ringloop.EventLoop, tmp_path: Path) -> None:
    async def main() -> None:
        source, _, sink, _ = ends = await connect(loop, *files("pipe", tmp_path))
        assert "ReadPipeTransport open fd=" in repr(source)
        source.pause_reading()
        assert "paused" in repr(source)
        assert "WritePipeTransport open fd=" in repr(sink)
        await close(*ends)
        assert "closed" in repr(source)
        assert "closed" in repr(sink)

    run(main())


def test_streams_over_pipes(run: Run, loop: ringloop.EventLoop, tmp_path: Path) -> None:
    async def main() -> None:
        r, w = files("pipe", tmp_path)
        reader = asyncio.StreamReader(limit=1000)
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), r)
        transport, protocol = await loop.connect_write_pipe(asyncio.streams.FlowControlMixin, w)
        writer = asyncio.StreamWriter(transport, protocol, None, loop)

        async def write() -> None:
            for i in range(20_000):
                writer.write(b"line %d\n" % i)
                await writer.drain()
            writer.close()

        writing = loop.create_task(write())
        for i in range(20_000):
            assert await reader.readline() == b"line %d\n" % i
        assert await reader.read() == b""
        await writing

    run(main(), timeout=30)
