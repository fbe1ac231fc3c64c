"""`ringloop.fs.open()` in text mode, beyond what `test_fs_like_io.py` compares."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from machine import punctual_loop
from ringloop import fs

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Run = Callable[..., Any]


def test_a_line_is_flushed_however_it_was_written(files_run: Run, tmp_path: Path) -> None:
    path = tmp_path / "a"

    async def main() -> None:
        async with fs.open(path, "w", buffering=1) as f:
            await f.write("x" * 200_000 + "\n")  # more than the buffer takes
            assert path.stat().st_size == 200_001
            await f.write("x" * 200_000)
            assert path.stat().st_size < 400_001

    files_run(main())


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le", "shift_jis"])
def test_what_cannot_be_decoded_is_not_lost(files_run: Run, tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "a"
    wrong = b"\xff\n" if encoding != "utf-16-le" else b"\x00\xdc\x00\xdc"
    for before in ("a\n", "a\n" * 5000, "\u3042b\r\n" * 3000):
        data = before.encode(encoding) + wrong + "end".encode(encoding)
        path.write_bytes(data)

        async def main(data: bytes = data) -> None:
            async with fs.open(path, encoding=encoding, newline="") as f:
                lines = ""
                place = 0
                with pytest.raises(UnicodeDecodeError):
                    while line := await f.readline():
                        lines += line
                        place = await f.tell()
                reads: list[Callable[[], Any]] = [f.readline, f.read, lambda: f.read(100_000)]
                for read in [*reads, f.__anext__]:
                    assert await f.tell() == place
                    with pytest.raises(UnicodeDecodeError):
                        await read()
                    await f.seek(place)
            rest = data[len(lines.encode(encoding)) :]
            async with fs.open(path, encoding=encoding, errors="replace", newline="") as f:
                await f.seek(place)
                assert await f.read() == rest.decode(encoding, "replace")

        files_run(main())


def test_long_texts_are_read_in_time_and_in_turns(files_run: Run, tmp_path: Path) -> None:
    path = tmp_path / "a"
    size = 30_000_000
    path.write_bytes(b"x" * size + b"\nend")

    async def main() -> None:
        async with punctual_loop(0.5), fs.open(path, encoding="utf-8") as f:
            assert len(await f.read(size)) == size
            await f.seek(0)
            assert len(await f.readline()) == size + 1
            assert await f.tell() == size + 1
            assert await f.readline() == "end"

    files_run(main(), timeout=60)
