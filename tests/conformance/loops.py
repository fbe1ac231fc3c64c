"""Make every loop that the stdlib's tests reach by a public name the loop under test.

What the tests of CPython 3.11 to 3.13 do to get a loop, and what is done about it:

- `asyncio.new_event_loop()`, `asyncio.run()`, `asyncio.Runner()` and
  `IsolatedAsyncioTestCase` ask the event loop policy. `ringloop.install()` sets one, but
  tests go back to the default with `set_event_loop_policy(None)`, build
  `asyncio.DefaultEventLoopPolicy()` by hand or subclass it, so the factory of the default
  policy is replaced as well.
- `asyncio.SelectorEventLoop(selector)` and, from 3.13, `asyncio.EventLoop` are classes:
  a stand-in takes their place, which ignores the selector and keeps `isinstance()` true.

Left alone are `asyncio.BaseEventLoop` with mocked methods (test_runners, test_pep492) and
`test_utils.TestLoop` with its made-up time (test_tasks): they are fakes that the tests
bring along, not ways to a loop.

So that nothing runs elsewhere unseen, both the loops under test and the stdlib's own are
counted where they are made.
"""

from __future__ import annotations

import asyncio
import functools
import importlib
import os
from asyncio import unix_events
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

NAMES = ("ringloop", "ringloop-streams", "asyncio", "uvloop")
# On these a driver can be chosen. The second has the classes and functions of
# ringloop.streams in the place of asyncio's.
RINGLOOPS = ("ringloop", "ringloop-streams")
_stdlib: Any = unix_events  # private names of it are replaced here


@dataclass
class Made:
    """How many event loops this process made."""

    under_test: int = 0
    stock: int = 0


def install(name: str) -> Made:
    """Put the loop `name` behind asyncio's public names; the counts go on from here."""
    stock_class = _stdlib._UnixSelectorEventLoop
    loop_class = _FIND[name]()
    made = Made()

    def count_under_test() -> None:
        made.under_test += 1

    def count_stock() -> None:
        made.stock += 1

    _on_init(loop_class, count_under_test)
    if loop_class is not stock_class:
        _on_init(stock_class, count_stock)

    class StandInType(type):
        """Its classes call for the loop under test, and have its loops as instances."""

        def __call__(cls, selector: object = None) -> Any:
            return loop_class()

        def __instancecheck__(cls, instance: object) -> bool:
            return isinstance(instance, loop_class)

    class SelectorEventLoop(metaclass=StandInType):
        """Stands where asyncio has its loop class."""

    _stdlib._UnixDefaultEventLoopPolicy._loop_factory = SelectorEventLoop
    public: Any = asyncio
    public.SelectorEventLoop = SelectorEventLoop
    if hasattr(asyncio, "EventLoop"):
        public.EventLoop = SelectorEventLoop
    return made


def check_driver(name: str) -> None:
    """Raise RuntimeError if ringloop runs on another driver than RINGLOOP_DRIVER asks for."""
    if name in RINGLOOPS:
        info = _import("ringloop").backend_info()
        problem = driver_problem(os.environ["RINGLOOP_DRIVER"], info)
        if problem:
            raise RuntimeError(problem)


def driver_problem(wanted: str, info: Mapping[str, Any]) -> str | None:
    """What is wrong if `info`, from ringloop.backend_info(), is not of the driver wanted."""
    if info["driver"] == wanted:
        return None
    return f"asked for the {wanted} driver but got {info['driver']}: {info['reason']}"


def _import(name: str) -> Any:
    """Only the loop under test is imported, and only it has to be there."""
    return importlib.import_module(name)


def _find_asyncio() -> Any:
    return _stdlib._UnixSelectorEventLoop


def _find_uvloop() -> Any:
    # The clean-up of most test classes looks at this attribute. Without it they would all
    # fail after the test proper, which says nothing about uvloop. Nor does its policy, which
    # refuses the child watchers that test_events and test_subprocess set up: not installed.
    loop_class = _import("uvloop").Loop
    loop_class._default_executor = None
    return loop_class


def _find_ringloop() -> Any:
    ringloop = _import("ringloop")
    ringloop.install()
    return ringloop.EventLoop


def _find_ringloop_streams() -> Any:
    ours = _import("ringloop.streams")
    for name in ours.__all__:
        for module in (asyncio, _import("asyncio.streams")):
            setattr(module, name, getattr(ours, name))
    return _find_ringloop()


_FIND: dict[str, Callable[[], Any]] = {
    "asyncio": _find_asyncio,
    "uvloop": _find_uvloop,
    "ringloop": _find_ringloop,
    "ringloop-streams": _find_ringloop_streams,
}


def _on_init(cls: Any, callback: Callable[[], None]) -> None:
    """Call `callback` for every instance made of `cls`, which stays the class that it is."""
    original = cls.__init__

    @functools.wraps(original)
    def init(self: object, *args: object, **kwargs: object) -> None:
        original(self, *args, **kwargs)
        callback()

    cls.__init__ = init
