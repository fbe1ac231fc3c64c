"""How programs come to run on ringloop: `run()` and the event loop policy."""

from __future__ import annotations

import asyncio
import sys
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, TypeVar

from ringloop.loop import EventLoop
from ringloop.streams import default as default_streams

if TYPE_CHECKING:
    from collections.abc import Coroutine

T = TypeVar("T")


def run(main: Coroutine[Any, Any, T], *, debug: bool | None = None, driver: str | None = None) -> T:
    """Run a coroutine on a new ringloop and give its result, as asyncio.run() does.

    `driver` is as for `EventLoop`. While it runs, asyncio.open_connection(),
    start_server() and their Unix kin create the streams of `ringloop.streams` on this
    loop, unless the environment has RINGLOOP_STREAMS=stdlib. Raises ValueError if `main`
    is not a coroutine, RuntimeError if a loop is running in this thread.
    """

    if asyncio._get_running_loop() is not None:
        raise RuntimeError("ringloop.run() cannot be called from a running event loop")
    own_streams = default_streams.wanted()

    def factory() -> EventLoop:
        loop = EventLoop(driver or "auto")
        loop._own_streams = own_streams
        return loop

    exchanged = default_streams.installed() if own_streams else nullcontext()
    with exchanged, asyncio.Runner(debug=debug, loop_factory=factory) as runner:
        return runner.run(main)


def install() -> None:
    """Make every new event loop of this process a ringloop.

    For programs that cannot pass a loop factory. Event loop policies end with Python
    3.15 (RuntimeError after that); prefer `ringloop.run(main())` or
    `asyncio.Runner(loop_factory=ringloop.new_event_loop)`.
    """
    if sys.version_info >= (3, 16):
        raise RuntimeError(
            "ringloop.install() needs event loop policies, which ended with Python 3.15: "
            "use ringloop.run(main()) or asyncio.run(main(), loop_factory=ringloop.new_event_loop)"
        )

    class EventLoopPolicy(asyncio.DefaultEventLoopPolicy):
        """asyncio's policy with ringloop's loops."""

        def _loop_factory(self) -> EventLoop:
            return EventLoop()

    asyncio.set_event_loop_policy(EventLoopPolicy())
