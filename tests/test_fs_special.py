"""`ringloop.fs` where files are not plain: /proc, /sys, devices, FIFOs, full disks, FUSE.

Also what happens to plain ones: no permission, signals, somebody who makes them shorter.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import pathlib
import pty
import shutil
import signal
import subprocess
import sys
import tempfile
import termios
import threading
import time
import tty
import weakref
from typing import TYPE_CHECKING, Any

import pytest

import drivers
from files import drop_cache, threads_settled
from machine import punctual_loop
from requirement import missing
from ringloop import fs
from ringloop._driver.choose import why_not_uring
from ringloop.bench.machine import file_system
from ringloop.fs import _threads

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    Run = Callable[..., Any]

NOBODY = 65534
FAR_LATE_S = 0.4  # less than the far file system takes
LIBC = ctypes.CDLL(None, use_errno=True)


# -- /proc, /sys, devices ----------------------------------------------------------------

# Their sizes are 0, or a page whatever is in them.
ODD = ["/proc/self/cmdline", "/proc/filesystems", "/sys/devices/system/cpu/possible"]
ODD += ["/proc/cpuinfo", "/sys/kernel/mm/transparent_hugepage/enabled"]


@pytest.mark.parametrize("name", ODD)
def test_files_that_lie_about_their_size(files_run: Run, tmp_path: Path, name: str) -> None:
    path = pathlib.Path(name)
    if not path.exists():
        pytest.skip(f"this kernel has no {name}")
    data = path.read_bytes()
    assert data

    async def main() -> None:
        assert await fs.read_bytes(path) == data
        assert [found async for found in fs.read_many([path])] == [(path, data)]
        async with fs.open(path, "rb") as f:
            assert await f.read(5) + await f.read() == data
            await f.seek(0)
            assert await f.readlines() == data.splitlines(keepends=True)
            assert await f.pread(7, 2) == data[2:9]
            buffer = bytearray(3)
            await f.seek(1)
            assert await f.readinto(buffer) == 3
            assert buffer == data[1:4]
        async with fs.open(path, "rb", buffering=0) as f:
            assert await f.readall() == data
        async with fs.open(path) as t:
            assert "".join([line async for line in t]) == data.decode()
        await fs.copyfile(path, tmp_path / "copy")
        assert (tmp_path / "copy").read_bytes() == data

    files_run(main())


def test_proc_is_written_to(files_run: Run) -> None:
    comm = pathlib.Path("/proc/self/comm")
    before = comm.read_text()

    async def main() -> None:
        async with fs.open(comm, "w") as f:
            await f.write("ringtest")
        assert await fs.read_text(comm) == "ringtest\n"

    try:
        files_run(main())
    finally:
        comm.write_text(before)


def test_proc_says_no_as_the_kernel_does(files_run: Run) -> None:
    async def main() -> None:
        with pytest.raises(OSError, match="Input/output error"):  # nothing is mapped there
            async with fs.open("/proc/self/mem", "rb", buffering=0) as f:
                await f.read(10)
        with pytest.raises(OSError):  # root gets EIO, others EACCES
            await fs.write_bytes("/proc/version", b"x")
        with pytest.raises(FileNotFoundError):
            await fs.read_bytes("/proc/self/no-such-thing")

    files_run(main())


def test_devices(files_run: Run) -> None:
    async def main() -> None:
        async with fs.open("/dev/null", "r+b", buffering=0) as f:
            assert await f.write(b"x" * 100_000) == 100_000
            assert await f.read() == b""
        async with fs.open("/dev/zero", "rb") as f:
            assert await f.read(3_000_000) == bytes(3_000_000)
        async with fs.open("/dev/urandom", "rb", buffering=0) as f:
            assert len(await f.read(64)) == 64

    files_run(main())


def test_a_terminal(files_run: Run) -> None:
    master, slave = pty.openpty()
    tty.setraw(slave)
    name = os.ttyname(slave)

    async def main() -> None:
        async with fs.open(name, "r+b", buffering=0) as f:
            assert f.isatty()
            assert not f.seekable()
            reading = asyncio.create_task(f.read(100))
            await asyncio.sleep(0.01)
            assert not reading.done()
            # While one waits, other files are read.
            assert await fs.read_bytes("/proc/self/stat")
            os.write(master, b"typed\n")
            assert await reading == b"typed\n"
        async with fs.open(name, "w") as t:
            assert t.line_buffering
            await t.write("shown\n")  # leaves with the line
            assert os.read(master, 100) == b"shown\n"

    try:
        files_run(main())
    finally:
        os.close(master)
        os.close(slave)


def test_the_end_of_a_block_device(files_run: Run, tmp_path: Path) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(1 << 20))
    done = subprocess.run(
        ["losetup", "--find", "--show", image], capture_output=True, text=True, check=False
    )
    if done.returncode:
        missing(f"there are no loop devices, run the tests as root: {done.stderr.strip()}")
    device = done.stdout.strip()

    async def main() -> None:
        async with fs.open(device, "r+b") as f:
            assert await f.seek(0, os.SEEK_END) == 1 << 20
            assert await f.seek(-5, os.SEEK_END) == (1 << 20) - 5
            assert await f.write(b"x" * 5) == 5
            assert await f.read() == b""
            assert await f.pread(10, (1 << 20) - 6) == b"\0xxxxx"

    try:
        files_run(main())
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


def test_a_terminal_that_is_read_slowly(files_run: Run) -> None:
    """It says that it is ready when there is room for less than a page."""
    master, slave = pty.openpty()
    tty.setraw(slave)
    os.set_blocking(master, False)
    size = 200_000

    async def main() -> None:
        f = await fs.open(slave, "wb", closefd=False)
        writing = asyncio.create_task(f.write(bytes(size)))
        flushing = asyncio.create_task(f.flush())
        loop = asyncio.get_running_loop()
        over = loop.create_future()
        got = 0

        def read() -> None:
            nonlocal got
            with contextlib.suppress(BlockingIOError):
                got += len(os.read(master, 1100))
            if got == size:
                loop.remove_reader(master)
                over.set_result(None)

        loop.add_reader(master, read)
        await over
        await asyncio.gather(writing, flushing)
        await f.close()
        assert os.get_blocking(slave)

    timer = threading.Timer(20, termios.tcflush, (master, termios.TCIOFLUSH))
    timer.start()  # should the loop itself wait
    try:
        files_run(main(), timeout=15)
    finally:
        timer.cancel()
        os.close(master)
        os.close(slave)


# -- FIFOs -------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["", "/proc/self/root"], ids=["cached", "not-cached"])
def test_many_waiting_fifos_keep_no_file_from_being_read(
    files_run: Run, tmp_path: Path, way: str
) -> None:
    """Also through a path that the dentry cache never answers for, as procfs wants to be asked."""
    folder = pathlib.Path(f"{way}{tmp_path}")
    readers = [folder / f"r{i}" for i in range(2 * _threads.MAX_THREADS)]
    writers = [folder / f"w{i}" for i in range(2 * _threads.MAX_THREADS)]
    for path in readers + writers:
        os.mkfifo(path)
    (tmp_path / "a").write_bytes(b"x")

    async def main() -> None:
        reading = [asyncio.ensure_future(fs.open(path, "rb")) for path in readers]
        writing = [asyncio.ensure_future(fs.open(path, "wb")) for path in writers]
        await asyncio.sleep(0.02)
        assert not any(task.done() for task in reading + writing)
        drop_cache(tmp_path / "a")
        assert await fs.read_bytes(tmp_path / "a") == b"x"
        assert await fs.read_bytes("/proc/self/stat")
        assert await fs.listdir(tmp_path)
        assert await fs.write_bytes(folder / "b", b"xyz") == 3  # beside those that wait
        for path, task in zip(readers, reading, strict=True):
            async with fs.open(path, "wb") as w, await task as r:
                await w.write(b"hello")
                await w.flush()
                assert await r.read(5) == b"hello"
        for path, task in zip(writers, writing, strict=True):
            async with fs.open(path, "rb") as r, await task as w:
                await w.write(b"hello")
                await w.flush()
                assert await r.read(5) == b"hello"

    files_run(main())


def test_a_cancelled_open_of_a_fifo_closes_what_it_gets(files_run: Run, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)

    async def main() -> None:
        opening = asyncio.ensure_future(fs.open(fifo, "rb"))
        await asyncio.sleep(0.02)
        opening.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opening
        # The thread waits on. It gets its end, which nobody wants any more.
        writer = await fs.open(fifo, "wb", buffering=0)
        with pytest.raises(BrokenPipeError):
            for _ in range(500):
                await writer.write(b"x")
                await asyncio.sleep(0.01)
        await writer.close()

    files_run(main())


def test_a_writer_that_is_gone_before_the_reader_is_in(
    files_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    submit_alone = _threads.submit_alone

    def late(loop: Any, execute: Callable[[], None], finish: Callable[[], None]) -> None:
        def execute_late() -> None:
            time.sleep(0.1)
            execute()

        submit_alone(loop, execute_late, finish)

    monkeypatch.setattr(_threads, "submit_alone", late)

    async def main() -> None:
        for data in (b"abc", b""):
            opening = asyncio.ensure_future(fs.open(fifo, "rb"))
            await asyncio.sleep(0.01)
            fd = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
            os.write(fd, data)
            os.close(fd)
            async with await opening as f:
                assert await f.read() == data

    files_run(main())


def test_a_fifo_that_is_full(files_run: Run, tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    data = os.urandom(1_000_000)

    async def write() -> None:
        async with fs.open(fifo, "wb") as f:
            assert await f.write(data) == len(data)

    async def main() -> None:
        writing = asyncio.create_task(write())
        async with fs.open(fifo, "rb", buffering=0) as f:
            got = b""
            while piece := await f.read(30_000):
                got += piece
                if len(got) < 200_000:
                    await asyncio.sleep(0.001)  # it fills up
        await writing
        assert got == data

    files_run(main())


# In a process of its own: whoever blocks the loop's thread stops everything in it.
FIFO_PROGRAM = """
import asyncio, os, sys
import ringloop
from ringloop import fs

driver, fifo = sys.argv[1:]

async def main():
    async with fs.open(fifo, "r+b", buffering=0) as f:
        reading = asyncio.ensure_future(f.read(5))
        await asyncio.sleep(0.01)
        assert not reading.done()
        assert os.write(f.fileno(), b"early") == 5
        assert await reading == b"early"
    async with fs.open(fifo, "r+b", buffering=0) as r, asyncio.TaskGroup() as group:
        group.create_task(fs.write_bytes(fifo, bytes(1 << 20)))
        left = 1 << 20
        while left:
            left -= len(await r.read(1 << 16))

if driver == "asyncio":
    asyncio.run(main())
else:
    ringloop.run(main(), driver=driver)
print("done")
"""


@pytest.mark.parametrize("loop_kind", [*drivers.REAL, "asyncio"])
def test_a_fifo_in_memory_blocks_nothing(loop_kind: str) -> None:
    """tmpfs refuses RWF_NOWAIT, as FIFOs do; its files may be read at once, its FIFOs not."""
    if loop_kind == "uring" and (reason := why_not_uring()) is not None:
        missing(reason)
    if file_system(pathlib.Path("/dev/shm")) != "tmpfs":
        missing("there is no tmpfs on /dev/shm: mount one")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        fifo = pathlib.Path(folder) / "fifo"
        os.mkfifo(fifo)
        ran = subprocess.run(
            [sys.executable, "-c", FIFO_PROGRAM, loop_kind, fifo],
            stdout=subprocess.PIPE,
            timeout=20,
            check=True,
        )
    assert ran.stdout == b"done\n"


def test_a_reader_that_goes_away(files_run: Run) -> None:
    r, w = os.pipe()

    async def main() -> None:
        f = await fs.open(w, "wb")
        await f.write(b"x")
        os.close(r)
        with pytest.raises(BrokenPipeError):
            await f.flush()
        with pytest.raises(BrokenPipeError):
            await f.close()
        assert f.closed

    files_run(main())


# -- permissions, full disks -------------------------------------------------------------


@pytest.fixture
def unprivileged() -> Iterator[None]:
    """For root, who may read everything: somebody else for a while."""
    was = os.geteuid()
    if was == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(was)


@pytest.fixture
def closed_folder() -> Iterator[Path]:
    """A folder that everybody can enter, with things in it that nobody may touch."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="ringloop-test-"))
    folder.chmod(0o755)
    (folder / "secret").write_bytes(b"secret")
    (folder / "secret").chmod(0)
    (folder / "closed").mkdir()
    (folder / "closed" / "inside").write_bytes(b"x")
    (folder / "closed").chmod(0)
    (folder / "readable").write_bytes(b"open to all")
    (folder / "readable").chmod(0o444)
    folder.chmod(0o555)
    yield folder
    folder.chmod(0o755)
    (folder / "closed").chmod(0o755)
    shutil.rmtree(folder)


@pytest.mark.usefixtures("unprivileged")
def test_what_is_not_permitted(files_run: Run, closed_folder: Path) -> None:
    folder = closed_folder
    secret, inside, readable = folder / "secret", folder / "closed" / "inside", folder / "readable"

    async def copy_nothing() -> None:
        await fs.copytree(folder, folder / "new")

    async def iterate(what: Any) -> None:
        async for _ in what:
            pass

    async def main() -> None:
        refused: list[tuple[Any, Path]] = [
            (lambda: fs.open(secret), secret),
            (lambda: fs.open(inside, "rb"), inside),
            (lambda: fs.open(readable, "r+b"), readable),
            (lambda: fs.open(folder / "new", "wb"), folder / "new"),
            (lambda: fs.read_bytes(secret), secret),
            (lambda: fs.read_text(secret), secret),
            (lambda: fs.write_bytes(readable, b"x"), readable),
            (lambda: fs.stat(inside), inside),
            (lambda: fs.lstat(inside), inside),
            (lambda: fs.listdir(folder / "closed"), folder / "closed"),
            (lambda: iterate(fs.scandir(folder / "closed")), folder / "closed"),
            (lambda: iterate(fs.read_many([secret])), secret),
            (lambda: fs.unlink(readable), readable),
            (lambda: fs.mkdir(folder / "new"), folder / "new"),
            (lambda: fs.makedirs(folder / "new" / "er"), folder / "new"),
            (lambda: fs.rmdir(folder / "closed"), folder / "closed"),
            (lambda: fs.rename(readable, folder / "new"), readable),
            (lambda: fs.symlink("x", folder / "new"), pathlib.Path("x")),
            (lambda: fs.copyfile(secret, folder / "new"), secret),
            (lambda: fs.copyfile(readable, folder / "new"), folder / "new"),
            (lambda: fs.rmtree(folder / "closed"), folder / "closed"),
            (copy_nothing, folder / "new"),
            (lambda: fs.tempfile.NamedTemporaryFile(dir=folder), folder),
        ]
        for call, path in refused:
            with pytest.raises(PermissionError) as caught:
                await call()
            assert os.fspath(caught.value.filename).startswith(str(path)), path
        with pytest.raises(PermissionError):
            await fs.write_bytes(readable, b"x", atomic=True)
        assert await fs.access(readable, os.R_OK)
        assert not await fs.exists(inside)
        assert await fs.read_bytes(readable) == b"open to all"
        found = {p: data async for p, data in fs.read_many([secret, readable], errors="return")}
        assert isinstance(found[secret], PermissionError)
        assert found[readable] == b"open to all"

    files_run(main())


@pytest.fixture(params=["tmpfs", "ext4"])
def small_disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A file system with room for very little."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if request.param == "tmpfs":
        command = ["mount", "-t", "tmpfs", "-o", "size=256k", "test", str(folder)]
    else:
        image = tmp_path / "image"
        image.write_bytes(bytes(1 << 20))
        if shutil.which("mkfs.ext4") is None:
            missing("mkfs.ext4 is not there: install e2fsprogs")
        subprocess.run(["mkfs.ext4", "-q", "-O", "^has_journal", image], check=True)
        command = ["mount", "-o", "loop", str(image), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        missing(f"cannot mount a {request.param}, run the tests as root: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk(files_run: Run, small_disk: Path) -> None:
    old, big = small_disk / "old", small_disk.parent / "big"
    old.write_bytes(b"old")
    big.write_bytes(bytes(2 << 20))

    async def main() -> None:
        f = await fs.open(small_disk / "a", "wb")
        written = 0
        with pytest.raises(OSError, match="No space left"):
            while True:
                written += await f.write(bytes(50_000))
        with pytest.raises(OSError, match="No space left"):
            await f.close()
        assert f.closed
        assert 0 < (small_disk / "a").stat().st_size < written + 50_000
        await fs.unlink(small_disk / "a")
        with pytest.raises(OSError, match="No space left"):
            async with fs.open(small_disk / "t", "w") as t:
                await t.write("é" * 1_000_000)
        await fs.unlink(small_disk / "t")
        with pytest.raises(OSError, match="No space left"):
            await fs.write_bytes(old, bytes(2 << 20), atomic=True)
        assert old.read_bytes() == b"old"
        assert {p.name for p in small_disk.iterdir()} <= {"old", "lost+found"}
        with pytest.raises(OSError, match="No space left"):
            await fs.copyfile(big, small_disk / "b")
        await fs.unlink(small_disk / "b")
        async with fs.open(small_disk / "p", "wb") as f:
            with pytest.raises(OSError, match="No space left"):
                await f.pwrite(bytes(2 << 20), 0)
        await fs.unlink(small_disk / "p")
        # There is room again.
        assert await fs.write_bytes(old, b"new", atomic=True) == 3
        assert old.read_bytes() == b"new"

    files_run(main())


# -- signals, other people's changes -----------------------------------------------------


def test_signals_interrupt_nothing(files_run: Run, tmp_path: Path) -> None:
    """EINTR in the loop's thread and in those of the pool."""
    caught = 0
    path, fifo = tmp_path / "a", tmp_path / "fifo"
    data = os.urandom(300_000)
    os.mkfifo(fifo)

    def count(*_: object) -> None:
        nonlocal caught
        caught += 1

    def interrupt_threads() -> None:
        while not over.wait(0.0005):
            for thread in threading.enumerate():
                if thread.name == "ringloop-fs" and thread.ident is not None:
                    with contextlib.suppress(ProcessLookupError):
                        signal.pthread_kill(thread.ident, signal.SIGUSR1)

    async def main() -> None:
        opening = asyncio.ensure_future(fs.open(fifo, "rb"))  # waits in a thread
        for _ in range(30):
            async with fs.open(path, "wb") as f:
                await f.write(data)
                await f.fsync()
            drop_cache(path)
            assert await fs.read_bytes(path) == data
            assert await fs.read_bytes("/proc/self/cmdline")
            await fs.copyfile(path, tmp_path / "b")
        # The thread of the FIFO ends below: until then each that is sent a signal is there.
        over.set()
        thread.join()
        async with fs.open(fifo, "wb") as w, await opening as r:
            await w.write(b"x")
            await w.flush()
            assert await r.read(1) == b"x"

    over = threading.Event()
    old = [signal.signal(number, count) for number in (signal.SIGUSR1, signal.SIGALRM)]
    thread = threading.Thread(target=interrupt_threads)
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
    thread.start()
    try:
        files_run(main(), timeout=30)
    finally:
        over.set()
        thread.join()
        signal.setitimer(signal.ITIMER_REAL, 0)
        # A signal that a thread takes later would find nobody, or end the process.
        files_run(threads_settled())
        for number, handler in zip((signal.SIGUSR1, signal.SIGALRM), old, strict=True):
            signal.signal(number, handler)
    assert caught > 20


@pytest.mark.parametrize("cold", [False, True])
def test_files_that_shrink_while_they_are_read(files_run: Run, tmp_path: Path, cold: bool) -> None:
    path = tmp_path / "a"
    data = os.urandom(9_000_000)

    async def read_all(f: Any) -> bytes:
        return bytes(await f.read())

    async def read_much(f: Any) -> bytes:
        return bytes(await f.read(len(data)))

    async def read_pieces(f: Any) -> bytes:
        pieces = []
        while piece := await f.read(100_000):
            pieces.append(piece)
            await asyncio.sleep(0)
        return b"".join(pieces)

    async def read_into(f: Any) -> bytes:
        buffer = bytearray(len(data))
        n = await f.readinto(buffer)
        return bytes(buffer[:n])

    async def main() -> None:
        for read in (read_all, read_much, read_pieces, read_into):
            for turns in range(4):
                path.write_bytes(data)
                if cold:
                    drop_cache(path)
                async with fs.open(path, "rb") as f:
                    reading = asyncio.ensure_future(read(f))
                    for _ in range(turns):
                        await asyncio.sleep(0)
                    os.truncate(path, 4_000_000)
                    got = await reading
                    assert len(got) >= 4_000_000
                    # What was there in time, and no byte that never was; the kernel may
                    # show zeros for the page in which the end fell.
                    assert got[:4_000_000] == data[:4_000_000]
                    rest = got[4_000_000:].rstrip(b"\0")
                    assert data[4_000_000:].startswith(rest)
                    assert await f.read() == b""

    files_run(main(), timeout=60)


# -- a file system that answers late -----------------------------------------------------


@pytest.fixture
def far_away(tmp_path: Path) -> Iterator[Path]:
    """A FUSE mount with `file`, whose server takes 0.5 s for everything but names."""
    folder = tmp_path / "far"
    folder.mkdir()
    if os.geteuid() != 0 or not os.path.exists("/dev/fuse"):
        missing("FUSE needs root and /dev/fuse (modprobe fuse)")
    server = subprocess.Popen(
        [sys.executable, str(pathlib.Path(__file__).with_name("fuse_server.py")), folder, "0.5"],
        stdout=subprocess.PIPE,
    )
    assert server.stdout is not None
    try:
        if server.stdout.readline() != b"mounted\n":
            missing("the kernel refuses FUSE mounts here")
        yield folder
    finally:
        LIBC.umount2(str(folder).encode(), 2)  # MNT_DETACH
        server.kill()
        server.wait()
        server.stdout.close()


def test_holes_are_found_without_waiting(files_run: Run, tmp_path: Path) -> None:
    path = tmp_path / "a"
    with path.open("wb") as file:
        file.truncate(1 << 20)
        file.seek(1 << 19)
        file.write(b"x" * 4096)
        expected = file.seek(0, os.SEEK_DATA), file.seek(1 << 19, os.SEEK_HOLE)

    async def main() -> None:
        async with fs.open(path, "r+b") as f:
            assert await f.read(3) == bytes(3)
            assert await f.seek(0, os.SEEK_DATA) == expected[0]
            assert await f.read(1) == (b"x" if expected[0] else b"\0")
            assert await f.seek(1 << 19, os.SEEK_HOLE) == expected[1]
            assert await f.tell() == expected[1]
            with pytest.raises(OSError, match="No such device or address"):
                await f.seek(2 << 20, os.SEEK_DATA)
            assert await f.tell() == expected[1]

    files_run(main())


def test_a_file_system_that_answers_late_blocks_nothing(files_run: Run, far_away: Path) -> None:
    path = far_away / "file"
    data = b"from far away\n" * 1000

    async def main() -> None:
        assert (await fs.stat(path)).st_size == len(data)  # now its name is in the cache
        async with punctual_loop(FAR_LATE_S):
            assert (await fs.stat(path)).st_size == len(data)
            assert await fs.read_bytes(path) == data
            async with fs.open(path, "rb") as f:
                assert (await fs.stat(f.fileno())).st_size == len(data)
                assert await fs.isfile(f.fileno())
                assert await f.readline() == b"from far away\n"
                assert await f.pread(4, 5) == b"far "
                assert await f.read() == data[14:]
                assert await f.seek(-5, os.SEEK_END) == len(data) - 5
                assert await f.read() == data[-5:]
            async with fs.open(path) as t:
                assert await t.seek(0, os.SEEK_END) == len(data)
            async with fs.open(path, "ab") as f:
                assert await f.tell() == len(data)
            assert [x async for x in fs.read_many([path] * 3)] == [(path, data)] * 3
            with pytest.raises(FileNotFoundError):
                await fs.read_bytes(far_away / "nothing")

    files_run(main(), timeout=60)


def test_writing_to_a_file_system_that_answers_late_blocks_nothing(
    files_run: Run, far_away: Path
) -> None:
    """Which is all that this program does: nothing else looks at what is mounted."""

    async def main() -> None:
        async with punctual_loop(FAR_LATE_S):
            async with fs.open(far_away / "file", "ab") as f:
                assert await f.write(b"x" * 10) == 10
            async with fs.open(far_away / "file", "r+b", buffering=0) as f:
                assert await f.write(b"x") == 1
                assert await f.pwrite(b"x", 5) == 1

    files_run(main(), timeout=60)


def test_a_result_is_its_callers_alone_while_the_thread_is_still_busy(
    files_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        go_on = threading.Event()
        plain = loop.call_soon_threadsafe

        def tell_and_wait(callback: Callable[..., object], *args: Any) -> None:
            plain(callback, *args)
            go_on.wait(20)

        monkeypatch.setattr(loop, "call_soon_threadsafe", tell_and_wait)
        try:
            result: set[int] = await _threads.run(set)
            left = weakref.ref(result)
            del result
            assert left() is None
        finally:
            go_on.set()

    files_run(main())
