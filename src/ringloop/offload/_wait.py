"""Waiting for what must be waited for, cancelled or not."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


async def outlast(
    future: asyncio.Future[Any], on_cancel: Callable[[], object] | None = None
) -> asyncio.CancelledError | None:
    """Wait until a future is done; gives the cancellation that came meanwhile, if any.

    The caller raises that when it has tidied up. `on_cancel` is called when it comes, to
    have that sooner.
    """
    cancelled = None
    while not future.done():
        try:
            await asyncio.shield(future)
        except asyncio.CancelledError as error:
            if cancelled is None:
                cancelled = error
                if on_cancel is not None and not future.done():
                    on_cancel()
        except Exception:
            pass  # the future's own, for whoever asks for its result
    return cancelled


async def in_new_thread(function: Callable[[], T]) -> T:
    """Call what blocks for a moment, in a thread of its own.

    A cancelled caller waits, too, and then raises CancelledError: what the function makes
    is to be found elsewhere.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()
    outcome: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            outcome.append(function())
        except BaseException as error:
            errors.append(error)
        try:
            loop.call_soon_threadsafe(done.set_result, None)
        except RuntimeError:
            pass  # the loop was closed meanwhile: nobody waits

    threading.Thread(target=run, name="ringloop-offload", daemon=True).start()
    cancelled = await outlast(done)
    try:
        if cancelled is not None:
            raise cancelled
        if errors:
            raise errors.pop()
        return outcome.pop()
    finally:
        del cancelled
