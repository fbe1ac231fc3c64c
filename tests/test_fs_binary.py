"""`ringloop.fs.open()` in binary mode, whole files, and the ways past the caches."""

from __future__ import annotations

import asyncio
import errno
import gc
import itertools
import mmap
import os
import random
import resource
import signal
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from files import drop_cache, needs_a_disk
from ringloop import fs
from ringloop.fs import _threads

if TYPE_CHECKING:
    from collections.abc import Callable

    Run = Callable[..., Any]


def test_what_was_written_is_read(files_run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with fs.open(tmp_path / "a", "wb") as f:
            assert await f.write(b"hello\n") == 6
            assert await f.write(bytearray(b"world\n")) == 6
            assert await f.tell() == 12
        f = await fs.open(tmp_path / "a", "rb")
        assert await f.readline() == b"hello\n"
        assert await f.read(2) == b"wo"
        assert await f.tell() == 8
        assert await f.seek(-2, os.SEEK_END) == 10
        assert await f.read() == b"d\n"
        assert await f.read() == b""
        await f.close()
        assert f.closed

    files_run(main())
    assert (tmp_path / "a").read_bytes() == b"hello\nworld\n"


@pytest.mark.parametrize("size", [0, 1, 8191, 8192, 100_000, 3_000_000])
def test_whole_files_warm_and_cold(files_run: Run, tmp_path: Path, size: int) -> None:
    path = tmp_path / "a"
    data = os.urandom(size)

    async def main() -> None:
        async with fs.open(path, "wb") as f:
            assert await f.write(data) == size
        assert await fs.read_bytes(path) == data
        drop_cache(path)
        assert await fs.read_bytes(path) == data
        for step in (7, 5000, 70_000, 2_000_000):
            drop_cache(path)
            async with fs.open(path, "rb") as f:
                got = b"".join([await f.read(step) for _ in range(min(size // step + 1, 50))])
                assert got == data[: len(got)]
                assert len(got) == min(size, step * 50)

    files_run(main())


def test_lines_come_out_whatever_the_buffer_holds(files_run: Run, tmp_path: Path) -> None:
    path = tmp_path / "a"
    lines = [b"%d" % i * (i % 997) + b"\n" for i in range(2000)] + [b"no newline"]
    path.write_bytes(b"".join(lines))
    drop_cache(path)

    async def main() -> None:
        async with fs.open(path, "rb") as f:
            assert [line async for line in f] == lines
            await f.seek(0)
            assert await f.readlines() == lines
            await f.seek(0)
            assert await f.readline(3) == b"\n"
            await f.seek(len(b"".join(lines[:11])))
            assert await f.readline(4) == b"1111"

    files_run(main())


def test_reading_and_writing_in_turn(files_run: Run, tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"0123456789")

    async def main() -> None:
        async with fs.open(path, "r+b") as f:
            assert await f.read(2) == b"01"
            assert await f.write(b"XY") == 2
            assert await f.read(2) == b"45"
            assert await f.seek(0) == 0
            assert await f.read() == b"01XY456789"
            assert await f.truncate(4) == 4
            await f.fsync()
            assert path.read_bytes() == b"01XY"
            await f.seek(0)
            buffer = bytearray(10)
            assert await f.readinto(buffer) == 4
            assert buffer == b"01XY" + bytes(6)

    files_run(main())


def test_pread_and_pwrite_go_beside_the_position(files_run: Run, tmp_path: Path) -> None:
    path = tmp_path / "a"
    data = os.urandom(1 << 20)
    path.write_bytes(data)
    drop_cache(path)

    async def main() -> None:
        async with fs.open(path, "r+b") as f:

            async def some(start: int) -> None:
                for i in range(start, 256, 8):
                    assert await f.pread(4096, i * 4096) == data[i * 4096 : (i + 1) * 4096]

            await asyncio.gather(*[some(i) for i in range(8)])
            assert await f.pread(10, 1 << 21) == b""
            assert await f.tell() == 0
            assert await f.pwrite(b"abc", 5) == 3
            assert await f.read(10) == data[:5] + b"abc" + data[8:10]
            assert await f.write(b"Z") == 1
            assert await f.pread(2, 10) == b"Z" + data[11:12]
            with pytest.raises(OSError, match="Invalid argument"):
                await f.pread(1, -1)

    files_run(main())


def test_pwrite_beside_a_read_moves_no_byte(files_run: Run, tmp_path: Path) -> None:
    path = tmp_path / "a"
    data = os.urandom(1_000_000)
    path.write_bytes(data)

    async def main() -> None:
        async with fs.open(path, "r+b") as f:
            assert await f.read(10) == data[:10]
            assert len(await f.peek()) > 1000  # so something is buffered
            drop_cache(path)
            reading = asyncio.create_task(f.read(100_000))
            await asyncio.sleep(0)  # it has begun
            await f.pwrite(b"x", 900_000)
            assert await reading == data[10:100_010]
            assert await f.read(10) == data[100_010:100_020]

    files_run(main())


def test_what_pwrite_wrote_is_read_whatever_was_ahead(
    files_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs_a_disk(tmp_path)
    path = tmp_path / "a"
    path.write_bytes(bytes(100_000))
    submit = _threads.submit
    held: list[Callable[[], None]] = []

    def hold(loop: Any, execute: Callable[[], None], finish: Callable[[], None]) -> None:
        """In threads: the operation is done at once, and lands when it is told to."""
        execute()
        held.append(finish)

    async def main() -> None:
        async with fs.open(path, "r+b") as f:
            drop_cache(path)
            monkeypatch.setattr(_threads, "submit", hold)
            reading = asyncio.create_task(f.read(50_000))
            await asyncio.sleep(0)
            await asyncio.sleep(0)  # it has begun, if it yielded first, too
            monkeypatch.setattr(_threads, "submit", submit)
            reading.cancel()
            await asyncio.wait([reading])
            await f.pwrite(b"x", 30_000)
            for finish in held:
                finish()
            assert await f.read(50_000) == bytes(30_000) + b"x" + bytes(19_999)

    files_run(main())


def test_errors_are_those_of_open(files_run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        with pytest.raises(FileNotFoundError) as caught:
            await fs.open(tmp_path / "nothing", "rb")
        assert caught.value.filename == str(tmp_path / "nothing")
        with pytest.raises(IsADirectoryError):
            await fs.open(tmp_path, "rb")
        (tmp_path / "a").touch()
        with pytest.raises(FileExistsError):
            await fs.open(tmp_path / "a", "xb")
        with pytest.raises(OSError, match="Bad file descriptor"):
            await fs.open(12345, "rb")
        async with fs.open(tmp_path / "a", "rb") as f:
            with pytest.raises(OSError, match="not writable"):
                await f.write(b"x")
        with pytest.raises(ValueError, match="closed file"):
            await f.read()
        await f.close()

    files_run(main())


def test_a_full_disk_is_told_and_nothing_hangs(files_run: Run) -> None:
    async def main() -> None:
        f = await fs.open("/dev/full", "wb")
        await f.write(b"x")
        with pytest.raises(OSError, match="No space left"):
            await f.flush()
        with pytest.raises(OSError, match="No space left"):
            await f.close()
        assert f.closed

    files_run(main())


def test_a_file_over_the_size_limit_keeps_what_fits(files_run: Run, tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    async def main() -> None:
        f = await fs.open(tmp_path / "a", "wb")
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
        try:
            with pytest.raises(OSError, match="File too large"):
                await f.write(bytes(300_000))
                await f.flush()
            with pytest.raises(OSError, match="File too large"):
                await f.close()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert f.closed

    try:
        files_run(main())
    finally:
        signal.signal(signal.SIGXFSZ, before)
    assert (tmp_path / "a").stat().st_size == 10_000


def test_fifos_devices_and_proc(files_run: Run, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)

    async def write() -> None:
        async with fs.open(fifo, "wb") as f:
            assert not f.seekable()
            await f.write(b"abc")
            await f.flush()
            await asyncio.sleep(0)
            await f.write(b"def")

    async def main() -> None:
        writer = asyncio.create_task(write())
        async with fs.open(fifo, "rb") as f:
            assert await f.read(5) == b"abcde"
            assert await f.read() == b"f"
        await writer
        async with fs.open("/dev/zero", "rb") as f:
            assert await f.read(10) == bytes(10)
        status = await fs.read_bytes("/proc/self/status")
        assert f"Pid:\t{os.getpid()}\n".encode() in status

    files_run(main())


def test_a_pipe_that_says_nothing_does_not_keep_a_file_from_closing(files_run: Run) -> None:
    r, w = os.pipe()

    async def main() -> None:
        f = await fs.open(r, "rb")
        reading = asyncio.create_task(f.read(10))
        await asyncio.sleep(0.01)
        assert not reading.done()
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        os.write(w, b"not lost!!")
        assert await f.read(10) == b"not lost!!"
        reading = asyncio.create_task(f.read(10))
        await asyncio.sleep(0.01)
        await f.close()
        with pytest.raises(ValueError, match="closed"):
            await reading

    files_run(main())
    os.close(w)


def test_a_pipe_closes_however_many_reads_wait(files_run: Run) -> None:
    r, w = os.pipe()

    async def main() -> None:
        f = await fs.open(r, "rb")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(f.read(10), 0.01)  # its operation waits on
        reading = [asyncio.create_task(f.read(10)) for _ in range(3)]
        await asyncio.sleep(0.01)
        await asyncio.wait_for(f.close(), 5)
        for task in reading:
            with pytest.raises(ValueError, match="closed"):
                await task

    files_run(main())
    os.close(w)


def direct(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_DIRECT)


async def open_directly(path: Path) -> fs.BinaryFile:
    try:
        return await fs.open(path, "rb", opener=direct)
    except OSError as exc:
        if exc.errno == errno.EINVAL:
            pytest.skip("the file system of temporary files has no O_DIRECT")
        raise


@pytest.mark.parametrize("size", [64 * 4096, 200_000])
def test_o_direct_through_an_opener(files_run: Run, tmp_path: Path, size: int) -> None:
    path = tmp_path / "a"
    data = os.urandom(size)
    path.write_bytes(data)
    drop_cache(path)
    threads = []

    def opener(path: str, flags: int) -> int:
        threads.append(threading.current_thread())
        return direct(path, flags)

    async def main() -> None:
        async with await open_directly(path) as f:
            assert await f.pread(4096, 8192) == data[8192:12288]
            assert await f.read() == data
            await f.seek(0)
            assert await f.read(10_000) + await f.read() == data
        async with fs.open(path, "rb", buffering=0, opener=opener) as f:
            assert await f.readall() == data
        assert threads[0] is not threading.main_thread()

    files_run(main())


def test_direct_reads_at_once_have_memory_of_their_own(files_run: Run, tmp_path: Path) -> None:
    """Which is used again, though not before the kernel is done with it: some are cancelled."""
    path = tmp_path / "a"
    blocks = 512
    path.write_bytes(b"".join(b"%08d" % i * 512 for i in range(blocks)))
    drop_cache(path)
    rnd = random.Random(5)

    def new_read(f: fs.BinaryFile) -> tuple[asyncio.Task[bytes], bytes]:
        first, n = rnd.randrange(blocks), rnd.choice([1, 1, 1, 2, 3, 16, 17, 40])
        wanted = b"".join(b"%08d" % i * 512 for i in range(first, min(first + n, blocks)))
        return asyncio.ensure_future(f.pread(n * 4096, first * 4096)), wanted

    async def main() -> None:
        async with await open_directly(path) as f:
            for _ in range(20):
                reads = [new_read(f) for _ in range(100)]
                await asyncio.wait([task for task, _ in reads], return_when="FIRST_COMPLETED")
                for task, _ in rnd.sample(reads, 50):
                    task.cancel()
                for task, wanted in reads + [new_read(f) for _ in range(50)]:
                    try:
                        assert await task == wanted
                    except asyncio.CancelledError:
                        assert task.cancelled()

    files_run(main())


@pytest.mark.measures_memory
def test_a_direct_read_gives_its_memory_back_when_it_has_landed(
    files_run: Run, tmp_path: Path
) -> None:
    """Though its task is still there. And what cannot be had at all is a MemoryError."""
    path = tmp_path / "a"
    path.write_bytes(b"x" * (1 << 20))

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

    async def main() -> None:
        async with await open_directly(path) as f:
            before = resident()
            tasks = [asyncio.ensure_future(f.pread(1 << 20, 0)) for _ in range(100)]
            for data in await asyncio.gather(*tasks):
                assert data == b"x" * (1 << 20)
            del data
            assert resident() - before < 150 << 20
            with pytest.raises(MemoryError):
                await f.pread(1 << 62, 0)
            assert await f.pread(4096, 0) == b"x" * 4096

    files_run(main())


def test_reads_at_a_place_that_fail(files_run: Run, caplog: pytest.LogCaptureFixture) -> None:
    """Nobody reads at address 0. Those whom nobody waits for any more say nothing."""

    async def read(f: fs.BinaryFile) -> bytes:
        return await f.pread(4096, 0)

    async def main() -> None:
        async with await fs.open("/proc/self/mem", "rb", buffering=0) as f:
            with pytest.raises(OSError, match="/proc/self/mem") as caught:
                await read(f)
            assert caught.value.errno == errno.EIO
            cancelled = asyncio.ensure_future(read(f))
            await asyncio.sleep(0)
            cancelled.cancel()
            with pytest.raises(asyncio.CancelledError):
                await cancelled
            closed = read(f)
            closed.send(None)
            closed.close()

    files_run(main())
    gc.collect()
    assert caplog.records == []


class Turns:
    """How often a task beside the others had its turn."""

    def __init__(self) -> None:
        self.taken = 0

    async def count(self) -> None:
        while True:
            await asyncio.sleep(0)
            self.taken += 1


def test_much_at_once_takes_turns(files_run: Run) -> None:
    """In memory, where nothing has to wait."""
    size = 64 << 20
    data = memoryview(os.urandom(1 << 20) * 64)
    turns = Turns()

    async def main() -> None:
        counter = asyncio.create_task(turns.count())
        with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
            for buffering in (-1, 0):
                async with fs.open(f"{folder}/a", "w+b", buffering=buffering) as f:
                    calls: list[tuple[Any, Any]] = [
                        (f.write, bytes(data)),
                        (f.write, data),
                        (f.readinto, bytearray(size)),
                        (f.read, size),
                        (f.readall, None),
                    ]
                    for call, arg in calls:
                        turns.taken = 0
                        await f.seek(0)
                        got = await (call() if arg is None else call(arg))
                        assert turns.taken > 10, call
                        assert (got if isinstance(got, int) else len(got)) == size
                        if isinstance(arg, bytearray):
                            assert arg == data
                        elif isinstance(got, bytes):
                            assert got == data
                        assert await f.tell() == size
        counter.cancel()

    files_run(main(), timeout=60)


def test_a_stream_with_o_nonblock_waits(files_run: Run) -> None:
    """As node and ssh leave terminals."""
    r, w = os.pipe()
    os.set_blocking(r, False)
    os.set_blocking(w, False)

    async def main() -> None:
        async with fs.open(r, "rb", buffering=0) as f, fs.open(w, "wb") as g:
            reading = asyncio.create_task(f.read(10))
            await asyncio.sleep(0.01)
            assert not reading.done()
            os.write(w, b"abc")
            assert await reading == b"abc"
            writing = asyncio.create_task(g.write(bytes(1_000_000)))
            await asyncio.sleep(0.01)
            got = 0
            while got < 900_000:
                got += len(await f.read(100_000))
            assert await writing == 1_000_000
            flushing = asyncio.create_task(g.flush())
            while got < 1_000_000:
                got += len(await f.read(100_000))
            await flushing
            reading = asyncio.create_task(f.read(10))
            await asyncio.sleep(0.01)
            await f.close()
            with pytest.raises(ValueError, match="closed"):
                await reading

    files_run(main())


def test_a_close_that_fails_lets_nobody_wait(files_run: Run) -> None:
    r, w = os.pipe()

    async def main() -> None:
        f = await fs.open(r, "rb")
        tasks = [asyncio.create_task(f.read(10))]
        await asyncio.sleep(0)
        closing = asyncio.create_task(f.close())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        tasks.append(asyncio.create_task(f.read(10)))
        os.close(r)
        with pytest.raises(OSError, match="Bad file descriptor"):
            await closing
        for task in tasks:
            with pytest.raises(ValueError, match="closed"):
                await asyncio.wait_for(task, 5)

    files_run(main())
    os.close(w)


def test_read_many_gives_each_file_once(files_run: Run, tmp_path: Path) -> None:
    paths = []
    for i in range(100):
        path = tmp_path / str(i)
        path.write_bytes(b"%d" % i * i)
        if i % 3 == 0:
            drop_cache(path)
        paths.append(path)
    missing = tmp_path / "missing"

    async def main() -> None:
        found = {
            p: data async for p, data in fs.read_many([*map(str, paths), "/proc/self/stat"], 8)
        }
        assert len(found.pop("/proc/self/stat")) > 10
        assert found == {str(tmp_path / str(i)): b"%d" % i * i for i in range(100)}
        everything = [x async for x in fs.read_many([paths[0], missing, paths[1]], errors="return")]
        assert {p for p, _ in everything} == {paths[0], missing, paths[1]}
        (error,) = [x for p, x in everything if p == missing]
        assert isinstance(error, FileNotFoundError)
        with pytest.raises(FileNotFoundError):
            async for _ in fs.read_many([missing]):
                pass

    files_run(main())


def test_leaving_read_many_early_stops_it(files_run: Run) -> None:
    async def main() -> None:
        before = asyncio.all_tasks()
        async with fs.read_many(["/proc/self/stat"] * 100, 4) as many:
            async for _ in many:
                break
        assert asyncio.all_tasks() == before

    files_run(main())


def test_a_file_that_shrinks_while_it_is_read(files_run: Run, tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(bytes(1_000_000))

    async def main() -> None:
        async with fs.open(path, "rb") as f:
            assert len(await f.read(10)) == 10
            os.truncate(path, 100_000)
            await f.seek(50_000)
            assert len(await f.read()) == 50_000
            os.truncate(path, 10)
            assert await f.read() == b""

    files_run(main())


def test_a_file_that_grows_while_it_is_read_whole(files_run: Run, tmp_path: Path) -> None:
    """What is read is what was there at some moment between the call and its end."""
    path = tmp_path / "a"
    path.touch()
    content = os.urandom(10_000)  # some 200 pieces, for each of which the GIL is 5 ms away
    stop = threading.Event()

    def append() -> None:
        with path.open("ab", buffering=0) as f:
            at = 0
            while at < len(content) and not stop.is_set():
                at += f.write(content[at : at + 1 + at % 100])

    async def main() -> None:
        while appender.is_alive():
            least = path.stat().st_size
            data = await fs.read_bytes(path)
            assert least <= len(data) <= path.stat().st_size
            assert data == content[: len(data)]
            [(_, data)] = [pair async for pair in fs.read_many([path])]
            assert data == content[: len(data)]

    appender = threading.Thread(target=append)
    appender.start()
    try:
        files_run(main())
    finally:
        stop.set()
        appender.join()
    assert path.read_bytes() == content


def test_a_file_that_grows_after_it_was_opened(files_run: Run, tmp_path: Path) -> None:
    path = tmp_path / "a"

    async def main() -> None:
        for before, after in ((10, 20), (10, 3_000_000), (2_000_000, 1_500_000)):
            data, more = os.urandom(before), os.urandom(after)
            path.write_bytes(data)
            async with fs.open(path, "r+b") as f:
                assert await f.read(5) == data[:5]
                with path.open("ab") as other:
                    other.write(more)
                assert await f.write(b"12345") == 5
                assert await f.read() == (data + more)[10:]
                await f.seek(0)
                assert await f.read() == data[:5] + b"12345" + (data + more)[10:]
                drop_cache(path)
                assert await f.seek(3) == 3
                assert await f.read(before + after) == (data[:5] + b"12345" + data[10:] + more)[3:]

    files_run(main())


def test_tasks_that_read_from_the_caches_take_turns(files_run: Run, tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(bytes(4096))
    turns = Turns()

    async def main() -> None:
        counter = asyncio.create_task(turns.count())
        async with fs.open(path, "rb") as f:
            for _ in range(5000):
                await f.pread(4096, 0)
        counter.cancel()

    files_run(main())
    assert turns.taken > 20


@pytest.mark.parametrize("tasks", [2, 3, 8])
def test_turns_are_about_as_long_for_all(tasks: int, files_run: Run, tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(bytes(4096))
    calls = [0] * tasks

    async def reads(number: int, f: Any) -> None:
        while max(calls) < 3000:
            await f.pread(16, 0)
            calls[number] += 1

    async def main() -> None:
        async with fs.open(path, "rb") as f:
            await asyncio.gather(*[reads(number, f) for number in range(tasks)])

    files_run(main())
    assert min(calls) > max(calls) / 3


def test_who_works_on_what_it_reads_takes_turns_too(files_run: Run, tmp_path: Path) -> None:
    """Lines out of a buffer cost nothing, but what is done with them does."""
    path = tmp_path / "a"
    path.write_bytes(b"line\n" * 1000)
    lines = 0
    lines_at_turn = []

    async def count() -> None:
        while True:
            await asyncio.sleep(0)
            lines_at_turn.append(lines)

    async def main() -> None:
        nonlocal lines
        counter = asyncio.create_task(count())
        async with fs.open(path) as f:
            async for _ in f:
                until = time.perf_counter() + 0.0002  # at least: more only makes turns shorter
                while time.perf_counter() < until:
                    pass
                lines += 1
        counter.cancel()

    files_run(main())
    assert lines == 1000
    most = max(b - a for a, b in itertools.pairwise(lines_at_turn))
    assert most <= 16  # the second look at the clock sees that the time is over: mostly 8


def test_the_first_turns_of_many_tasks_are_short(files_run: Run, tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(bytes(4096))
    calls_at_turn = []
    calls = 0

    async def count() -> None:
        while True:
            await asyncio.sleep(0)
            calls_at_turn.append(calls)

    async def main() -> None:
        counter = asyncio.create_task(count())
        async with fs.open(path, "rb") as f:

            async def read() -> None:
                nonlocal calls
                for _ in range(200):
                    await f.pread(4096, 0)
                    calls += 1

            await asyncio.gather(*[read() for _ in range(64)])
        counter.cancel()

    files_run(main())
    most = max(b - a for a, b in itertools.pairwise(calls_at_turn))
    assert most < 250


def test_readinto_takes_any_writable_buffer(files_run: Run, tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(bytes(range(100)))

    async def main() -> None:
        with mmap.mmap(-1, 4096) as memory:
            async with fs.open(path, "rb", buffering=0) as f:
                assert await f.readinto(memory) == 100
            assert memory[:100] == bytes(range(100))
        async with fs.open(path, "rb") as f:
            with pytest.raises((TypeError, BufferError)):
                await f.readinto(b"12")

    files_run(main())
