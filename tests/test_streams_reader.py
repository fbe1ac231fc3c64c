"""ringloop.streams.StreamReader alone, fed by hand: the same results as asyncio's."""

from __future__ import annotations

import asyncio
import inspect
import os
import sys
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ringloop
from ringloop.streams import StreamReader

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    Run = Callable[..., Any]

LONGER = int(os.environ.get("RINGLOOP_FUZZ", "0"))


@pytest.fixture
def run() -> Run:
    """Run a coroutine; on one driver, as nothing here does I/O."""

    def run(main: Coroutine[Any, Any, Any]) -> Any:
        with asyncio.Runner(loop_factory=ringloop.new_event_loop) as runner:
            return runner.run(asyncio.wait_for(main, 10))

    return run


# Few letters, so that separators and limits are met often.
data = st.text("ab\n", max_size=12).map(str.encode)
separators = st.sampled_from([b"\n", b"a\n", b"aba"])
if sys.version_info >= (3, 13):
    separators |= st.sampled_from([(b"\n", b"aba"), (b"ab", b"b"), (b"a\n", b"\n")])
calls = st.one_of(
    st.tuples(st.just("read"), st.integers(-1, 9)),
    st.tuples(st.just("readexactly"), st.integers(-1, 30)),
    st.tuples(st.just("readuntil"), separators),
    st.tuples(st.just("readline")),
)
feeding = st.tuples(st.just("feed"), data)
calling = st.tuples(st.just("call"), calls)
cancelling = st.just(("cancel",))
# What ends a stream comes late, and looking at the buffer (which changes how it is kept)
# not always: else little is read from pieces.
scripts = st.builds(
    lambda begin, looks, middle, end, rest: begin + looks * [("look",)] + middle + end + rest,
    st.lists(feeding | calling | feeding | calling | cancelling, min_size=5, max_size=30),
    st.integers(0, 1),
    st.lists(feeding | calling | cancelling, max_size=10),
    st.sampled_from([[], [("fail",)], [("eof",)]]),
    st.lists(calling, max_size=3),
)


class Source(asyncio.Transport):
    """A transport that only knows whether it is paused."""

    paused = False

    def pause_reading(self) -> None:
        assert not self.paused
        self.paused = True

    def resume_reading(self) -> None:
        assert self.paused
        self.paused = False


def outcome(task: asyncio.Task[bytes]) -> Any:
    if task.cancelled():
        return "cancelled"
    exc = task.exception()
    if exc is None:
        return task.result()
    return type(exc), str(exc), getattr(exc, "partial", None), getattr(exc, "consumed", None)


async def play(reader_class: Any, script: list[Any], limit: int) -> list[Any]:
    """What became of each action, until the classes are known to differ."""
    reader = reader_class(limit, loop=asyncio.get_running_loop())
    source = Source()
    reader.set_transport(source)
    seen: list[Any] = []
    running: dict[int, tuple[str, asyncio.Task[bytes]]] = {}
    for number, (action, *args) in enumerate([*script, ("eof",)]):
        # asyncio's read(-1) keeps what it read to itself, and loses it when it fails.
        to_eof = any(name == "read-1" for name, _ in running.values())
        if action == "feed" and not reader._eof:
            reader.feed_data(args[0])
        elif action == "call" and not running:
            # (Beside one that waits, asyncio's lose bytes and overlook separators.)
            name, *rest = args[0]
            task = asyncio.create_task(getattr(reader, name)(*rest))
            running[number] = (name + "".join(str(x) for x in rest if x == -1), task)
        elif action == "cancel" and not to_eof:
            for _, task in running.values():
                task.cancel()
        elif action == "look" and not to_eof:
            seen.append(bytes(reader._buffer))
        elif action == "fail" and not to_eof:
            reader.set_exception(OSError("broken"))
        elif action == "eof" and not reader._eof:
            reader.feed_eof()
        for _ in range(4):
            await asyncio.sleep(0)
        for key, (name, task) in list(running.items()):
            if task.done():
                del running[key]
                seen.append((number, key, name, outcome(task)))
                if name == "readline" and "is not found" in str(seen[-1]):
                    return seen  # asyncio gives the rest of the line as the next one
        seen.append((number, reader.at_eof(), reader._paused, source.paused))
    for _, task in running.values():
        task.cancel()
    await asyncio.wait([task for _, task in running.values()]) if running else None
    return seen


@settings(max_examples=LONGER or 300, deadline=None, derandomize=not LONGER)
@given(script=scripts, limit=st.integers(1, 20))
def test_any_calls_on_any_pieces_end_as_asyncios_do(script: list[Any], limit: int) -> None:
    with asyncio.Runner(loop_factory=ringloop.new_event_loop) as runner:
        ours = runner.run(play(StreamReader, script, limit))
        theirs = runner.run(play(asyncio.StreamReader, script, limit))
    assert ours == theirs


@settings(max_examples=LONGER or 150, deadline=None, derandomize=not LONGER)
@given(
    pieces=st.lists(st.binary(max_size=40), min_size=3, max_size=20),
    sizes=st.lists(st.integers(0, 12), max_size=30),
    looks=st.booleans(),
)
def test_no_byte_is_lost_or_moved(pieces: list[bytes], sizes: list[int], looks: bool) -> None:
    async def main() -> bytes:
        reader = StreamReader(8)
        got = []
        for i in range(max(len(pieces), len(sizes))):
            if i < len(pieces):
                kind = (bytes, bytearray, memoryview)[i % 3]
                reader.feed_data(kind(pieces[i]))
            if looks and i % 4 == 1:
                assert isinstance(reader._buffer, bytearray)
            if i < len(sizes) and len(reader._buffer if looks else sizes) > 0:
                task = asyncio.ensure_future(reader.read(sizes[i]))
                await asyncio.sleep(0)
                if not task.done():
                    task.cancel()
                    await asyncio.wait([task])
                else:
                    got.append(task.result())
        reader.feed_eof()
        return b"".join(got) + await reader.read()

    assert asyncio.run(main()) == b"".join(pieces)


CALLS: dict[str, Callable[[Any], Coroutine[Any, Any, bytes]]] = {
    "read": lambda reader: reader.read(10),
    "read to EOF": lambda reader: reader.read(),
    "readexactly": lambda reader: reader.readexactly(10),
    "readuntil": lambda reader: reader.readuntil(b"--"),
    "readline": lambda reader: reader.readline(),
    "async for": lambda reader: reader.__anext__(),
}
every_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())


@every_call
def test_a_read_that_is_cancelled_takes_nothing(run: Run, call: Any) -> None:
    async def main() -> None:
        reader = StreamReader()
        task = asyncio.create_task(call(reader))
        await asyncio.sleep(0)
        waiter = reader._waiter
        if call is not CALLS["read"]:
            reader.feed_data(b"12345")
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert waiter is not None
        assert reader._waiter is None
        reader.feed_data(b"67890--\n")
        assert (await reader.readline()).endswith(b"67890--\n")

    run(main())


@every_call
def test_a_read_that_is_cancelled_once_woken_takes_nothing(run: Run, call: Any) -> None:
    async def main() -> None:
        reader = StreamReader()
        task = asyncio.create_task(call(reader))
        await asyncio.sleep(0)
        reader.feed_data(b"1234567890--\n")
        reader.feed_eof()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await reader.read() == b"1234567890--\n"

    run(main())


@every_call
def test_a_second_read_that_would_wait_is_refused(run: Run, call: Any) -> None:
    async def main() -> None:
        reader = StreamReader()
        first = asyncio.create_task(reader.readexactly(3))
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError, match=r"\(\) called while another coroutine is already"):
            await call(reader)
        reader.feed_data(b"abc")
        assert await first == b"abc"

    run(main())


@every_call
def test_an_exception_ends_the_read_that_waits_and_those_to_come(run: Run, call: Any) -> None:
    async def main() -> None:
        reader = StreamReader()
        task = asyncio.create_task(call(reader))
        await asyncio.sleep(0)
        reader.set_exception(ConnectionResetError("gone"))
        with pytest.raises(ConnectionResetError, match="gone"):
            await task
        with pytest.raises(ConnectionResetError, match="gone"):
            await call(reader)
        assert isinstance(reader.exception(), ConnectionResetError)

    run(main())


@every_call
def test_reads_are_coroutines(run: Run, call: Any) -> None:
    async def main() -> None:
        reader = StreamReader()
        coroutine = call(reader)
        assert inspect.iscoroutine(coroutine)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(coroutine, 0)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(call(reader), 0.001)
        reader.feed_data(b"1234567890--\n")
        reader.feed_eof()
        assert (await asyncio.gather(call(reader)))[0].startswith(b"1234567890")

    run(main())


def test_lines_can_be_iterated_over(run: Run) -> None:
    async def main() -> list[bytes]:
        reader = StreamReader()
        reader.feed_data(b"one\ntwo\nthr")
        asyncio.get_running_loop().call_soon(reader.feed_data, b"ee\nrest")
        asyncio.get_running_loop().call_soon(reader.feed_eof)
        return [line async for line in reader]

    assert run(main()) == [b"one\n", b"two\n", b"three\n", b"rest"]


def test_a_piece_that_answers_a_read_is_not_copied(run: Run) -> None:
    async def main() -> None:
        reader = StreamReader()
        piece = bytes(1000)
        for read in (reader.read(5000), reader.readexactly(1000)):
            reader.feed_data(piece)
            assert await read is piece

    run(main())


def test_a_read_is_woken_once_when_all_is_there(run: Run) -> None:
    async def main() -> None:
        reader = StreamReader(limit=10)
        source = Source()
        reader.set_transport(source)
        task = asyncio.create_task(reader.readexactly(1000))
        await asyncio.sleep(0)
        waiter = reader._waiter
        assert waiter is not None
        for _ in range(9):
            reader.feed_data(bytes(100))
            assert reader._waiter is waiter
            assert not waiter.done()
            assert not source.paused  # though far more than the limit waits
        reader.feed_data(bytes(200))
        assert reader._waiter is None
        assert source.paused
        assert await task == bytes(1000)
        assert source.paused  # 100 bytes are left
        assert await reader.readexactly(90) == bytes(90)
        assert not source.paused

    run(main())


def test_a_line_that_comes_late_does_not_wait_for_a_paused_transport(run: Run) -> None:
    async def main() -> None:
        reader = StreamReader(limit=4)
        source = Source()
        reader.set_transport(source)
        reader.feed_data(b"123456789")
        assert source.paused
        with pytest.raises(asyncio.LimitOverrunError) as caught:
            await reader.readuntil(b"--")
        assert source.paused
        assert await reader.readexactly(caught.value.consumed) == b"12345678"
        assert not source.paused

    run(main())


def test_a_transport_that_cannot_pause_is_asked_once(run: Run) -> None:
    class Stubborn(asyncio.Transport):
        asked = 0

        def pause_reading(self) -> None:
            self.asked += 1
            raise NotImplementedError

    async def main() -> None:
        reader = StreamReader(limit=1)
        source = Stubborn()
        reader.set_transport(source)
        reader.feed_data(b"12345")
        reader.feed_data(b"67890")
        assert source.asked == 1
        assert reader._transport is None
        assert await reader.readexactly(10) == b"1234567890"

    run(main())


def test_a_reader_keeps_the_promises_of_its_private_names(run: Run) -> None:
    """Programs clear, extend and replace `_buffer`, and set `_limit` and the like."""

    async def main() -> None:
        reader = StreamReader()
        assert isinstance(reader, asyncio.StreamReader)
        reader.feed_data(b"stale")
        reader._buffer.clear()
        held = reader._buffer
        reader.feed_data(b"abc")
        assert held == b"abc"
        held.extend(b"def")
        del held[:1]
        assert await reader.readexactly(3) == b"bcd"
        assert held == b"ef"
        task = asyncio.create_task(reader.readexactly(4))
        await asyncio.sleep(0)
        held.extend(b"gh")
        reader._wakeup_waiter()
        assert await task == b"efgh"
        reader._buffer = bytearray(b"xy")
        assert await reader.read(10) == b"xy"
        assert not held
        reader._limit = 2
        with pytest.raises(ValueError, match="longer than limit"):
            reader.feed_data(b"long\n")
            await reader.readline()
        task = asyncio.create_task(reader.read(1))
        await asyncio.sleep(0)
        assert reader._waiter is not None
        assert not reader._paused
        reader._eof = True
        reader._wakeup_waiter()
        assert await task == b""

    run(main())


def test_a_subclass_may_read_by_itself(run: Run) -> None:
    class Mine(StreamReader):
        def feed_data(self, data: Any) -> None:
            super().feed_data(bytes(data).upper())

        async def read_two(self) -> bytes:
            while len(self._buffer) < 2:
                await self._wait_for_data("read_two")
            taken = bytes(self._buffer[:2])
            del self._buffer[:2]
            self._maybe_resume_transport()
            return taken

    async def main() -> None:
        reader = Mine(limit=100)
        task = asyncio.create_task(reader.read_two())
        for piece in (b"a", b"bc"):
            await asyncio.sleep(0)
            reader.feed_data(piece)
        assert await task == b"AB"
        assert await reader.read(5) == b"C"

    run(main())


def test_it_works_on_asyncios_own_loop() -> None:
    async def main() -> bytes:
        reader = StreamReader()
        asyncio.get_running_loop().call_soon(reader.feed_data, b"line\n")
        return await reader.readline()

    assert asyncio.run(main()) == b"line\n"


@pytest.mark.parametrize(
    "reader_class",
    [
        pytest.param(asyncio.StreamReader, marks=pytest.mark.xfail(raises=AssertionError)),
        StreamReader,
    ],
)
@pytest.mark.parametrize(
    "pieces", [[b"12345678", b"90\nnext\n"], [b"1234567", b"890", b"\nnext\n"]]
)
def test_after_a_line_over_the_limit_comes_the_next_line(
    run: Run, reader_class: Any, pieces: list[bytes]
) -> None:
    """asyncio throws away what has come of the long line, and gives its rest as a line."""

    async def main() -> None:
        reader = reader_class(limit=6)
        reader.feed_data(pieces[0])
        with pytest.raises(ValueError, match="exceed the limit"):
            await reader.readline()
        task = asyncio.create_task(reader.readline())
        for piece in pieces[1:]:
            await asyncio.sleep(0)
            reader.feed_data(piece)
        assert await task == b"next\n"

    run(main())


def test_a_long_line_that_never_ends_is_no_line(run: Run) -> None:
    async def main() -> None:
        reader = StreamReader(limit=6)
        reader.feed_data(b"12345678")
        with pytest.raises(ValueError, match="exceed the limit"):
            await reader.readline()
        reader.feed_data(b"90")
        reader.feed_eof()
        assert await reader.readline() == b""
        assert reader.at_eof()

    run(main())


def test_other_reads_get_the_rest_of_a_long_line(run: Run) -> None:
    async def main() -> None:
        reader = StreamReader(limit=6)
        reader.feed_data(b"12345678")
        with pytest.raises(ValueError, match="exceed the limit"):
            await reader.readline()
        reader.feed_data(b"90\nnext\n")
        assert await reader.readexactly(2) == b"90"
        assert await reader.readline() == b"\n"
        assert await reader.readline() == b"next\n"

    run(main())


def test_wrong_arguments_are_refused(run: Run) -> None:
    async def main() -> None:
        reader = StreamReader()
        with pytest.raises(ValueError, match="Limit cannot be <= 0"):
            StreamReader(0)
        with pytest.raises(ValueError, match="less than zero"):
            await reader.readexactly(-1)
        with pytest.raises(ValueError, match="at least one-byte"):
            await reader.readuntil(b"")
        with pytest.raises(ValueError, match="at least one element"):
            await reader.readuntil(())
        reader.feed_eof()
        with pytest.raises(AssertionError, match="feed_data after feed_eof"):
            reader.feed_data(b"x")

    run(main())
