"""Cancelling `ringloop.fs`: at each step of each operation, and what must be true after."""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
import shutil
import threading
import types
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import ringloop
from files import drop_cache, needs_a_disk, threads_settled
from machine import open_fds
from ringloop import fs
from ringloop.compat import aiofiles
from ringloop.fs import _threads

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Generator

    Run = Callable[..., Any]

DATA = bytes(range(256)) * 2000


def prepare(folder: Path) -> None:
    for name in ("a", "b", "c"):
        (folder / name).write_bytes(DATA)
        drop_cache(folder / name)
    (folder / "lines").write_bytes(b"0123456789\n" * 20_000)
    drop_cache(folder / "lines")
    (folder / "d").mkdir()
    (folder / "d" / "x").write_bytes(b"x")


async def read_whole(folder: Path) -> None:
    assert await fs.read_bytes(folder / "a") == DATA


async def read_pieces(folder: Path) -> None:
    async with fs.open(folder / "a", "rb") as f:
        assert await f.read(1000) == DATA[:1000]
        assert await f.read() == DATA[1000:]


async def read_lines(folder: Path) -> None:
    async with fs.open(folder / "lines") as f:
        assert len([line async for line in f]) == 20_000


async def read_at_places(folder: Path) -> None:
    async with fs.open(folder / "a", "rb") as f:
        pieces = await asyncio.gather(*[f.pread(4096, i * 4096) for i in range(100)])
        assert b"".join(pieces) == DATA[: 4096 * 100]


async def read_many(folder: Path) -> None:
    paths = [folder / name for name in ("a", "b", "c")] + [Path("/proc/self/stat")] * 5
    async with fs.read_many(paths, 3) as many:
        assert len([path async for path, _ in many]) == 8


async def write(folder: Path) -> None:
    async with fs.open(folder / "new", "wb") as f:
        for _ in range(3):
            await f.write(DATA)
        await f.fsync()
    assert (folder / "new").read_bytes() == DATA * 3


async def update(folder: Path) -> None:
    async with fs.open(folder / "a", "r+b") as f:
        await f.write(b"xyz")
        assert await f.read(3) == DATA[3:6]
        await f.pwrite(b"123", 100)
        await f.truncate(200)
        assert await f.pread(1000, 0) == b"xyz" + DATA[3:100] + b"123" + DATA[103:200]


async def write_atomically(folder: Path) -> None:
    await fs.write_bytes(folder / "a", b"new", atomic=True)


async def copy(folder: Path) -> None:
    await fs.copyfile(folder / "a", folder / "copy")


async def names(folder: Path) -> None:
    await fs.mkdir(folder / "m")
    await fs.rename(folder / "m", folder / "n")
    await fs.rmdir(folder / "n")
    assert "x" in await fs.listdir(folder / "d")
    async with fs.scandir(folder / "d") as entries:
        assert [entry.name async for entry in entries] == ["x"]
    assert len([w async for w in fs.walk(folder)]) >= 2


async def temporary(folder: Path) -> None:
    async with fs.tempfile.NamedTemporaryFile(dir=folder) as f:
        await f.write(b"x")
    async with fs.tempfile.TemporaryDirectory(dir=folder) as name:
        assert await fs.isdir(name)


async def read_into(folder: Path) -> None:
    buffer, held = bytearray(5000), bytearray(300_000)
    async with fs.open(folder / "a", "r+b", buffering=0) as f:
        assert await f.readinto(buffer) == 5000
        assert await f.readinto(held) == 300_000
        assert await f.readall() == DATA[305_000:]
    async with fs.open(folder / "b", "rb") as f:
        assert await f.readline() == DATA[:11]
        assert await f.readlines(5000)
        assert await f.peek()
        assert await f.seek(-10, os.SEEK_END) == len(DATA) - 10
        assert await f.read1(100) == DATA[-10:]


async def read_and_write_text(folder: Path) -> None:
    async with fs.open(folder / "text", "w+", encoding="utf-16") as t:
        await t.writelines(["smörgås\n" * 10_000, "end"])
        await t.seek(0)
        assert await t.read(3) == "smö"
        assert await t.readline() == "rgås\n"
        place = await t.tell()
        assert len(await t.readlines()) == 10_000
        await t.seek(place)
        await t.truncate()
        assert await t.read() == ""
        await t.fdatasync()
    assert await fs.read_text(folder / "text", "utf-16") == "smörgås\n"


async def append_and_place(folder: Path) -> None:
    async with fs.open(folder / "a", "ab", buffering=0) as f:
        await f.write(b"appended")
        await f.flush()
    async with fs.open(folder / "b", "r+b") as f:
        await asyncio.gather(*[f.pwrite(b"%04d" % i, 4 * i) for i in range(50)])
        assert await f.pread(200, 0) == b"".join(b"%04d" % i for i in range(50))


async def write_whole(folder: Path) -> None:
    assert await fs.write_bytes(folder / "new", DATA) == len(DATA)
    assert await fs.write_text(folder / "new", "new\n") == 4


async def read_many_in_order(folder: Path) -> None:
    found = [
        item
        async for item in fs.read_many(
            [folder / "a", folder / "missing", Path("/proc/self/stat")], 2, errors="return"
        )
    ]
    assert len(found) == 3


async def copy_tree(folder: Path) -> None:
    shutil.copytree(folder / "d", folder / "from")
    for i in range(5):
        (folder / "from" / str(i)).write_bytes(DATA)
    await fs.copytree(folder / "from", folder / "to")
    await fs.rmtree(folder / "to")


async def more_names(folder: Path) -> None:
    a = folder / "a"
    await fs.makedirs(folder / "m" / "n")
    await fs.symlink("a", folder / "soft")
    assert await fs.readlink(folder / "soft") == "a"
    await fs.link(a, folder / "hard")
    await fs.replace(folder / "hard", folder / "soft")
    await fs.unlink(folder / "soft")
    await fs.chmod(a, 0o600)
    await fs.utime(a)
    assert (await fs.stat("/proc/self/stat")).st_size == 0
    assert await fs.access(a, os.R_OK)
    assert await fs.exists(a)
    assert (await fs.statvfs(folder)).f_namemax
    assert [p async for p in fs.glob("a", root_dir=folder)] == ["a"]
    assert await fs.Path(a).is_file()
    await fs.Path(folder / "m" / "o").mkdir()
    await fs.Path(folder / "m" / "p").touch()
    assert {p.name async for p in fs.Path(folder / "m").iterdir()} == {"n", "o", "p"}
    await fs.rmtree(folder / "m")


async def send_file(folder: Path) -> None:
    async with fs.open(folder / "a", "rb") as a, fs.open(folder / "new", "wb") as b:
        assert await fs.sendfile(b.fileno(), a.fileno(), 5, 100) == 100


async def through_pipes(folder: Path) -> None:
    os.mkfifo(folder / "fifo")
    async with (
        asyncio.TaskGroup() as group,
        fs.open(folder / "fifo", "r+b", buffering=0) as both,
        fs.open(folder / "fifo", "rb") as r,
    ):
        group.create_task(asyncio.wait_for(both.write(b"x" * 1000), 10))
        assert await r.read(1000) == b"x" * 1000


async def watch(folder: Path) -> None:
    async with fs.watch(folder) as events:
        (folder / "a").write_bytes(b"y")
        while (await anext(events)).kind != "modified":
            pass


async def with_an_opener(folder: Path) -> None:
    async with fs.open(folder / "a", "rb", opener=os.open) as f:
        assert await f.read(5) == DATA[:5]


async def like_aiofiles(folder: Path) -> None:
    async with aiofiles.open(folder / "a", "r+b") as f:
        assert await f.read(10) == DATA[:10]
        await f.write(b"abc")
    async with aiofiles.tempfile.SpooledTemporaryFile(10, dir=folder) as f:
        await f.write(b"x" * 20)
    async with aiofiles.tempfile.TemporaryDirectory(dir=folder) as name:
        assert await aiofiles.os.path.isdir(name)


LEAVE_NOTHING = (write_atomically, temporary, like_aiofiles)

OPERATIONS: list[Callable[[Path], Coroutine[Any, Any, None]]] = [
    read_whole,
    read_pieces,
    read_lines,
    read_at_places,
    read_many,
    write,
    update,
    write_atomically,
    copy,
    names,
    temporary,
    read_into,
    read_and_write_text,
    append_and_place,
    write_whole,
    read_many_in_order,
    copy_tree,
    more_names,
    send_file,
    through_pipes,
    watch,
    with_an_opener,
    like_aiofiles,
]


@types.coroutine
def cancelled_at(suspension: int, main: Coroutine[Any, Any, None]) -> Generator[Any, Any, bool]:
    """Run `main`, but cancel its task when it waits for the n-th time; True if it never did."""
    for _ in range(suspension):
        try:
            waits_for = main.send(None)
        except StopIteration:
            return True
        if _ == suspension - 1:
            task = asyncio.current_task()
            assert task is not None
            asyncio.get_running_loop().call_soon(task.cancel)
        try:
            yield waits_for
        except asyncio.CancelledError as exc:
            cancelled = exc
            break
    else:
        raise AssertionError("it was not cancelled")
    # What it does about it may wait, too.
    try:
        waits_for = main.throw(cancelled)
        while True:
            yield waits_for
            waits_for = main.send(None)
    except StopIteration:
        raise AssertionError("it swallowed the cancellation") from None
    except asyncio.CancelledError:
        return False


async def settled() -> None:
    """Until threads and tasks that a cancelled call left behind are done."""
    for _ in range(200):
        others = [t for t in asyncio.all_tasks() if t is not asyncio.current_task()]
        if not others or (len(others) == 1 and "wait_for" in repr(others)):
            break
        await asyncio.sleep(0.005)
    await threads_settled()


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda f: f.__name__)
def test_cancelled_at_each_step(
    files_run: Run, tmp_path: Path, operation: Callable[[Path], Coroutine[Any, Any, None]]
) -> None:
    """When it waits for the first time, the second, and so on, until it gets through.

    `files_run` sees to it that no descriptor is left.
    """
    if operation is read_whole:
        needs_a_disk(tmp_path)  # else there is no second step

    async def main(attempt: int) -> int:
        for suspension in range(1, 400):
            folder = tmp_path / f"{attempt}-{suspension}"
            folder.mkdir()
            prepare(folder)
            if await asyncio.ensure_future(cancelled_at(suspension, operation(folder))):
                break
            await settled()
            leftover = {p.name for p in folder.iterdir()} - {"a", "b", "c", "d", "lines"}
            if operation in LEAVE_NOTHING:
                assert leftover == set()
            if operation is write_atomically:
                assert (folder / "a").read_bytes() in (DATA, b"new")
            elif operation is copy and leftover:
                assert (folder / "copy").read_bytes() == DATA
            elif operation is copy_tree and "to" in leftover:
                # A file that is there is there as a whole, but for the one that rmtree is at.
                for path in (folder / "to").iterdir():
                    assert path.read_bytes() in (DATA, b"x")
            shutil.rmtree(folder)
        return suspension

    for attempt in range(5):
        suspensions = files_run(main(attempt), timeout=60)
        if suspensions > 1:  # Else this thread was held up until the disk had answered.
            break
    assert 1 < suspensions < 399


def test_close_completes_although_it_is_cancelled(files_run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        for steps in range(6):
            path = tmp_path / str(steps)
            f = await fs.open(path, "wb")
            await f.write(b"x" * 1000)
            closing = asyncio.ensure_future(f.close())
            for _ in range(steps):
                await asyncio.sleep(0)
            closing.cancel()
            await asyncio.wait([closing])
            await f.close()
            assert f.closed
            assert path.read_bytes() == b"x" * 1000

    files_run(main())


async def cancelled_after(steps: int, call: Awaitable[Any]) -> bool:
    """Cancel a call that has had so many iterations; False if it was done before."""
    task = asyncio.ensure_future(call)
    for _ in range(steps):
        await asyncio.sleep(0)
    if task.done():
        return False
    task.cancel()
    await asyncio.wait([task])
    return True


def test_a_cancelled_read_moves_nothing(files_run: Run, tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(DATA)

    async def main() -> None:
        for steps in range(4):
            drop_cache(path)
            async with fs.open(path, "rb") as f:
                assert await f.read(10) == DATA[:10]
                drop_cache(path)
                if not await cancelled_after(steps, f.read(400_000)):
                    break
                assert await f.tell() == 10
                assert await f.read(100) == DATA[10:110]

    files_run(main())


def test_a_cancelled_readinto_moves_nothing(files_run: Run, tmp_path: Path) -> None:
    path = tmp_path / "a"
    data = os.urandom(5_000_000)
    path.write_bytes(data)

    async def main() -> None:
        for cold in (False, True):
            for steps in range(1, 100):
                async with fs.open(path, "rb") as f:
                    if cold:
                        drop_cache(path)
                    assert await f.read(10) == data[:10]
                    if not await cancelled_after(steps, f.readinto(bytearray(4_000_000))):
                        break
                    assert await f.tell() == 10
                    assert await f.read(2_000_000) == data[10:2_000_010]
            assert steps > 2

    files_run(main(), timeout=60)


def test_a_buffer_is_not_written_to_after_its_call(files_run: Run) -> None:
    r, w = os.pipe()

    async def main() -> None:
        buffer = bytearray(10)
        async with fs.open(r, "rb", buffering=0) as f:
            reading = asyncio.ensure_future(f.readinto(buffer))
            await asyncio.sleep(0.001)
            reading.cancel()
            await asyncio.wait([reading])
            buffer.clear()  # nobody has it exported
            buffer += bytes(10)
            os.write(w, b"abc")
            assert await f.read(10) == b"abc"
            assert buffer == bytes(10)

    files_run(main())
    os.close(w)


def test_a_write_to_a_pipe_takes_nothing_that_was_read(files_run: Run, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")

    async def main() -> None:
        async with fs.open(tmp_path / "fifo", "r+b", buffering=0) as f:
            reading = asyncio.ensure_future(f.read(10))
            await asyncio.sleep(0.001)
            reading.cancel()
            await asyncio.wait([reading])
            assert os.write(f.fileno(), b"abc") == 3  # it lands although nobody waits
            assert await f.write(b"def") == 3
            got = await f.read(10)
            assert got + (await f.read(10) if len(got) < 6 else b"") == b"abcdef"

    files_run(main())


@pytest.mark.parametrize("cold", [True, False], ids=["cold", "warm"])
def test_calls_on_one_file_take_turns(files_run: Run, tmp_path: Path, cold: bool) -> None:
    """First come first served, also when some of them yield to the loop before they try."""
    path = tmp_path / "a"
    path.write_bytes(DATA)

    async def main() -> None:
        if cold:
            drop_cache(path)
        async with fs.open(path, "rb") as f:
            pieces = await asyncio.gather(*[f.read(5000) for _ in range(90)])
            assert b"".join(pieces) == DATA[: 5000 * 90]
        async with fs.open(path, encoding="latin-1") as t:
            texts = await asyncio.gather(*[t.read(700) for _ in range(600)])
            assert "".join(texts) == DATA.decode("latin-1").replace("\r", "\n")[: 700 * 600]
        async with fs.open(tmp_path / "b", "wb") as f:
            await asyncio.gather(*[f.write(b"%02d" % i * 10_000) for i in range(50)])
        assert (tmp_path / "b").read_bytes() == b"".join(b"%02d" % i * 10_000 for i in range(50))

    files_run(main())


def test_a_call_that_is_cancelled_in_its_turn_makes_room_for_the_next(
    files_run: Run, tmp_path: Path
) -> None:
    path = tmp_path / "a"
    path.write_bytes(DATA)

    async def main() -> None:
        for turns in range(30):
            async with fs.open(path, "rb") as f:
                reads = [asyncio.ensure_future(f.read(5000)) for _ in range(90)]
                for _ in range(turns):
                    await asyncio.sleep(0)
                for read in reads[turns % 3 :: 3]:
                    read.cancel()
                done = await asyncio.gather(*reads, return_exceptions=True)
                got = b"".join(d for d in done if isinstance(d, bytes))
                assert len(got) >= 60 * 5000
                assert got + await f.read() == DATA

    files_run(main())


def test_tasks_that_go_on_with_one_file_do_not_lose_their_place(
    files_run: Run, tmp_path: Path
) -> None:
    """What each reads comes later than what it read before, and all of it comes."""
    path = tmp_path / "numbers"
    path.write_text("".join(f"{i}\n" for i in range(50_000)))

    async def main() -> None:
        async with fs.open(path) as f:

            async def read_some() -> list[int]:
                return [int(line) async for line in f]

            shares = await asyncio.gather(*[read_some() for _ in range(5)])
            assert all(share == sorted(share) for share in shares)
            assert sorted(itertools.chain(*shares)) == list(range(50_000))
            assert sum(bool(share) for share in shares) > 1

    files_run(main())


def test_calls_of_a_loop_that_was_closed_are_in_nobodys_way(tmp_path: Path, driver: str) -> None:
    path = tmp_path / "a"
    path.write_bytes(DATA)
    loop = ringloop.EventLoop(driver)
    f = loop.run_until_complete(fs.open(path, "rb"))
    tasks = [loop.create_task(f.read(200)) for _ in range(2000)]
    loop.call_soon(loop.stop)
    loop.run_forever()
    assert not all(task.done() for task in tasks)  # some yielded
    loop.close()

    async def main() -> None:
        await f.seek(0)
        assert await f.read(5000) == DATA[:5000]
        await f.close()

    ringloop.run(asyncio.wait_for(main(), 10), driver=driver)


@pytest.mark.parametrize("how", ["close", "throw", "drop"])
def test_a_call_that_yielded_and_is_given_up_holds_nothing(
    files_run: Run, tmp_path: Path, how: str
) -> None:
    path = tmp_path / "a"
    path.write_bytes(DATA)

    async def main() -> None:
        async with fs.open(path, "rb") as f:
            yielded = 0
            for _ in range(5000):
                call = f.read(1)
                try:
                    call.send(None)
                except StopIteration:
                    continue
                yielded += 1
                if how == "close":
                    call.close()
                elif how == "throw":
                    with pytest.raises(asyncio.CancelledError):
                        call.throw(asyncio.CancelledError())
            del call
            assert yielded > 1  # each call of a turn that is over
            await f.seek(0)
            assert await f.read(10) == DATA[:10]

    files_run(main())


def test_a_waiting_call_that_is_cancelled_hands_the_file_on(files_run: Run, tmp_path: Path) -> None:
    """Before its turn, and when its turn has just come."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)

    async def main() -> None:
        async with fs.open(fifo, "r+b", buffering=0) as f:

            async def read_and_cancel() -> bytes:
                got: bytes = await f.read(1)
                second.cancel()
                return got

            first = asyncio.ensure_future(read_and_cancel())
            second, third, last = (asyncio.ensure_future(f.read(1)) for _ in range(3))
            await asyncio.sleep(0)
            third.cancel()
            os.write(f.fileno(), b"ab")
            assert await first == b"a"
            assert await last == b"b"
            assert second.cancelled()
            assert third.cancelled()

    files_run(main())


def test_what_came_just_before_the_cancellation_is_given_back(
    files_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread's result is there, but the task has not seen it yet when it is cancelled."""
    (tmp_path / "a").write_bytes(b"a")
    submit = _threads._pool.submit

    def submit_and_cancel(job: Any) -> None:
        loop, execute, finish = job
        task = asyncio.current_task()
        assert task is not None

        def finish_and_cancel() -> None:
            finish()
            task.cancel()

        submit((loop, execute, finish_and_cancel))

    def fail() -> None:
        raise ZeroDivisionError

    async def main() -> None:
        complaints: list[Any] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, c: complaints.append(c))
        makers: list[Callable[[], Any]] = [
            lambda: fs.open(tmp_path / "a", "rb", opener=os.open),
            lambda: fs.tempfile.NamedTemporaryFile(dir=tmp_path),
            lambda: fs.tempfile.TemporaryFile(dir=tmp_path),
            lambda: fs.tempfile.TemporaryDirectory(dir=tmp_path),
            lambda: aiofiles.tempfile.TemporaryDirectory(dir=tmp_path),
            lambda: fs.write_bytes(tmp_path / "a", b"new", atomic=True),
            lambda: _threads.run(fail),
        ]
        for make in makers:

            async def use(make: Callable[[], Any] = make) -> None:
                await make()

            with monkeypatch.context() as patch:
                patch.setattr(_threads._pool, "submit", submit_and_cancel)
                task = asyncio.create_task(use())
                await asyncio.wait([task])
            assert task.cancelled()
            del task
            await settled()
            assert [p.name for p in tmp_path.iterdir()] == ["a"]
        gc.collect()
        assert not complaints

    files_run(main())
    assert (tmp_path / "a").read_bytes() == b"a"


class SlowEntries:
    """As os.scandir() gives it, but reading waits until it is told to go on."""

    def __init__(self) -> None:
        self.reading = threading.Event()
        self.go_on = threading.Event()
        self.closed_by: list[str] = []

    def __iter__(self) -> SlowEntries:
        return self

    def __next__(self) -> Any:
        self.reading.set()
        self.go_on.wait(10)
        self.reading.clear()
        raise StopIteration

    def close(self) -> None:
        assert not self.reading.is_set(), "closed while it is read"
        self.closed_by.append(threading.current_thread().name)


def test_a_directory_is_not_closed_while_a_thread_reads_it(
    files_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = SlowEntries()
    monkeypatch.setattr(os, "scandir", lambda path: entries)

    async def main() -> None:
        async with fs.scandir("x") as found:
            reading = asyncio.ensure_future(anext(found))
            while not entries.reading.is_set():
                await asyncio.sleep(0)
            reading.cancel()
            await asyncio.wait([reading])
        assert [entry async for entry in found] == []
        assert not entries.closed_by
        entries.go_on.set()
        await settled()
        assert entries.closed_by == ["ringloop-fs"]

    files_run(main())


def test_a_directory_is_read_by_two_tasks(files_run: Run, tmp_path: Path) -> None:
    for i in range(1000):
        (tmp_path / str(i)).touch()

    async def main() -> None:
        async with fs.scandir(tmp_path) as entries:

            async def take() -> list[str]:
                names = []
                async for entry in entries:
                    names.append(entry.name)
                    await asyncio.sleep(0)
                return names

            a, b = await asyncio.gather(take(), take())
        assert sorted(a + b, key=int) == [str(i) for i in range(1000)]

    files_run(main())


def test_a_thread_that_cannot_be_started_takes_no_place(
    files_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async def main() -> None:
        pool = _threads.Pool(4)
        ran: list[int] = []
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            for _ in range(10):
                with pytest.raises(RuntimeError, match="new thread"):
                    await _threads.run(ran.append, 1, pool=pool)
        assert await _threads.run(int, "5", pool=pool) == 5
        assert not ran
        # Where there is one, what comes waits for it.
        go_on = threading.Event()
        first = asyncio.create_task(_threads.run(go_on.wait, 10, pool=pool))
        await asyncio.sleep(0)
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            second = asyncio.create_task(_threads.run(int, "6", pool=pool))
            await asyncio.sleep(0)
        go_on.set()
        assert await second == 6
        assert await first
        pool.jobs.put(None)

    files_run(main())


def test_read_many_ends_where_it_is_closed(files_run: Run) -> None:
    slow = ["/proc/self/stat"] * 100

    async def main() -> None:
        async with fs.read_many(slow, 4) as many:
            await anext(many)
        assert await asyncio.wait_for(anext(many, None), 5) is None
        # Those who wait meanwhile come to the end, too.
        many = fs.read_many(slow, 4)
        await anext(many)
        waiting = [asyncio.create_task(everything(many)) for _ in range(3)]
        await asyncio.sleep(0)
        await many.aclose()
        await asyncio.wait_for(asyncio.gather(*waiting), 5)
        assert await everything(many) == []

    async def everything(many: Any) -> list[Any]:
        return [path async for path, _ in many]

    files_run(main())


def test_read_many_for_several_tasks(files_run: Run, tmp_path: Path) -> None:
    paths = [Path("/proc/self/stat")] * 50 + [tmp_path / "missing"] * 2

    async def main() -> None:
        many = fs.read_many(paths, 5, errors="return")

        async def take() -> int:
            return len([path async for path, _ in many])

        taken = await asyncio.wait_for(asyncio.gather(take(), take(), take()), 5)
        assert sum(taken) == len(paths)

    files_run(main())


def test_a_fifo_is_not_copied(files_run: Run, tmp_path: Path) -> None:
    tree, fifo = tmp_path / "tree", tmp_path / "tree" / "fifo"
    tree.mkdir()
    os.mkfifo(fifo)
    (tree / "a").write_bytes(b"a")

    async def main() -> None:
        for src, dst in ((fifo, tmp_path / "x"), (tree / "a", fifo), (os.fsencode(fifo), b"/x")):
            with pytest.raises(shutil.SpecialFileError, match="is a named pipe"):
                await fs.copyfile(src, dst)
        with pytest.raises(shutil.SameFileError):
            await fs.copyfile(fifo, fifo)
        with pytest.raises(shutil.Error, match="is a named pipe"):
            await fs.copytree(tree, tmp_path / "copy")
        assert (tmp_path / "copy" / "a").read_bytes() == b"a"
        assert not (tmp_path / "x").exists()

    files_run(main())


def test_a_cancelled_copy_takes_away_its_half_and_nothing_else(
    files_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target, link = tmp_path / "a", tmp_path / "target", tmp_path / "link"
    source.write_bytes(DATA)
    target.touch()
    link.symlink_to("target")
    null = tmp_path / "null"
    null.symlink_to("/dev/null")
    copying, go_on = threading.Event(), threading.Event()

    def copy_some(*args: int) -> int:
        copying.set()
        go_on.wait(10)
        return 1

    monkeypatch.setattr(os, "copy_file_range", copy_some)

    async def main() -> None:
        for dst in (link, null):
            copying.clear()
            go_on.clear()
            task = asyncio.create_task(fs.copyfile(source, dst))
            while not copying.is_set():
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.sleep(0)
            go_on.set()
            await asyncio.wait([task])
            assert task.cancelled()

    files_run(main())
    assert {p.name for p in tmp_path.iterdir()} == {"a", "link", "null"}


def test_the_loop_closes_with_operations_in_flight(driver: str, tmp_path: Path) -> None:
    """asyncio.run() cancels what is left; nothing is leaked, nothing hangs."""
    path = tmp_path / "a"
    path.write_bytes(DATA)

    async def main() -> None:
        drop_cache(path)
        f = await fs.open(path, "rb")
        tasks = [asyncio.ensure_future(f.pread(4096, i * 4096)) for i in range(50)]
        tasks.append(asyncio.ensure_future(fs.read_bytes("/proc/self/stat")))
        await asyncio.sleep(0)
        await f.close()

    before = open_fds()
    ringloop.run(main(), driver=driver)
    assert open_fds() == before
