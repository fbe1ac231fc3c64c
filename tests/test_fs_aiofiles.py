"""`ringloop.compat.aiofiles` beside aiofiles: the same names, and the same results.

aiofiles' own tests run on it, too: `make downstream DOWNSTREAM=compat-aiofiles`.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import io
import os
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from requirement import needs_uring
from ringloop.compat import aiofiles as ours

theirs: Any = importlib.import_module("aiofiles")
for name in ("os", "ospath", "base", "tempfile.temptypes", "threadpool.binary", "threadpool.text"):
    importlib.import_module(f"aiofiles.{name}")

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Run = Callable[..., Any]

MODULES = ["", ".os", ".ospath", ".base", ".tempfile", ".tempfile.temptypes", ".threadpool"]
MODULES += [".threadpool.binary", ".threadpool.text"]


def public(module: Any) -> set[str]:
    """What a module defines, or has from another of its package, for its users."""
    package = module.__name__.split(".compat.")[-1].split(".")[0]
    names = set(getattr(module, "__all__", ()))
    for name, value in vars(module).items():
        origin = getattr(value, "__module__", None) or ""
        if not name.startswith("_") and package in origin.split("."):
            names.add(name)
    return names


@pytest.mark.parametrize("module", MODULES)
def test_each_name_is_there_and_takes_the_same_arguments(module: str) -> None:
    one = importlib.import_module(f"aiofiles{module}")
    two = importlib.import_module(f"ringloop.compat.aiofiles{module}")
    helpers = {"delegate_to_executor", "proxy_method_directly", "proxy_property_directly"}
    helpers |= {"cond_delegate_to_executor"}  # how theirs is made
    if module == ".tempfile":
        helpers.add("wrap")  # takes what only tempfile itself has
    compared = 0
    for name in sorted(public(one) - helpers):
        assert hasattr(two, name), name
        model, here = getattr(one, name), getattr(two, name)
        if inspect.isclass(model):
            methods = {n for n in dir(model) if not n.startswith("_")}
            assert methods - set(dir(here)) == set(), name
            compared += 1
        elif inspect.isroutine(model):
            parameters = dict(inspect.signature(here).parameters)
            assert list(inspect.signature(model).parameters) == [
                n for n in parameters if n in inspect.signature(model).parameters
            ], name
            compared += 1
    assert compared


MODES = ["r", "w", "a", "r+", "w+", "a+", "x", "rt", "rb", "wb", "ab", "rb+", "wb+", "ab+", "xb"]
MODES += ["x+b"]

# -- the same program on both ----------------------------------------------------------


async def outcome(awaitable: Awaitable[Any]) -> Any:
    try:
        return await awaitable
    except Exception as exc:
        return type(exc), getattr(exc, "errno", None)


async def use_file(aio: Any, folder: Path, mode: str, buffering: int) -> list[Any]:
    """All that can be asked of a file, whatever it answers."""
    path = folder / "file"
    if "x" not in mode:
        path.write_bytes(b"one\ntwo\nthree\n" * 3)
    text = "b" not in mode
    data: Any = "four\n" if text else b"four\n"
    log: list[Any] = []
    async with aio.open(path, mode, buffering) as f:
        log += [type(f).__name__, f.mode, str(f.name) == str(path), f.closed, f.fileno() > 2]
        readable = f.readable()
        log.append(await readable if inspect.isawaitable(readable) else readable)
        for name in ("writable", "seekable", "isatty", "tell"):
            log.append(await outcome(getattr(f, name)()))
        log.append(await outcome(f.read(2)))
        log.append(await outcome(f.readline()))
        log.append(await outcome(f.write(data)))
        log.append(await outcome(f.flush()))
        log.append(await outcome(f.seek(0)))
        log.append([await outcome(anext(f)) for _ in range(2)])
        log.append(await outcome(f.seek(0)))
        log.append(await outcome(f.readlines()))
        log.append(await outcome(f.seek(0, 2)))
        log.append(await outcome(f.writelines([data, data])))
        log.append(await outcome(f.truncate(20)))
        log.append(await outcome(f.seek(0)))
        log.append(await outcome(f.read()))
        if text:
            log += [f.encoding.lower(), f.errors, f.line_buffering, f.newlines]
        else:
            for name in ("readinto", "read1", "readall", "peek"):
                if hasattr(f, name):
                    log.append(await outcome(f.seek(0)))
                    got = await outcome(
                        getattr(f, name)(*{"readinto": [bytearray(3)]}.get(name, []))
                    )
                    log.append(got[:1] if name == "peek" and isinstance(got, bytes) else got)
    log += [f.closed, await outcome(f.read()), await outcome(f.close()), path.read_bytes()]
    return log


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("buffering", [-1, 0, 1])
@pytest.mark.filterwarnings("ignore:line buffering")
def test_a_file_does_what_aiofiles_does(
    files_run: Run, tmp_path: Path, mode: str, buffering: int
) -> None:
    async def use(aio: Any, name: str) -> Any:
        (tmp_path / name).mkdir()
        try:
            return await use_file(aio, tmp_path / name, mode, buffering)
        except Exception as exc:
            return type(exc), str(exc)

    expected = asyncio.run(use(theirs, "theirs"))
    assert files_run(use(ours, "ours")) == expected


async def use_os(aio: Any, folder: Path) -> list[Any]:
    path = aio.os.path
    log: list[Any] = []

    async def do(awaitable: Any) -> None:
        result = await outcome(awaitable)
        log.append(result.st_size if isinstance(result, os.stat_result) else result)

    a, b, d = folder / "a", folder / "b", folder / "d"
    a.write_bytes(b"0123456789")
    await do(aio.os.stat(a))
    await do(aio.os.stat(path=a, follow_symlinks=False))
    await do(aio.os.stat(folder / "missing"))
    await do(aio.os.mkdir(d, mode=0o700))
    await do(aio.os.mkdir(d))
    await do(aio.os.makedirs(d / "e" / "f", exist_ok=True))
    await do(aio.os.removedirs(d / "e" / "f"))
    await do(aio.os.rename(a, b))
    await do(aio.os.replace(b, a))
    await do(aio.os.renames(a, folder / "g" / "b"))
    await do(aio.os.renames(folder / "g" / "b", a))
    await do(aio.os.link(a, b, follow_symlinks=True))
    await do(aio.os.unlink(b))
    await do(aio.os.symlink("a", b))
    await do(aio.os.readlink(b))
    for name in ("exists", "isfile", "isdir", "islink", "ismount", "getsize", "getmtime"):
        for what in (b, folder, folder / "missing"):
            result = await outcome(getattr(path, name)(what))
            log.append(result if name != "getmtime" else isinstance(result, float))
    await do(path.samefile(a, b))
    await do(path.abspath(".."))
    await do(aio.os.remove(b))
    await do(aio.os.access(a, os.R_OK))
    log.append(sorted(await aio.os.listdir(folder)))
    log.append([entry.name for entry in await aio.os.scandir(folder)])
    log.append((await aio.os.statvfs(folder)).f_namemax)
    log.append(await aio.os.getcwd() == os.getcwd())
    directory = os.open(folder, os.O_RDONLY)
    try:
        await do(aio.os.stat("a", dir_fd=directory))
        await do(aio.os.mkdir("h", dir_fd=directory))
        await do(aio.os.rename("h", "i", src_dir_fd=directory, dst_dir_fd=directory))
        await do(aio.os.rmdir("i", dir_fd=directory))
        await do(aio.os.unlink("missing", dir_fd=directory))
    finally:
        os.close(directory)
    out, source = os.open(b, os.O_CREAT | os.O_WRONLY), os.open(a, os.O_RDONLY)
    await do(aio.os.sendfile(out, source, 2, 5))
    os.close(out)
    os.close(source)
    log.append(b.read_bytes())
    return log


def test_os_does_what_aiofiles_does(files_run: Run, tmp_path: Path) -> None:
    (tmp_path / "theirs").mkdir()
    (tmp_path / "ours").mkdir()
    expected = asyncio.run(use_os(theirs, tmp_path / "theirs"))
    assert files_run(use_os(ours, tmp_path / "ours")) == expected
    assert (FileExistsError, 17) in expected


async def use_tempfile(aio: Any, folder: Path) -> list[Any]:
    temp = aio.tempfile
    log: list[Any] = []
    for mode, data in (("w+", "line\n"), ("w+b", b"line\n")):
        for make in (temp.NamedTemporaryFile, temp.TemporaryFile, temp.SpooledTemporaryFile):
            async with make(mode=mode, dir=folder, suffix=".x") as f:
                log += [await f.write(data), await f.write(data), await f.seek(0)]
                log += [[line async for line in f], await f.tell()]
                log += [await f.truncate(3), await f.seek(0), await f.read(), f.closed]
                log.append(len(os.listdir(folder)))
            log += [f.closed, os.listdir(folder)]
        f = await temp.NamedTemporaryFile(mode, dir=folder, delete=False)
        await f.close()
        log.append(os.path.exists(f.name))
        os.unlink(f.name)
        async with temp.SpooledTemporaryFile(30, mode, dir=folder) as f:
            for _ in range(20):
                await f.write(data)
            await f.writelines([data, data])
            await f.flush()
            log += [await f.tell(), await f.seek(0), len(await f.readlines())]
            await f.rollover()
            log.append(await f.fileno() > 2)
    async with temp.TemporaryDirectory("s", "p", folder) as name:
        log += [os.path.isdir(name), os.path.basename(name)[0], name[-1]]
    made = await temp.TemporaryDirectory(dir=folder)
    log.append(os.path.isdir(made.name))
    await made.close()
    log.append(os.listdir(folder))
    return log


def test_tempfile_does_what_aiofiles_does(files_run: Run, tmp_path: Path) -> None:
    expected = asyncio.run(use_tempfile(theirs, tmp_path))
    assert files_run(use_tempfile(ours, tmp_path)) == expected


def test_a_spooled_file_is_not_touched_beside_its_rollover(
    files_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = tempfile.TemporaryFile
    rolling, go_on = threading.Event(), threading.Event()

    class Slow:
        """The file that it goes to, whose first write takes its time."""

        def __init__(self, **kwargs: Any) -> None:
            self._real = real(**kwargs)

        def write(self, data: bytes) -> int:
            if not rolling.is_set():
                rolling.set()
                go_on.wait(10)
            size: int = self._real.write(data)
            return size

        def __getattr__(self, name: str) -> Any:
            return getattr(self._real, name)

    monkeypatch.setattr(tempfile, "TemporaryFile", Slow)

    async def main() -> None:
        for cancel in (False, True):
            rolling.clear()
            go_on.clear()
            async with ours.tempfile.SpooledTemporaryFile(100, dir=tmp_path) as f:
                await f.write(b"one")
                calls: list[asyncio.Future[Any]] = [asyncio.ensure_future(f.rollover())]
                while not rolling.is_set():
                    await asyncio.sleep(0)
                if cancel:
                    calls[0].cancel()
                    await asyncio.wait(calls)
                calls += [asyncio.ensure_future(call) for call in (f.write(b"two"), f.tell())]
                await asyncio.sleep(0)
                go_on.set()
                results = await asyncio.gather(*calls, return_exceptions=True)
                assert results[1:] == [3, 6]
                await f.seek(0)
                assert await f.read() == b"onetwo"

    files_run(main())


def test_delete_on_close(files_run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with ours.tempfile.NamedTemporaryFile(dir=tmp_path, delete_on_close=False) as f:
            await f.write(b"x")
            await f.close()
            assert Path(f.name).read_bytes() == b"x"
        assert os.listdir(tmp_path) == []
        async with ours.tempfile.NamedTemporaryFile(dir=tmp_path) as f:
            await f.close()
            assert os.listdir(tmp_path) == []

    files_run(main())


# -- what is not plain files -----------------------------------------------------------


def test_detach_gives_a_file_of_ios(files_run: Run, tmp_path: Path) -> None:
    path = tmp_path / "a"

    async def main() -> None:
        async with ours.open(path, "w+") as f:
            await f.write("hello")
            await f.seek(1)
            with pytest.raises(ValueError, match="detached"):
                async with ours.open(path, "r+") as g:
                    await g.write("J")
                    binary = g.detach()
                    with pytest.raises(ValueError, match="detached"):
                        await g.read()
        assert isinstance(binary, io.BufferedRandom)
        assert binary.read() == b"ello"
        binary.close()
        assert path.read_bytes() == b"Jello"
        f = await ours.open(path, "rb")
        assert await f.read(2) == b"Je"
        raw = f.detach()
        assert isinstance(raw, io.FileIO)
        assert (raw.read(2), raw.name) == (b"ll", str(path))
        raw.close()

    files_run(main())


def test_wrapped_objects_are_called_in_a_thread(files_run: Run) -> None:
    threads = []

    class Slow(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            threads.append(threading.current_thread())
            return super().read(size)

    async def main() -> None:
        f = ours.threadpool.wrap(Slow(b"abc\ndef\n"))
        assert type(f) is ours.threadpool.AsyncBufferedIOBase
        assert await f.read(2) == b"ab"
        assert [line async for line in f] == [b"c\n", b"def\n"]
        with ThreadPoolExecutor(1, "mine") as executor:
            f = ours.threadpool.wrap(Slow(b"abc"), executor=executor)
            assert await f.read() == b"abc"
        with pytest.raises(TypeError, match="Unsupported io type"):
            ours.threadpool.wrap(3)

    files_run(main())
    assert threads[0] is not threading.main_thread()
    assert threads[1].name.startswith("mine")


def test_what_replaces_sync_open_is_used(files_run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def fake(file: str, mode: str = "r", **kwargs: Any) -> io.StringIO:
        assert kwargs["encoding"] == "utf-8"
        return io.StringIO(f"{file} {mode}")

    monkeypatch.setattr(ours.threadpool, "sync_open", fake)

    async def main() -> None:
        async with ours.open("nowhere", encoding="utf-8") as f:
            assert await f.read() == "nowhere r"
        assert f._file.closed

    files_run(main())


STDIO = """
import asyncio, sys
from ringloop.compat import aiofiles

async def main():
    await aiofiles.stdout.write("ready\\n")
    await aiofiles.stdout.flush()
    async for line in aiofiles.stdin:
        if line == "end\\n":
            break
        await aiofiles.stdout.write(line.upper())
        await aiofiles.stderr_bytes.write(line.encode())
    await aiofiles.stdout.flush()
    await aiofiles.stderr_bytes.flush()
    waiting = [asyncio.create_task(aiofiles.stdin_bytes.readline()) for _ in range(20)]
    await asyncio.sleep(0.05)
    for task in waiting:
        task.cancel()
    # Nobody ever writes what they wait for; files and the end of the program do not wait.
    async with aiofiles.open(sys.argv[1]) as f:
        await aiofiles.stdout.write(await f.read())
    await aiofiles.stdout.flush()

if sys.argv[2] == "asyncio":
    asyncio.run(main())
else:
    import ringloop
    ringloop.run(main(), driver=sys.argv[2])
"""


@pytest.mark.parametrize("loop", ["uring", "epoll", "asyncio"])
def test_standard_streams(tmp_path: Path, loop: str) -> None:
    if loop == "uring":
        needs_uring()
    (tmp_path / "f").write_text("from the file\n")
    child = subprocess.Popen(
        [sys.executable, "-c", STDIO, str(tmp_path / "f"), loop],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    assert child.stdin is not None
    assert child.stdout is not None
    assert child.stderr is not None
    with child.stdin, child.stdout, child.stderr:
        assert child.stdout.readline() == b"ready\n"
        child.stdin.write(b"one\ntwo\nend\n")
        child.stdin.flush()
        # It ends although its input stays open.
        assert child.wait(20) == 0, child.stderr.read().decode()
        assert child.stdout.read() == b"ONE\nTWO\nfrom the file\n"
        assert child.stderr.read() == b"one\ntwo\n"
