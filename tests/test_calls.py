"""The loop's hot methods have forms of their own in C: whatever way they are called, they do
what asyncio's do. And handles are used again: nobody can see it."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import inspect
import time
import weakref
from asyncio import tasks
from typing import TYPE_CHECKING, Any

import pytest

import ringloop

if TYPE_CHECKING:
    from collections.abc import Callable

    Run = Callable[..., Any]

VALUE: contextvars.ContextVar[str] = contextvars.ContextVar("VALUE", default="nothing")


async def nothing() -> None: ...


def ways_to_schedule(loop: asyncio.AbstractEventLoop) -> list[tuple[Any, tuple[float, ...]]]:
    """Each method with what it takes before the callback."""
    return [
        (loop.call_soon, ()),
        (loop.call_soon_threadsafe, ()),
        (loop.call_later, (0,)),
        (loop.call_later, (0.0,)),
        (loop.call_at, (loop.time(),)),
    ]


@pytest.mark.parametrize("args", [(), (1,), (1, 2), (1, 2, 3), ((),), (None,), ((1, 2),)])
def test_a_callback_gets_the_arguments_that_were_given(
    args: tuple[Any, ...], loop: ringloop.EventLoop, run: Run
) -> None:
    got: list[tuple[Any, ...]] = []

    def callback(*args: Any) -> None:
        got.append(args)

    async def main() -> None:
        for method, before in ways_to_schedule(loop):
            handle = method(*before, callback, *args)
            assert handle._args == args
            assert handle._callback is callback
            cancelled = method(*before, callback, "cancelled")
            cancelled.cancel()
            assert cancelled._args is None
            assert cancelled._callback is None
        while len(got) < 5:
            await asyncio.sleep(0)

    run(main())
    assert got == [args] * 5


@pytest.mark.parametrize("debug", [False, True])
def test_a_context_is_given_by_keyword(debug: bool, loop: ringloop.EventLoop, run: Run) -> None:
    loop.set_debug(debug)
    given = contextvars.copy_context()
    given.run(VALUE.set, "given")
    got: list[str] = []

    def callback(name: str = "") -> None:
        got.append(name + VALUE.get())

    async def main() -> None:
        VALUE.set("current")
        for method, before in ways_to_schedule(loop):
            method(*before, callback, context=given)
            method(*before, callback, "with an argument: ", **{"con" + "text": given})
            method(*before, callback, context=None)
            assert method(*before, callback).get_context() is not given
        VALUE.set("later")
        while len(got) < 20:
            await asyncio.sleep(0)

    run(main())
    expected = ["given", "with an argument: given", "current", "current"]
    assert sorted(got) == sorted(expected * 5)


def test_the_callback_and_the_time_can_be_given_by_name(loop: ringloop.EventLoop, run: Run) -> None:
    got: list[str] = []
    untyped: Any = loop

    async def main() -> None:
        untyped.call_soon(callback=lambda: got.append("soon"))
        untyped.call_later(callback=lambda: got.append("later"), delay=0)
        untyped.call_later(0, callback=lambda: got.append("later"))
        untyped.call_at(callback=lambda: got.append("at"), when=0)
        await asyncio.sleep(0.001)

    run(main())
    assert got == ["soon", "at", "later", "later"]


@pytest.mark.parametrize(
    "call",
    [
        lambda loop: loop.call_soon(),
        lambda loop: loop.call_soon(print, contexts=None),
        lambda loop: loop.call_soon(print, context=None, name="x"),
        lambda loop: loop.call_later(1),
        lambda loop: loop.call_later(print, 1),
        lambda loop: loop.call_later(None, print),
        lambda loop: loop.call_at(None, print),
        lambda loop: loop.call_at(1),
        lambda loop: loop.call_at(1, print, when=2),
    ],
)
def test_wrong_calls_are_type_errors_as_in_asyncio(
    call: Callable[[Any], object], loop: ringloop.EventLoop
) -> None:
    stock = asyncio.SelectorEventLoop()
    try:
        for each in (stock, loop):
            with pytest.raises(TypeError):
                call(each)
    finally:
        stock.close()
    loop.call_soon(loop.stop)
    loop.run_forever()  # nothing half made was scheduled


def test_signatures_are_those_of_asyncio(loop: ringloop.EventLoop) -> None:
    for name in ("call_soon", "call_later", "call_at", "get_debug", "time", "create_future"):
        ours = inspect.signature(getattr(loop, name))
        theirs = inspect.signature(getattr(asyncio.BaseEventLoop, name))
        assert list(ours.parameters) == list(theirs.parameters)[1:]
        assert getattr(loop, name).__doc__


def test_a_subclass_may_override_and_extend(driver: str) -> None:
    log: list[str] = []

    class Loop(ringloop.EventLoop):
        def call_soon(self, *args: Any, **options: Any) -> Any:  # type: ignore[override]
            log.append("call_soon")
            return super().call_soon(*args, **options)

        def create_task(self, *args: Any, **options: Any) -> Any:
            log.append("create_task")
            return super().create_task(*args, **options)

    loop = Loop(driver)
    loop.remark = "of a user"  # type: ignore[attr-defined]
    try:
        loop.run_until_complete(nothing())
        assert vars(loop) == {"remark": "of a user"}
    finally:
        loop.close()
    assert {"call_soon", "create_task"} == set(log)


def test_what_the_classes_of_a_loop_keep_is_not_in_a_dict(
    loop: ringloop.EventLoop, run: Run
) -> None:
    async def main() -> None:
        loop.add_signal_handler(10, print)
        await loop.run_in_executor(None, int)
        await loop.getaddrinfo("127.0.0.1", 1)
        server = await asyncio.start_server(print, "127.0.0.1", 0)
        server.close()
        loop.remove_signal_handler(10)

    run(main())
    assert vars(loop) == {}


# -- tasks -------------------------------------------------------------------------------


def test_tasks_have_the_name_and_the_context_that_were_given(
    loop: ringloop.EventLoop, run: Run
) -> None:
    given = contextvars.copy_context()
    given.run(VALUE.set, "given")

    async def value() -> str:
        return VALUE.get()

    async def main() -> None:
        VALUE.set("current")
        unnamed = loop.create_task(value(), name=None, context=None)
        named = loop.create_task(value(), name="name", context=given)
        untyped: Any = loop
        by_name = untyped.create_task(coro=value())
        assert type(named) is asyncio.Task
        assert named.get_name() == "name"
        assert unnamed.get_name().startswith("Task-")
        assert named.get_loop() is loop
        assert [await task for task in (unnamed, named, by_name)] == ["current", "given", "current"]
        coro = value()
        with pytest.raises(TypeError):
            untyped.create_task(coro, nothing=None)
        coro.close()
        with pytest.raises(TypeError):
            untyped.create_task(None)

    run(main())


def test_whoever_replaces_the_task_class_is_asked(
    monkeypatch: pytest.MonkeyPatch, loop: ringloop.EventLoop, run: Run
) -> None:
    class Task(asyncio.Task):  # type: ignore[type-arg]
        pass

    async def main() -> None:
        monkeypatch.setattr(tasks, "Task", Task)
        task = loop.create_task(nothing())
        assert type(task) is Task
        await task

    run(main())


# -- handles that are used again ---------------------------------------------------------


def test_a_handle_that_somebody_holds_stays_what_it_is(loop: ringloop.EventLoop, run: Run) -> None:
    async def main() -> None:
        held: list[Any] = [loop.call_soon(int, i) for i in range(200)]
        for _ in range(5):
            for i in range(200):
                loop.call_soon(float, i)
            await asyncio.sleep(0)
        assert [handle._callback for handle in held] == [int] * 200
        assert [handle._args for handle in held] == [(i,) for i in range(200)]
        held[0].cancel()
        held.clear()
        await asyncio.sleep(0)

    run(main())


def test_a_weak_reference_sees_the_end_of_its_handle(loop: ringloop.EventLoop, run: Run) -> None:
    async def main() -> None:
        reference = weakref.ref(loop.call_soon(int))
        assert reference() is not None
        for _ in range(5):
            await asyncio.sleep(0)
            loop.call_soon(int)
        assert reference() is None

    run(main())


def test_a_cancelled_handle_does_not_cancel_its_successor(
    loop: ringloop.EventLoop, run: Run
) -> None:
    ran: list[int] = []

    async def main() -> None:
        for i in range(100):
            loop.call_soon(ran.append, -1).cancel()
            loop.call_soon(ran.append, i)
            await asyncio.sleep(0)

    run(main())
    assert ran == list(range(100))


def test_what_a_callback_was_given_is_freed_when_it_ran(loop: ringloop.EventLoop, run: Run) -> None:
    class Thing:
        def __del__(self) -> None:
            loop.call_soon(freed.append, "after")  # from a destructor, in the middle of it
            freed.append("at once")

        def callback(self, other: object) -> None: ...

    freed: list[str] = []

    async def main() -> None:
        loop.call_soon(Thing().callback, Thing())
        await asyncio.sleep(0)
        assert freed.count("at once") == 2
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert freed.count("after") == 2

    run(main())


def test_a_timer_that_somebody_holds_stays_what_it_is(loop: ringloop.EventLoop, run: Run) -> None:
    async def main() -> None:
        held: list[Any] = [loop.call_later(0, int, i) for i in range(300)]
        cancelled: list[Any] = [loop.call_later(3600, str, i) for i in range(300)]
        times = [handle.when() for handle in held + cancelled]
        for handle in cancelled:
            handle.cancel()
        for _ in range(3):
            for handle in [loop.call_later(7200, float, i) for i in range(300)]:
                handle.cancel()
            await asyncio.sleep(0.001)
        assert [handle.when() for handle in held + cancelled] == times
        assert [handle._callback for handle in held] == [int] * 300
        assert [handle._args for handle in held] == [(i,) for i in range(300)]
        assert not any(handle.cancelled() for handle in held)
        assert all(handle.cancelled() for handle in cancelled)
        assert {handle._callback for handle in cancelled} == {None}

    run(main())


@pytest.mark.parametrize("debug", [False, True])
def test_a_timer_has_nothing_of_one_that_was_freed(debug: bool, loop: ringloop.EventLoop) -> None:
    context = contextvars.copy_context()
    loop.set_debug(debug)
    for i in range(300):
        old = loop.call_later(3600, print, 1, 2, context=context)
        reference = weakref.ref(old) if i % 2 else None
        old.cancel()
        del old
        assert reference is None or reference() is None
    loop.set_debug(False)
    for i in range(300):
        handle: Any = loop.call_later(3600, int)
        assert not handle.cancelled()
        assert handle._args == ()
        assert handle._loop is loop
        assert handle.get_context() is not context
        assert handle._source_traceback is None
        assert weakref.getweakrefcount(handle) == 0
        assert f"when={handle.when()}" in repr(handle)
        assert "cancelled" not in repr(handle)
        if i % 2:
            handle.cancel()


def test_a_cancelled_timer_does_not_cancel_its_successor(
    loop: ringloop.EventLoop, run: Run
) -> None:
    ran: list[int] = []

    async def main() -> None:
        for i in range(100):
            loop.call_later(0, ran.append, -1).cancel()
            loop.call_later(0, ran.append, i)
        while len(ran) < 100:
            await asyncio.sleep(0)

    run(main())
    assert ran == list(range(100))


def test_timers_of_a_destructor_in_the_middle_of_freeing_others(
    loop: ringloop.EventLoop, run: Run
) -> None:
    class Thing:
        def __del__(self) -> None:
            loop.call_later(0, freed.append, "after")
            loop.call_later(3600, freed.append, "never").cancel()
            freed.append("at once")

        def callback(self, other: object) -> None: ...

    freed: list[str] = []

    async def main() -> None:
        for _ in range(400):
            loop.call_later(0, Thing().callback, Thing())
        while freed.count("after") < 800:
            await asyncio.sleep(0)
        assert sorted(set(freed)) == ["after", "at once"]
        assert freed.count("at once") == 800

    run(main())


def test_timers_made_while_the_collector_frees_others_are_whole(
    loop: ringloop.EventLoop, run: Run
) -> None:
    class Last:
        """Not the collector's: its destructor runs while what refers to it is cleared."""

        __slots__ = ()

        def __del__(self) -> None:
            loop.call_later(0, ran.append, "made by a destructor")

    class Cycle:
        def __init__(self) -> None:
            self.last = Last()
            self.handle = loop.call_later(0, self.callback)

        def callback(self) -> None:
            ran.append("cycle")

    ran: list[str] = []

    async def main() -> None:
        gc.collect()
        for _ in range(200):
            Cycle()
        while ran.count("cycle") < 200:
            await asyncio.sleep(0)
        gc.collect()
        gc.collect()
        while ran.count("made by a destructor") < 200:
            await asyncio.sleep(0)

    run(main())


def test_a_timer_of_a_subclass_is_freed_as_such(loop: ringloop.EventLoop) -> None:
    # The class has no public name, and a type checker knows no base that is computed.
    class Own(type(loop.call_later(3600, int))):  # type: ignore[misc]
        pass

    for _ in range(10):
        own = Own()
        own.attribute = weakref.ref(own)
        assert type(own) is Own
        reference = weakref.ref(own)
        del own
        assert reference() is None
        assert type(loop.call_later(3600, int)) is not Own


def test_an_open_loop_that_nobody_has_is_collected_with_its_used_handles(driver: str) -> None:
    loop = ringloop.EventLoop(driver)
    for _ in range(10):
        loop.call_soon(int)
    loop.run_until_complete(nothing())
    reference = weakref.ref(loop)
    with pytest.warns(ResourceWarning, match="unclosed event loop"):
        del loop
        deadline_s = time.monotonic() + 5
        while reference() is not None and time.monotonic() < deadline_s:
            gc.collect()
    assert reference() is None
