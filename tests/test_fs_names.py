"""Metadata, directories, paths, whole files, temporary files and watches of `ringloop.fs`."""

from __future__ import annotations

import array
import asyncio
import gc
import inspect
import os
import pathlib
import resource
import socket
import stat
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest

from ringloop import fs
from ringloop.fs import _watch, _write

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Run = Callable[..., Any]


def tree(folder: Path) -> Path:
    (folder / "a" / "b").mkdir(parents=True)
    (folder / "a" / "one.txt").write_text("one")
    (folder / "a" / "b" / "two.txt").write_text("two")
    (folder / "link").symlink_to("a")
    return folder


def test_stat_and_its_kin(files_run: Run, tmp_path: Path) -> None:
    tree(tmp_path)

    async def main() -> None:
        for path in (tmp_path / "a", tmp_path / "link", "/proc/self/status", b"/dev/null"):
            assert (await fs.stat(path)).st_ino == os.stat(path).st_ino
            assert (await fs.lstat(path)).st_mode == os.lstat(path).st_mode
        assert stat.S_ISLNK((await fs.lstat(tmp_path / "link")).st_mode)
        with pytest.raises(FileNotFoundError) as caught:
            await fs.stat(tmp_path / "missing")
        assert caught.value.filename == str(tmp_path / "missing")
        assert await fs.exists(tmp_path / "a")
        assert not await fs.exists(tmp_path / "missing" / "x")
        assert await fs.isdir(tmp_path / "link")
        assert await fs.islink(tmp_path / "link")
        assert await fs.isfile(tmp_path / "a" / "one.txt")
        assert await fs.getsize(tmp_path / "a" / "one.txt") == 3
        assert (await fs.statvfs(tmp_path)).f_namemax == os.statvfs(tmp_path).f_namemax
        assert await fs.access(tmp_path, os.R_OK)

    files_run(main())


def test_changes_of_names(files_run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        await fs.mkdir(tmp_path / "d", 0o700)
        assert stat.S_IMODE((tmp_path / "d").stat().st_mode) == 0o700
        with pytest.raises(FileExistsError) as caught:
            await fs.mkdir(tmp_path / "d")
        assert caught.value.filename == str(tmp_path / "d")
        await fs.makedirs(tmp_path / "d" / "e" / "f")
        with pytest.raises(OSError, match="Directory not empty"):
            await fs.rmdir(tmp_path / "d")
        await fs.rmdir(tmp_path / "d" / "e" / "f")
        (tmp_path / "x").write_text("x")
        await fs.rename(tmp_path / "x", tmp_path / "y")
        await fs.symlink("y", tmp_path / "soft")
        assert await fs.readlink(tmp_path / "soft") == "y"
        await fs.link(tmp_path / "y", tmp_path / "hard")
        assert (tmp_path / "hard").stat().st_nlink == 2
        await fs.replace(tmp_path / "hard", tmp_path / "soft")
        with pytest.raises(FileNotFoundError) as missing:
            await fs.rename(tmp_path / "nix", tmp_path / "nox")
        assert missing.value.filename2 == str(tmp_path / "nox")
        await fs.chmod(tmp_path / "y", 0o600)
        await fs.utime(tmp_path / "y", ns=(1, 2))
        assert (tmp_path / "y").stat().st_mtime_ns == 2
        await fs.unlink(tmp_path / "y")
        with pytest.raises(IsADirectoryError):
            await fs.remove(tmp_path / "d")
        await fs.rmtree(tmp_path / "d")
        (tmp_path / "z").touch()
        await fs.renames(tmp_path / "z", tmp_path / "p" / "q" / "z")
        await fs.unlink(tmp_path / "p" / "q" / "z")
        await fs.removedirs(tmp_path / "p" / "q")
        with pytest.raises(ValueError, match="null"):
            await fs.unlink("a\0b")

    files_run(main())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["soft"]


def test_directories_are_listed(files_run: Run, tmp_path: Path) -> None:
    tree(tmp_path)
    for i in range(300):
        (tmp_path / "a" / "b" / str(i)).touch()

    async def main() -> None:
        assert sorted(await fs.listdir(tmp_path)) == ["a", "link"]
        async with fs.scandir(tmp_path) as entries:
            found = {entry.name: entry.is_dir() async for entry in entries}
        assert found == {"a": True, "link": True}
        assert len([e async for e in fs.scandir(tmp_path / "a" / "b")]) == 301
        async with fs.scandir(tmp_path / "a" / "b") as entries:
            await anext(entries)
        assert [e async for e in entries] == []
        walked = []
        async for folder, dirs, files in fs.walk(tmp_path):
            walked.append((folder, dirs, files))
            if "b" in dirs:
                dirs.remove("b")
        assert [w[0] for w in walked] == [str(tmp_path), str(tmp_path / "a")]
        bottom_up = [folder async for folder, _, _ in fs.walk(tmp_path, topdown=False)]
        assert bottom_up == [w[0] for w in os.walk(tmp_path, topdown=False)]
        names = [p async for p in fs.glob("**/*.txt", root_dir=tmp_path / "a", recursive=True)]
        assert sorted(names) == ["b/two.txt", "one.txt"]

    files_run(main())


def test_whole_files_are_written_and_copied(files_run: Run, tmp_path: Path) -> None:
    path = tmp_path / "file"
    data = os.urandom(300_000)

    async def main() -> None:
        assert await fs.write_bytes(path, data) == 300_000
        assert await fs.copyfile(path, tmp_path / "copy") == tmp_path / "copy"
        assert (tmp_path / "copy").read_bytes() == data
        await fs.copyfile("/proc/self/stat", tmp_path / "proc")
        assert (tmp_path / "proc").stat().st_size > 0
        assert await fs.write_text(path, "smörgås\n", "latin-1", newline="\r\n") == 8
        assert path.read_bytes() == b"sm\xf6rg\xe5s\r\n"
        assert await fs.read_text(path, "latin-1") == "smörgås\n"
        with pytest.raises(UnicodeDecodeError):
            await fs.read_text(path, "utf-8")
        path.chmod(0o640)
        inode = path.stat().st_ino
        assert await fs.write_bytes(path, memoryview(b"new"), atomic=True) == 3
        assert path.read_bytes() == b"new"
        assert path.stat().st_ino != inode
        assert stat.S_IMODE(path.stat().st_mode) == 0o640
        with pytest.raises(FileNotFoundError):
            await fs.write_bytes(tmp_path / "missing" / "x", b"x", atomic=True)
        tree(tmp_path / "t")
        await fs.copytree(tmp_path / "t", tmp_path / "u", symlinks=True)
        assert (tmp_path / "u" / "a" / "b" / "two.txt").read_text() == "two"
        assert (tmp_path / "u" / "link").is_symlink()

    files_run(main())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["copy", "file", "proc", "t", "u"]


def test_what_is_no_bytes_empties_no_file(files_run: Run, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")

    async def main() -> None:
        for atomic in (False, True):
            for nonsense in ("str", None, 7):
                with pytest.raises(TypeError):
                    await fs.write_bytes(path, nonsense, atomic=atomic)  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            await fs.Path(path).write_bytes("str")  # type: ignore[arg-type]
        assert path.read_bytes() == b"old"
        assert await fs.write_bytes(path, array.array("i")) == 0
        assert await fs.write_bytes(path, array.array("H", [1, 2])) == 4
        assert path.stat().st_size == 4

    files_run(main())
    assert list(tmp_path.iterdir()) == [path]


def test_an_atomic_write_is_never_open_to_more_than_the_old_file(
    files_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "key"
    write_all = _write._write_all
    seen = []

    async def watched(f: Any, data: Any) -> int:
        seen.append(stat.S_IMODE(os.fstat(f.fileno()).st_mode))
        size = await write_all(f, data)
        seen.append(stat.S_IMODE(os.fstat(f.fileno()).st_mode))
        return size

    monkeypatch.setattr(_write, "_write_all", watched)

    async def main() -> None:
        for mode in (0o600, 0o640, 0o400, 0o2755):
            path.write_bytes(b"old")
            path.chmod(mode)
            await fs.write_bytes(path, b"secret", atomic=True)
            assert stat.S_IMODE(path.stat().st_mode) == mode
            assert {m | mode for m in seen} <= {mode, mode | 0o600}
            path.unlink()
        await fs.write_bytes(path, b"new", atomic=True)
        made = tmp_path / "made"
        made.touch()
        assert path.stat().st_mode == made.stat().st_mode

    files_run(main())


@pytest.mark.parametrize(
    "name", ["\u65e5" * 85, "x" * 255, b"\xff" * 255], ids=["wide", "long", "bytes"]
)
def test_an_atomic_write_takes_every_name(files_run: Run, tmp_path: Path, name: Any) -> None:
    folder = os.fsencode(tmp_path) if isinstance(name, bytes) else str(tmp_path)
    path: Any = os.path.join(folder, name)

    async def main() -> None:
        assert await fs.write_bytes(path, b"data", atomic=True) == 4
        assert await fs.read_bytes(path) == b"data"
        assert len(await fs.listdir(tmp_path)) == 1

    files_run(main())


def test_what_exists_does_so_without_a_descriptor_to_spare(files_run: Run, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x")
    (tmp_path / "link").symlink_to("file")

    async def main() -> None:
        await fs.listdir(tmp_path)  # a thread is there
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
        try:
            with pytest.raises(OSError, match="Too many open files"):
                await fs.read_bytes(path)
            assert await fs.exists(path)
            assert await fs.isfile(path)
            assert await fs.isdir(tmp_path)
            assert await fs.islink(tmp_path / "link")
            assert await fs.getsize(path) == 1
            assert not await fs.exists(tmp_path / "missing")
            assert await fs.Path(path).exists()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)

    files_run(main())


def test_read_bytes_names_a_file_as_open_does(tmp_path: Path) -> None:
    """Where names are ASCII, neither finds another."""
    (tmp_path / "\xe9").write_bytes(b"x")
    code = """
import sys, ringloop
from ringloop import fs

async def main():
    if sys.getfilesystemencoding() == "utf-8":
        return "skip"
    for read in (fs.read_bytes, fs.read_text):
        try:
            return await read(sys.argv[1] + "/\\xe9")
        except UnicodeEncodeError:
            pass

print(ringloop.run(main(), driver="epoll"))
"""
    plain = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path],
        env=os.environ | plain,
        capture_output=True,
        text=True,
        check=True,
    )
    if done.stdout == "skip\n":
        pytest.skip("this Python encodes names as UTF-8 in every locale")
    assert done.stdout == "None\n"


def test_each_way_to_open_a_file_is_audited(files_run: Run, tmp_path: Path) -> None:
    path = tmp_path / "audited"
    path.write_bytes(b"x")
    opened: list[Any] = []
    watching = True

    def hook(event: str, args: tuple[Any, ...]) -> None:  # stays for good
        if watching and event == "open" and args[0] == str(path):
            opened.append(args[1])

    sys.addaudithook(hook)

    async def main() -> None:
        assert await fs.read_bytes(path) == b"x"
        assert opened
        opened.clear()
        assert [found async for found in fs.read_many([path])] == [(path, b"x")]
        assert opened
        opened.clear()
        async with fs.open(path, "rb"):
            assert opened == ["rb"]

    try:
        files_run(main())
    finally:
        watching = False


def test_sendfile(files_run: Run, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"0123456789")
    left, right = socket.socketpair()

    async def main() -> None:
        async with fs.open(tmp_path / "a", "rb") as f:
            assert await fs.sendfile(left.fileno(), f.fileno(), 2, 5) == 5

    with left, right:
        files_run(main())
        assert right.recv(100) == b"23456"


def test_path_has_pathlibs_names(files_run: Run, tmp_path: Path) -> None:
    tree(tmp_path)

    async def main() -> None:
        root = fs.Path(tmp_path)
        path = root / "a" / "one.txt"
        assert isinstance(path, fs.Path)
        assert path.suffix == ".txt"
        assert os.fspath(path) == str(tmp_path / "a" / "one.txt")
        assert await path.exists()
        assert await path.is_file()
        assert not await path.is_dir()
        assert not await (path / "x").exists()
        assert await (root / "link").is_symlink()
        assert await path.read_text() == "one"
        assert await path.write_bytes(b"1\n2\n") == 4
        async with path.open() as f:
            assert [line async for line in f] == ["1\n", "2\n"]
        assert {p.name async for p in root.iterdir()} == {"a", "link"}
        assert [p async for p in root.glob("a/*.txt")] == [path]
        assert [p async for p in (root / "a").rglob("two*")] == [root / "a" / "b" / "two.txt"]
        assert [w[0] async for w in (root / "a").walk()] == [root / "a", root / "a" / "b"]
        assert await (root / "link").resolve() == await (root / "a").resolve()
        assert await (root / "link").readlink() == fs.Path("a")
        await (root / "new" / "er").mkdir(parents=True)
        await (root / "new" / "f").touch()
        moved = await (root / "new" / "f").rename(root / "g")
        assert isinstance(moved, fs.Path)
        assert await moved.samefile(root / "g")
        await moved.unlink()
        await moved.unlink(missing_ok=True)
        with pytest.raises(FileNotFoundError):
            await moved.unlink()
        assert (await path.stat()).st_size == 4
        assert not await (root / "link").is_dir(follow_symlinks=False)
        assert await (root / "link").is_dir()
        await (root / "to").symlink_to("a", target_is_directory=True)
        assert await (root / "to").is_dir()
        await path.chmod(0o600)
        assert stat.S_IMODE((await path.stat()).st_mode) == 0o600
        with pytest.raises((NotImplementedError, OSError)):  # Linux has none for links
            await (root / "link").chmod(0o600, follow_symlinks=False)
        assert await path.owner() == await path.owner(follow_symlinks=True)
        if sys.version_info >= (3, 12):
            assert [p async for p in root.glob("A/ONE.*", case_sensitive=False)] == [path]
            assert [p async for p in root.rglob("ONE.*", case_sensitive=True)] == []
        if sys.version_info >= (3, 13):
            below = [p async for p in root.glob("**/two.txt", recurse_symlinks=True)]
            assert root / "link" / "b" / "two.txt" in below

    files_run(main())


def test_path_lacks_nothing_that_blocks() -> None:
    """Each method that pathlib.Path adds to PurePath is here; the exceptions have a reason."""
    blocking = set(dir(pathlib.Path)) - set(dir(pathlib.PurePosixPath))
    public = {name for name in blocking if not name.startswith("_")}
    left_out = {
        "lchmod",  # not on Linux
        "is_junction",  # not on Linux
        "from_uri",  # does not block, and is pathlib's
        "link_to",  # gone in 3.12
    }
    assert public - set(dir(fs.Path)) - left_out == set()
    for name in public & set(dir(fs.Path)):
        theirs, ours = (
            set(inspect.signature(getattr(of, name)).parameters) for of in (pathlib.Path, fs.Path)
        )
        assert theirs <= ours, name


def test_temporary_files(files_run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with fs.tempfile.NamedTemporaryFile("w+", dir=tmp_path, suffix=".x") as f:
            assert f.name.endswith(".x")
            await f.write("hello\n")
            await f.seek(0)
            assert [line async for line in f] == ["hello\n"]
            assert os.path.exists(f.name)
        assert not os.path.exists(f.name)
        async with fs.tempfile.TemporaryFile(dir=tmp_path) as f:
            assert list(tmp_path.iterdir()) == []
            await f.write(b"x")
            await f.seek(0)
            assert await f.read() == b"x"
        kept = await fs.tempfile.NamedTemporaryFile(dir=tmp_path, delete=False)
        await kept.close()
        assert os.path.exists(kept.name)
        async with fs.tempfile.TemporaryDirectory(dir=tmp_path) as folder:
            await fs.write_bytes(os.path.join(folder, "x"), b"x")
        assert not os.path.exists(folder)
        with pytest.raises(ValueError, match="invalid mode"):
            await fs.tempfile.NamedTemporaryFile("nonsense", dir=tmp_path)
        assert [str(p) for p in tmp_path.iterdir()] == [kept.name]

    files_run(main())


def test_temporary_files_that_somebody_else_took_away(files_run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with fs.tempfile.NamedTemporaryFile(dir=tmp_path) as f:
            await f.write(b"kept")
            await f.flush()
            os.replace(f.name, tmp_path / "kept")
        async with fs.tempfile.TemporaryDirectory(dir=tmp_path) as name:
            os.rmdir(name)
        made = await fs.tempfile.TemporaryDirectory(dir=tmp_path)
        assert os.path.isdir(made.name)
        await made.cleanup()
        await made.cleanup()
        assert os.listdir(tmp_path) == ["kept"]
        # Nobody left or closed these.
        for make in (fs.tempfile.NamedTemporaryFile, fs.tempfile.TemporaryDirectory):
            forgotten: Any = await make(dir=tmp_path)
            assert os.path.exists(forgotten.name)
            with pytest.warns(ResourceWarning):
                del forgotten
                gc.collect()
            assert os.listdir(tmp_path) == ["kept"]
        with pytest.raises(TypeError):
            fs.tempfile.NamedTemporaryFile(nonsense=1)  # type: ignore[call-arg]

    files_run(main())


def test_a_temporary_file_is_an_iterator(files_run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with fs.tempfile.NamedTemporaryFile("w+", dir=tmp_path) as f:
            await f.write("1\n2\n")
            await f.seek(0)
            assert await anext(f) == "1\n"
            assert [line async for line in f] == ["2\n"]

    files_run(main())


def test_watch_tells_what_happens(files_run: Run, tmp_path: Path) -> None:
    inside, outside = tmp_path / "in", tmp_path / "out"
    inside.mkdir()
    outside.mkdir()

    async def main() -> None:
        async with fs.watch(inside) as events:

            async def next_event() -> tuple[str, str | None, str | None]:
                event = await anext(events)
                names = [p and os.path.basename(p) for p in (event.path, event.old_path)]
                return event.kind, names[0], names[1]

            (inside / "a").touch()
            assert await next_event() == ("created", "a", None)
            (inside / "a").write_text("x")
            assert await next_event() == ("modified", "a", None)
            (inside / "a").rename(inside / "b")
            assert await next_event() == ("moved", "b", "a")
            (inside / "b").rename(outside / "b")
            assert await next_event() == ("moved", None, "b")
            (outside / "b").rename(inside / "c")
            assert await next_event() == ("moved", "c", None)
            (inside / "c").unlink()
            assert await next_event() == ("deleted", "c", None)
            (inside / "d").mkdir()
            assert (await anext(events)).is_dir
            waiting = asyncio.ensure_future(next_event())
            await asyncio.sleep(0)
            waiting.cancel()
            (inside / "e").touch()
            assert await next_event() == ("created", "e", None)
        assert [e async for e in events] == []
        with pytest.raises(FileNotFoundError):
            async with fs.watch(tmp_path / "missing"):
                pass
        with pytest.raises(FileNotFoundError):
            await anext(fs.watch(tmp_path / "missing"))

    files_run(main())


def test_several_tasks_wait_for_the_events_of_one_watch(files_run: Run, tmp_path: Path) -> None:
    async def main() -> None:
        async with fs.watch(tmp_path) as events:
            waiting = {asyncio.ensure_future(anext(events)) for _ in range(3)}
            await asyncio.sleep(0)
            found = set()
            for name in ("a", "b"):
                (tmp_path / name).mkdir()
                (first,), waiting = await asyncio.wait(waiting, return_when="FIRST_COMPLETED")
                found.add(first.result().path)
            assert found == {str(tmp_path / name) for name in ("a", "b")}
        with pytest.raises(StopAsyncIteration):
            await waiting.pop()

    files_run(main())


def test_watch_ends_with_what_it_watches(files_run: Run, tmp_path: Path) -> None:
    file, folder = tmp_path / "file", tmp_path / "folder"
    file.touch()
    folder.mkdir()

    async def main() -> None:
        async with fs.watch(file) as of_file, fs.watch(folder) as of_folder:
            (tmp_path / "new").touch()
            (tmp_path / "new").rename(file)
            folder.rmdir()
            assert [event async for event in of_file] == [fs.Event("deleted", str(file))]
            assert [(e.kind, e.path) async for e in of_folder] == [("deleted", str(folder))]
            assert await anext(of_file, None) is None

    files_run(main())


def test_watch_looks_for_the_path_in_a_thread(
    files_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin, go_on, began = _watch._begin, threading.Event(), threading.Event()

    def slow(path: bytes) -> int:
        began.set()
        go_on.wait(10)
        return begin(path)

    monkeypatch.setattr(_watch, "_begin", slow)

    async def main() -> None:
        for closed in (False, True):  # meanwhile
            go_on.clear()
            began.clear()
            events = fs.watch(tmp_path)
            waiting = [asyncio.ensure_future(anext(events, None)) for _ in range(2)]
            while not began.is_set():
                await asyncio.sleep(0)
            if closed:
                await events.aclose()
            go_on.set()
            if not closed:
                await events.__aenter__()
                for name in "ab":
                    (tmp_path / name).touch()
            kinds = [event and event.kind for event in await asyncio.gather(*waiting)]
            assert kinds == ([None] * 2 if closed else ["created"] * 2)
            await events.aclose()

    files_run(main())


def test_watch_reports_an_overflow(files_run: Run, tmp_path: Path) -> None:
    limit = int(pathlib.Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    if limit > 70_000:
        pytest.skip(f"it takes {limit} events to overflow inotify's queue here")

    async def main() -> None:
        async with fs.watch(tmp_path) as events:
            for _ in range(limit // 2 + 10):  # no await: nobody reads meanwhile
                os.close(os.open(tmp_path / "a", os.O_CREAT))
                os.unlink(tmp_path / "a")
            kinds = set()
            while "overflow" not in kinds:
                kinds.add((await anext(events)).kind)
        assert kinds == {"created", "deleted", "overflow"}

    files_run(main())
