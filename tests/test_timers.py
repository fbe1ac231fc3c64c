"""Timers: call_later, call_at, their order and their cancellation."""

from __future__ import annotations

import asyncio
import gc
import sys
import weakref
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import ringloop

# What the loop calls due may be this much in the future: the clock's resolution.
EARLY_S = 1e-6


def run_for(loop: asyncio.AbstractEventLoop, seconds: float) -> None:
    loop.call_later(seconds, loop.stop)
    loop.run_forever()


def never() -> None:
    pytest.fail("this timer must not run")


# -- order ---------------------------------------------------------------------------


def test_timers_run_in_the_order_of_their_times(loop: ringloop.EventLoop) -> None:
    seen: list[int] = []
    base = loop.time() + 0.005
    for i in (5, 2, 9, 0, 7, 1, 8, 3, 6, 4):
        loop.call_at(base + i * 0.0005, seen.append, i)
    run_for(loop, 0.02)
    assert seen == list(range(10))


@pytest.mark.parametrize("depth", range(4))
def test_a_timer_that_became_due_waits_for_one_round_of_callbacks_and_no_more(
    loop: ringloop.EventLoop, depth: int
) -> None:
    """As in the standard library, wherever in a chain of callbacks the slow one stands."""
    seen: list[str] = []

    def step(left: int) -> None:
        if left:
            loop.call_soon(step, left - 1)
            return
        when = loop.time() + 0.001
        loop.call_at(when, seen.append, "timer")
        loop.call_soon(first)
        while loop.time() <= when:
            pass

    def first() -> None:
        seen.append("first")
        loop.call_soon(second)

    def second() -> None:
        seen.append("second")
        loop.stop()

    loop.call_soon(step, depth)
    loop.run_forever()
    assert seen == ["first", "timer", "second"]


@pytest.mark.parametrize("before", [True, False], ids=["added before", "added by it"])
def test_a_timer_that_is_due_while_a_callback_runs_does_not_overtake_what_that_scheduled(
    loop: ringloop.EventLoop, before: bool
) -> None:
    """As in the standard library: which timers run is decided once an iteration."""
    seen: list[str] = []
    when = loop.time() + 0.05

    def add() -> None:
        loop.call_at(when, seen.append, "timer")
        loop.call_at(when, loop.stop)

    def slow() -> None:
        if not before:
            add()
        loop.call_soon(seen.append, "soon")
        while loop.time() <= when:
            pass

    loop.call_soon(slow)
    if before:
        add()
    loop.run_forever()
    assert seen == ["soon", "timer"]


def test_equal_times_run_in_the_order_of_the_calls(loop: ringloop.EventLoop) -> None:
    seen: list[int] = []
    when = loop.time() + 0.005
    for i in range(200):
        loop.call_at(when, seen.append, i)
    run_for(loop, 0.01)
    assert seen == list(range(200))


def test_a_timer_is_never_early(loop: ringloop.EventLoop) -> None:
    late: list[float] = []

    def fire(when: float) -> None:
        late.append(loop.time() - when)

    for delay_ms in (0.0, 0.1, 0.4, 1.0, 1.7, 5.0, 20.0):
        when = loop.time() + delay_ms / 1e3
        loop.call_at(when, fire, when)
    run_for(loop, 0.03)
    assert len(late) == 7
    assert min(late) >= -EARLY_S


def test_a_timer_wakes_an_idle_loop(loop: ringloop.EventLoop) -> None:
    start = loop.time()
    loop.call_later(0.05, loop.stop)
    loop.run_forever()
    assert 0.05 - EARLY_S <= loop.time() - start < 2


def test_an_earlier_timer_takes_the_place_of_the_first(loop: ringloop.EventLoop) -> None:
    loop.call_later(3600, never).cancel()
    later = loop.call_later(3600, never)
    start = loop.time()
    loop.call_later(0.01, loop.stop)
    loop.run_forever()
    assert loop.time() - start < 2
    later.cancel()


def test_negative_delays_and_past_times_run_at_once_and_in_order(
    loop: ringloop.EventLoop,
) -> None:
    seen: list[str] = []
    loop.call_later(0, seen.append, "now")
    loop.call_later(-1, seen.append, "a second ago")
    loop.call_at(0, seen.append, "long ago")
    loop.call_at(-1e9, seen.append, "longest ago")
    loop.call_later(0, seen.append, "now, too")
    run_for(loop, 0.001)
    assert seen == ["longest ago", "long ago", "a second ago", "now", "now, too"]


@pytest.mark.parametrize("delay_s", [86401, 1e9, 1e18, float("inf")])
def test_a_very_long_delay_neither_runs_nor_keeps_the_loop_awake_nor_asleep(
    loop: ringloop.EventLoop, delay_s: float
) -> None:
    handle = loop.call_later(delay_s, never)
    assert handle.when() >= loop.time() + delay_s - 1
    # Alone in the heap, it is what the idle loop waits for; a thread wakes it.
    future = loop.create_future()
    waker = loop.run_in_executor(
        None, lambda: loop.call_soon_threadsafe(future.set_result, "woken")
    )
    assert loop.run_until_complete(future) == "woken"
    loop.run_until_complete(waker)
    handle.cancel()


def test_timers_that_are_left_when_the_loop_stops_run_in_its_next_run(
    loop: ringloop.EventLoop,
) -> None:
    seen: list[str] = []
    loop.call_later(0.3, seen.append, "later")
    run_for(loop, 0.0)
    assert seen == []
    run_for(loop, 0.35)
    assert seen == ["later"]


def test_a_timer_that_arms_itself_anew_leaves_room_for_others(
    loop: ringloop.EventLoop,
) -> None:
    ticks = 0

    def tick() -> None:
        nonlocal ticks
        ticks += 1
        timer["tick"] = loop.call_later(0, tick)

    timer = {"tick": loop.call_later(0, tick)}
    run_for(loop, 0.2)
    timer["tick"].cancel()
    assert ticks > 1


# -- cancelling ----------------------------------------------------------------------


@pytest.mark.parametrize("count", range(1, 9))
def test_a_timer_can_be_cancelled_in_every_place_of_the_heap(
    loop: ringloop.EventLoop, count: int
) -> None:
    for victim in range(count):
        seen: list[int] = []
        base = loop.time() - 1
        # Neither rising nor falling, so that a heap has something to sift.
        order = [(i * 5 + 3) % count if count % 5 else i for i in range(count)]
        handles = {i: loop.call_at(base + i / 100, seen.append, i) for i in order}
        handles[victim].cancel()
        run_for(loop, 0)
        assert seen == [i for i in range(count) if i != victim]


def test_a_timer_cancels_others_that_are_due_with_it_and_itself(
    loop: ringloop.EventLoop,
) -> None:
    handles: list[asyncio.TimerHandle] = []
    seen: list[str] = []

    def cancel_all() -> None:
        seen.append("first")
        for handle in handles:
            handle.cancel()

    handles.append(loop.call_at(1, cancel_all))
    handles.append(loop.call_at(1, never))
    handles.append(loop.call_at(2, never))
    handles.append(loop.call_later(0.001, never))
    run_for(loop, 0.005)
    assert seen == ["first"]


def test_cancelling_after_it_ran_or_twice_is_no_error(loop: ringloop.EventLoop) -> None:
    seen: list[int] = []
    ran = loop.call_later(0, seen.append, 1)
    twice = loop.call_later(0, never)
    twice.cancel()
    twice.cancel()
    run_for(loop, 0)
    ran.cancel()
    other = loop.call_later(0, seen.append, 2)
    ran.cancel()  # must not take out whatever has its place now
    run_for(loop, 0)
    assert seen == [1, 2]
    assert not other.cancelled()


def test_fifty_thousand_cancelled_timers_leave_nothing(loop: ringloop.EventLoop) -> None:
    class Callback:
        def __call__(self) -> None:
            never()

    callback = Callback()
    alive = weakref.ref(callback)

    def add_and_cancel(callback: Callback, count: int) -> None:
        handles = [loop.call_later(3600 + i % 977, callback) for i in range(count)]
        for handle in handles[1::2]:
            handle.cancel()
        for handle in reversed(handles[::2]):
            handle.cancel()

    add_and_cancel(callback, 50_000)  # what is kept for reuse is there after the first time
    gc.collect()
    before = sys.getallocatedblocks()
    add_and_cancel(callback, 50_000)
    gc.collect()
    assert sys.getallocatedblocks() - before < 100
    del callback
    gc.collect()
    assert alive() is None


def test_a_dropped_handle_still_runs_and_a_cancelled_one_is_freed_at_once(
    loop: ringloop.EventLoop,
) -> None:
    seen: list[int] = []
    loop.call_later(0, seen.append, 1)
    cancelled = loop.call_later(3600, never)
    ref = weakref.ref(cancelled)
    cancelled.cancel()
    del cancelled
    assert ref() is None
    gc.collect()
    run_for(loop, 0)
    assert seen == [1]


# -- against a model -----------------------------------------------------------------


@dataclass
class Timer:
    when: float
    seq: int
    handle: asyncio.TimerHandle | None = None
    state: str = "waiting"


@dataclass
class Model:
    """What a list kept in order would do; `run` compares."""

    loop: ringloop.EventLoop
    timers: list[Timer] = field(default_factory=list)
    fired: list[Timer] = field(default_factory=list)

    def push(self, when: float) -> None:
        timer = Timer(when, len(self.timers))
        timer.handle = self.loop.call_at(when, self.fired.append, timer)
        self.timers.append(timer)

    def cancel(self, choice: int) -> None:
        if not self.timers:
            return
        timer = self.timers[choice % len(self.timers)]
        assert timer.handle is not None
        timer.handle.cancel()
        if timer.state == "waiting":
            timer.state = "cancelled"

    def run(self, until: float) -> None:
        self.fired.clear()
        before = self.loop.time()
        run_for(self.loop, max(0.0, until - before))
        after = self.loop.time()
        assert self.fired == sorted(self.fired, key=lambda t: (t.when, t.seq))
        for timer in self.fired:
            assert timer.state == "waiting"
            timer.state = "fired"
            assert timer.when <= after + EARLY_S
        # Whatever was due before the run is not waiting any more.
        left = [t.when for t in self.timers if t.state == "waiting"]
        assert min(left, default=after + 1) > before


MS = st.integers(-5, 8)
PUSH = st.tuples(st.just("push"), MS)
CANCEL = st.tuples(st.just("cancel"), st.integers(0, 1000))
RUN = st.tuples(st.just("run"), st.just(0))


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],  # the name of the driver
)
@given(ops=st.lists(st.one_of(PUSH, PUSH, CANCEL, RUN), max_size=60))
def test_random_pushes_cancels_and_runs_do_what_a_sorted_list_would(
    driver: str, ops: list[tuple[str, int]]
) -> None:
    loop = ringloop.EventLoop(driver)
    try:
        model = Model(loop)
        base = loop.time()
        for op, value in ops:
            if op == "push":
                model.push(base + value / 1e3)
            elif op == "cancel":
                model.cancel(value)
            else:
                model.run(loop.time())
        model.run(base + 0.009)
        assert not [t for t in model.timers if t.state == "waiting"]
    finally:
        loop.close()


@settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    times=st.lists(st.integers(-1000, 1000), max_size=200),
    cancels=st.lists(st.integers(0, 199), max_size=200),
)
def test_many_due_timers_run_sorted_without_the_cancelled(
    driver: str, times: list[int], cancels: list[int]
) -> None:
    loop = ringloop.EventLoop(driver)
    try:
        seen: list[tuple[int, int]] = []
        past = loop.time() - 2000
        handles = [loop.call_at(past + t, seen.append, (t, i)) for i, t in enumerate(times)]
        for i in cancels:
            if i < len(handles):
                handles[i].cancel()
        run_for(loop, 0)
        gone = set(cancels)
        assert seen == sorted((t, i) for i, t in enumerate(times) if i not in gone)
    finally:
        loop.close()


# -- the handle ----------------------------------------------------------------------


def test_a_timer_handle_is_what_asyncio_calls_one(loop: ringloop.EventLoop) -> None:
    def some_callback() -> None: ...

    handle = loop.call_at(1234.5, some_callback)
    assert isinstance(handle, asyncio.TimerHandle)
    assert isinstance(handle, asyncio.Handle)
    assert handle.when() == 1234.5
    assert isinstance(handle.when(), float)
    assert not handle.cancelled()
    assert "some_callback" in repr(handle)
    assert "when=1234.5" in repr(handle)
    handle.cancel()
    assert handle.cancelled()
    assert "cancelled" in repr(handle)
    assert handle.when() == 1234.5


def test_call_later_asks_for_the_time_that_many_seconds_from_now(
    loop: ringloop.EventLoop,
) -> None:
    before = loop.time()
    handle = loop.call_later(100, never)
    after = loop.time()
    assert before + 100 <= handle.when() <= after + 100
    handle.cancel()


def test_timer_handles_compare_by_time(loop: ringloop.EventLoop) -> None:
    def callback() -> None: ...

    early = loop.call_at(1, callback)
    late = loop.call_at(2, callback)
    twin = loop.call_at(1, callback)
    assert early < late
    assert early <= late
    assert early <= twin
    assert late > early
    assert late >= early
    assert twin >= early
    assert not early > twin
    assert early != late
    assert early != 1
    assert sorted([late, early]) == [early, late]
    with pytest.raises(TypeError):
        early < 1  # type: ignore[operator]  # noqa: B015
    for handle in (early, late, twin):
        handle.cancel()


def test_timer_handles_of_one_time_and_callback_are_equal_as_asyncio_has_it(
    loop: ringloop.EventLoop,
) -> None:
    def callback() -> None: ...

    one, two = loop.call_at(1, callback), loop.call_at(1, callback)
    assert one == two
    assert hash(one) == hash(two)
    two.cancel()
    assert one != two
    one.cancel()


@pytest.mark.parametrize("method", ["call_later", "call_at"])
@pytest.mark.parametrize("value", [None, "soon", []])
def test_what_is_no_number_is_a_type_error(
    loop: ringloop.EventLoop, method: str, value: Any
) -> None:
    with pytest.raises(TypeError):
        getattr(loop, method)(value, never)


def test_the_clock_is_monotonic_and_goes_on(loop: ringloop.EventLoop) -> None:
    readings = [loop.time() for _ in range(1000)]
    assert readings == sorted(readings)
    assert readings[-1] > readings[0]
