"""`ringloop.fs` and `io` do the same: random calls, each result, position and exception."""

from __future__ import annotations

import asyncio
import io
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import drivers
import ringloop
from ringloop import fs
from ringloop._driver.choose import why_not_uring

if TYPE_CHECKING:
    from collections.abc import Iterator

Command = tuple[Any, ...]
LONGER = int(os.environ.get("RINGLOOP_FUZZ", "0"))
COMMON = settings(
    max_examples=LONGER or 150,
    deadline=None,
    derandomize=not LONGER,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
SIZES = st.one_of(st.sampled_from([-1, -2, None]), st.integers(0, 40), st.integers(8000, 9000))

binary_command = st.one_of(
    st.tuples(st.sampled_from(["read", "read1", "readline", "readlines"]), SIZES),
    st.tuples(st.sampled_from(["readinto", "readinto1"]), st.integers(0, 40)),
    st.tuples(st.just("readinto"), st.integers(8000, 20000)),
    st.tuples(st.just("pread"), st.integers(-1, 9000), st.integers(-1, 9000)),
    st.tuples(st.just("pwrite"), st.binary(max_size=20), st.integers(-1, 9000)),
    st.tuples(st.just("write"), st.binary(max_size=60)),
    st.tuples(st.just("write"), st.integers(0, 30000).map(lambda n: b"%d" % n * (n // 4))),
    st.tuples(st.just("writelines"), st.lists(st.binary(max_size=9), max_size=3)),
    st.tuples(st.just("seek"), st.integers(-5, 60), st.integers(0, 2)),
    st.tuples(st.just("seek"), st.integers(0, 60), st.just(0)),
    st.tuples(st.just("seek"), st.integers(0, 60), st.integers(3, 6)),
    st.tuples(st.just("truncate"), st.one_of(st.none(), st.integers(-1, 60))),
    st.tuples(st.sampled_from(["tell", "flush", "next", "peek", "close", "write_text"])),
)
content = st.lists(
    st.one_of(
        st.sampled_from([b"\n", b"\r\n", b"\r", b"line\n", "smörgås €\n".encode(), b"x" * 5000]),
        st.binary(max_size=12),
    ),
    max_size=8,
).map(b"".join)

# What decoding raises; until Python 3.12 utf-16 without a BOM raises the first.
NOT_TEXT = {UnicodeError, UnicodeDecodeError}
TEXT = st.one_of(
    st.sampled_from(["a\n", "line\r\n", "\r", "é€", "\u65e5\u672c\n", "x" * 9000, ""]),
    st.text(max_size=8),
)
text_command = st.one_of(
    st.tuples(st.sampled_from(["read", "readline", "readlines"]), SIZES),
    st.tuples(st.just("write"), TEXT),
    st.tuples(st.just("seek"), st.integers(0, 3), st.integers(0, 3)),
    st.tuples(st.just("seek_back"), st.integers(0, 5)),
    st.tuples(st.just("truncate"), st.one_of(st.none(), st.integers(0, 60))),
    st.tuples(st.sampled_from(["tell", "flush", "next", "close"])),
)
ENCODINGS = ["utf-8", "utf-16", "utf-8-sig", "latin-1", "ascii", "utf-16-le", "shift_jis"]
ENCODINGS += ["iso2022_jp", "cp1252", "utf-7", "utf-16-be", "utf-32"]


@pytest.fixture(scope="module", params=[*drivers.REAL, "asyncio"])
def runner(request: pytest.FixtureRequest) -> Iterator[asyncio.Runner]:
    name: str = request.param
    if name == "uring" and (reason := why_not_uring()) is not None:
        pytest.skip(reason)

    def factory() -> asyncio.AbstractEventLoop:
        return asyncio.new_event_loop() if name == "asyncio" else ringloop.EventLoop(name)

    with asyncio.Runner(loop_factory=factory) as runner:
        yield runner


def outcome_of(exc: BaseException) -> tuple[Any, ...]:
    kind: Any = type(exc)
    if isinstance(exc, (StopIteration, StopAsyncIteration)):
        return ("end",)
    if issubclass(kind, UnicodeError):
        return ("raised", kind, str(exc))
    return ("raised", kind, getattr(exc, "errno", None))


def call_io(file: Any, name: str, args: tuple[Any, ...]) -> Any:
    if name == "next":  # not next(file), which keeps tell() from working
        line = file.readline()
        return line or ("end",)
    if name == "readlines" and isinstance(file, io.TextIOBase):
        lines: list[str] = []
        while line := file.readline():
            lines.append(line)
            if args[0] is not None and 0 < args[0] < sum(map(len, lines)):
                break
        return lines
    if name in ("readinto", "readinto1"):
        buffer = bytearray(args[0])
        return getattr(file, name)(buffer), bytes(buffer)
    if name == "write_text":
        return file.write("text")
    if name in ("pread", "pwrite"):  # io has none: what os does after a flush
        file.tell()  # raises if it is closed
        if not (file.readable() if name == "pread" else file.writable()):
            raise io.UnsupportedOperation
        file.flush()
        return getattr(os, name)(file.fileno(), *args)
    return getattr(file, name)(*args)


async def call_fs(file: Any, name: str, args: tuple[Any, ...]) -> Any:
    if name == "next":
        return await anext(file)
    if name in ("readinto", "readinto1"):
        buffer = bytearray(args[0])
        return await getattr(file, name)(buffer), bytes(buffer)
    if name == "write_text":
        return await file.write("text")
    return await getattr(file, name)(*args)


OURS = ("next", "write_text", "pread", "pwrite")


async def compare(kwargs: dict[str, Any], data: bytes, commands: list[Command]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        one, two = Path(folder, "one"), Path(folder, "two")
        if "x" not in kwargs["mode"]:
            one.write_bytes(data)
            two.write_bytes(data)
        theirs: Any = open(one, **kwargs)  # noqa: SIM115 - the model
        ours: Any = await fs.open(two, **kwargs)
        positions = [0]
        try:
            assert ours.mode == theirs.mode
            assert ours.name == str(two)
            for name, *args in commands:
                if name == "seek_back":
                    name, args = "seek", [positions[args[0] % len(positions)]]  # noqa: PLW2901
                if name == "readline" and args == [0] and not theirs.readable():
                    continue  # io asks for nothing, and gives b""
                if args == [None] and not {"r", "+"} & set(kwargs["mode"]):
                    continue  # which of two errors io has depends on how it is built
                if not hasattr(theirs, name) and name not in OURS:
                    continue  # a raw file has no read1
                try:
                    expected = call_io(theirs, name, tuple(args))
                except Exception as exc:
                    expected = outcome_of(exc)
                try:
                    got = await call_fs(ours, name, tuple(args))
                except Exception as exc:
                    got = outcome_of(exc)
                if name == "peek" and isinstance(expected, bytes):
                    assert expected.startswith(got) or got.startswith(expected)
                    assert bool(got) == bool(expected)
                else:
                    assert got == expected, (name, args)
                if isinstance(expected, tuple) and NOT_TEXT & set(expected):
                    break  # io loses what it had decoded before the error; here nothing is lost
                assert ours.closed == theirs.closed
                if theirs.closed:
                    continue
                try:
                    where = theirs.tell()
                except Exception as exc:
                    where = outcome_of(exc)
                else:
                    positions.append(where)
                try:
                    here = await ours.tell()
                except Exception as exc:
                    here = outcome_of(exc)
                assert here == where, (name, args)
        finally:
            await ours.close()
            theirs.close()
        assert two.read_bytes() == one.read_bytes()


@COMMON
@given(
    mode=st.sampled_from(["rb", "r+b", "wb", "w+b", "ab", "a+b", "xb", "x+b"]),
    buffering=st.sampled_from([-1, 0, 2, 16, 9000]),
    data=content,
    commands=st.lists(binary_command, max_size=12),
)
@example(mode="a+b", buffering=-1, data=b"abc", commands=[("seek", 0, 0), ("write", b"x")])
def test_binary(
    runner: asyncio.Runner, mode: str, buffering: int, data: bytes, commands: list[Command]
) -> None:
    runner.run(compare({"mode": mode, "buffering": buffering}, data, commands))


@COMMON
@given(
    mode=st.sampled_from(["r", "r+", "w", "w+", "a", "a+", "x"]),
    encoding=st.sampled_from(ENCODINGS),
    errors=st.sampled_from([None, "replace", "ignore", "surrogateescape", "backslashreplace"]),
    newline=st.sampled_from([None, "", "\n", "\r", "\r\n"]),
    buffering=st.sampled_from([-1, 1]),
    data=content,
    commands=st.lists(text_command, max_size=12),
)
def test_text(
    runner: asyncio.Runner,
    mode: str,
    encoding: str,
    errors: str | None,
    newline: str | None,
    buffering: int,
    data: bytes,
    commands: list[Command],
) -> None:
    kwargs = {"mode": mode, "encoding": encoding, "errors": errors, "newline": newline}
    runner.run(compare({**kwargs, "buffering": buffering}, data, commands))


def test_what_io_does_not_buffer(runner: asyncio.Runner, tmp_path: Path) -> None:
    """Reading and writing one buffer needs positions."""
    os.mkfifo(tmp_path / "fifo")

    async def main() -> None:
        before = os.listdir("/proc/self/fd")
        for mode in ("r+b", "w+b", "a+b", "r+", "w+"):
            with pytest.raises(io.UnsupportedOperation, match="not seekable"):
                open(tmp_path / "fifo", mode)  # noqa: SIM115 - it fails
            with pytest.raises(io.UnsupportedOperation, match="not seekable"):
                await fs.open(tmp_path / "fifo", mode)
        assert os.listdir("/proc/self/fd") == before

    runner.run(main())


def test_newlines(runner: asyncio.Runner, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"a\nb\r\nc\r")

    async def main() -> None:
        async with fs.open(tmp_path / "x") as f:
            assert f.newlines is None
            assert await f.read() == "a\nb\nc\n"
            assert f.newlines == ("\r", "\n", "\r\n")

    runner.run(main())


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        (("x", "rw"), {}),
        (("x", ""), {}),
        (("x", "r+b+"), {}),
        (("x", "rbt"), {}),
        (("x", "q"), {}),
        (("x", 3), {}),
        (("x", "rb"), {"encoding": "utf-8"}),
        (("x", "rb"), {"errors": "strict"}),
        (("x", "rb"), {"newline": "\n"}),
        (("x", "r"), {"buffering": 0}),
        (("x", "r"), {"newline": "\t"}),
        (("x", "r"), {"newline": 3}),
        (("x", "r"), {"encoding": "nonsense"}),
        (("x", "r"), {"encoding": "rot13"}),
        (("x", "r"), {"closefd": False}),
        (("x\0y", "r"), {}),
        ((-1, "r"), {}),
        ((None, "r"), {}),
        ((1.5, "r"), {}),
        (("missing", "r"), {}),
        ((".", "r"), {}),
        (("x", "xb"), {}),
        (("missing/y", "wb"), {}),
        ((99999, "rb"), {}),
        (("x", "rb"), {"opener": lambda path, flags: -1}),
        (("x", "rb"), {"opener": lambda path, flags: None}),
    ],
)
def test_open_refuses_what_io_refuses(
    runner: asyncio.Runner,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("x").touch()

    async def ours() -> None:
        await fs.open(*args, **kwargs)

    with pytest.raises((OSError, ValueError, TypeError, LookupError)) as expected:
        open(*args, **kwargs)  # noqa: SIM115 - it fails
    with pytest.raises(expected.type) as got:
        runner.run(ours())
    assert outcome_of(got.value) == outcome_of(expected.value)
