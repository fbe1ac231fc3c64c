"""Each line of the migration table in docs/files.md: what it moves from and to gives the same."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import inspect
import os
import pathlib
import re
import tempfile
from typing import TYPE_CHECKING, Any

import pytest

from ringloop import fs

aiofiles: Any = importlib.import_module("aiofiles")
for name in ("os", "ospath", "tempfile"):
    importlib.import_module(f"aiofiles.{name}")

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Callable
    from pathlib import Path

    Run = Callable[..., Any]

DOCS = pathlib.Path(__file__).parents[1] / "docs" / "files.md"
BLOCK = 8


def table() -> dict[str, str]:
    """What is moved from, and to."""
    text = DOCS.read_text().split("| from | to |\n|---|---|\n")[1].split("\n\n")[0]
    return dict(re.findall(r"^\| (.*?) \| (.*) \|$", text, re.MULTILINE))


def named_in(cell: str) -> list[str]:
    """The names in a cell, without their prefix."""
    return re.findall(r"`(?:[a-z]+\.)*(\w+)", cell)


async def everything(of: AsyncIterable[Any]) -> list[Any]:
    return [item async for item in of]


async def names_of(entries: Any) -> list[str]:
    """Of a scandir: awaited it is an iterator, else an asynchronous one."""
    if hasattr(entries, "__aiter__"):
        return sorted([entry.name async for entry in entries])
    with await entries as found:
        return sorted(entry.name for entry in found)


# Each takes a folder with `one` ("1\n2\n"), `two` and `sub/three`, and gives what it saw, in the
# old way and in the new one.


async def use_open(module: Any, folder: Path) -> list[Any]:
    seen: list[Any] = []
    async with module.open(folder / "one") as f:
        seen += [await f.readline(), await f.tell(), await f.read(), f.closed]
    async with module.open(folder / "new", "wb") as f:
        seen += [await f.write(b"abc"), await f.seek(1), await f.truncate(), await f.flush()]
    f = await module.open(folder / "new", "r+b")
    for ask in (f.readable, f.writable, f.seekable, f.isatty):
        answer = ask()
        assert module is aiofiles or isinstance(answer, bool)  # not awaited
        seen.append(await answer if inspect.isawaitable(answer) else answer)
    seen.append([line async for line in f])
    await f.close()
    return seen


async def use_os(module: Any, folder: Path) -> list[Any]:
    await module.rename(folder / "two", folder / "too")
    await module.remove(folder / "one")
    await module.mkdir(folder / "made")
    stat = await module.stat(folder / "too")
    seen = [stat.st_size, sorted(await module.listdir(folder))]
    return [*seen, await names_of(module.scandir(folder))]


async def use_os_path(module: Any, folder: Path) -> list[Any]:
    asked = (module.exists, module.isfile, module.isdir, module.islink, module.getsize)
    return [await ask(folder / name) for ask in asked for name in ("one", "sub")]


async def use_tempfile(module: Any, folder: Path) -> list[Any]:
    seen: list[Any] = []
    made = await module.TemporaryDirectory(dir=folder)
    seen.append(os.path.isdir(made.name))
    await made.cleanup()
    async with module.NamedTemporaryFile("w+", dir=folder, suffix=".x") as f:
        seen += [await f.write("text"), await f.seek(0), await f.read(), f.name[-2:]]
    async with module.TemporaryDirectory(dir=folder) as name:
        seen.append(os.path.isdir(name))
    async with module.TemporaryFile(dir=folder) as f:
        seen.append(await f.write(b"x"))
    return [*seen, sorted(os.listdir(folder))]


def pathlib_sees(folder: Path) -> list[Any]:
    one = folder / "one"
    seen: list[Any] = [one.exists(), one.read_text(), one.stat().st_size, one.is_dir()]
    seen += [one.suffix, one.name, sorted(p.name for p in folder.iterdir())]
    seen += [sorted(p.name for p in folder.glob("*o*")), sorted(map(str, folder.rglob("th*")))]
    with one.open() as f:
        return [*seen, list(f)]


async def fs_path_sees(folder: Path) -> list[Any]:
    root = fs.Path(folder)
    one = root / "one"
    seen: list[Any] = [await one.exists(), await one.read_text()]
    seen += [(await one.stat()).st_size, await one.is_dir(), one.suffix, one.name]
    seen += [sorted(p.name for p in await everything(root.iterdir()))]
    seen += [sorted(p.name for p in await everything(root.glob("*o*")))]
    seen += [sorted(map(str, await everything(root.rglob("th*"))))]
    async with one.open() as f:
        return [*seen, await everything(f)]


async def of_paths(folder: Path) -> None:
    assert await fs_path_sees(folder) == pathlib_sees(folder)
    walked = [(str(top), sorted(dirs)) async for top, dirs, _ in fs.Path(folder).walk()]
    assert walked == [(top, sorted(dirs)) for top, dirs, _ in os.walk(folder)]


async def of_open(folder: Path) -> None:
    expected = await use_open(aiofiles, folder)
    assert await use_open(fs, folder) == expected


async def of_opening_text(folder: Path) -> None:
    async with fs.open(folder / "one") as f:
        assert [line async for line in f] == ["1\n", "2\n"]
        await f.aclose()
    async with contextlib.aclosing(await fs.open(folder / "one", "rb")) as b:
        assert await b.read() == b"1\n2\n"
    assert f.closed
    assert b.closed


async def of_os(folder: Path) -> None:
    names = {name for name in aiofiles.os.__all__ if name not in ("getcwd", "path", "wrap")}
    assert names <= set(fs.__all__)
    with tempfile.TemporaryDirectory() as other:
        fill(pathlib.Path(other))
        expected = await use_os(aiofiles.os, pathlib.Path(other))
    assert await use_os(fs, folder) == expected


async def of_os_path(folder: Path) -> None:
    assert await use_os_path(fs, folder) == await use_os_path(aiofiles.ospath, folder)


async def of_tempfile(folder: Path) -> None:
    expected = await use_tempfile(aiofiles.tempfile, folder)
    assert await use_tempfile(fs.tempfile, folder) == expected


async def of_pread(folder: Path) -> None:
    (folder / "blocks").write_bytes(bytes(range(10 * BLOCK)))
    loop = asyncio.get_running_loop()
    async with fs.open(folder / "blocks", "rb") as f:
        for offset in (0, 3, 72, 76, 200):
            expected = await loop.run_in_executor(None, os.pread, f.fileno(), BLOCK, offset)
            assert await f.pread(BLOCK, offset) == expected


async def of_many(folder: Path) -> None:
    paths = [folder / "one", folder / "two", folder / "sub" / "three"]
    expected = await asyncio.gather(*[fs.read_bytes(path) for path in paths])
    found = dict([item async for item in fs.read_many(paths)])
    assert [found[path] for path in paths] == expected


async def of_watch(folder: Path) -> None:
    async with fs.watch(folder) as events:
        (folder / "new").write_bytes(b"")
        (folder / "new").rename(folder / "newer")
        (folder / "newer").unlink()
        seen = []
        async for event in events:
            seen.append(event.kind)
            if event.kind == "deleted":
                break
    assert [kind for kind in seen if kind != "modified"] == ["created", "moved", "deleted"]


LINES = {
    "`aiofiles.open(...)`": of_open,
    "`aiofiles.os.stat`, `rename`, `remove`, `mkdir`, `listdir`, `scandir`, ...": of_os,
    "`aiofiles.os.path.exists`, `isfile`, `isdir`, `islink`, `getsize`": of_os_path,
    "`aiofiles.tempfile`": of_tempfile,
    "`anyio.open_file`, `trio.open_file`": of_opening_text,
    "`anyio.Path`, `trio.Path`": of_paths,
    "`pathlib.Path`": of_paths,
    "`loop.run_in_executor(None, os.pread, fd, n, offset)`": of_pread,
    "`asyncio.gather` over `read_bytes` of many paths": of_many,
    "`watchdog`, polling": of_watch,
}


def fill(folder: Path) -> None:
    (folder / "sub").mkdir()
    (folder / "one").write_text("1\n2\n")
    (folder / "two").write_bytes(b"two")
    (folder / "sub" / "three").write_bytes(b"three")


def test_the_table_has_these_lines() -> None:
    assert list(table()) == list(LINES)


@pytest.mark.parametrize("line", LINES)
def test_a_line_is_true(files_run: Run, tmp_path: Path, line: str) -> None:
    fill(tmp_path)
    for name in named_in(table()[line]):
        parts = (fs, fs.Path, fs.BinaryFile, aiofiles.threadpool.AsyncBufferedIOBase)
        assert any(hasattr(part, name) for part in parts) or name in ("await", "async"), name
    files_run(LINES[line](tmp_path))
