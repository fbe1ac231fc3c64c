"""What a loop keeps from call to call, and lets go of when it shuts down."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

# On the loop itself: what a loop keeps refers to the loop, and must go with it.
ATTRIBUTE = "_ringloop_offload"


class Kept(Protocol):
    async def aclose(self) -> None: ...


K = TypeVar("K", bound=Kept)


class _Shelf:
    def __init__(self) -> None:
        self.things: dict[Any, Kept] = {}
        self.keeper = self._keep()

    async def _keep(self) -> AsyncGenerator[None, None]:
        """Ends with the loop: asyncio closes asynchronous generators at shutdown."""
        loop = asyncio.get_running_loop()
        try:
            yield
        finally:
            # Calls from other generators' ends may come meanwhile. Each finds a thing that is
            # not closed yet, a new one if need be.
            try:
                while self.things:
                    _, thing = self.things.popitem()
                    await thing.aclose()
            finally:
                delattr(loop, ATTRIBUTE)


async def of_loop(make: Callable[[], K]) -> K:
    """What `make()` gave for the running loop, when it was first asked for."""
    loop = asyncio.get_running_loop()
    shelf: _Shelf | None = getattr(loop, ATTRIBUTE, None)
    if shelf is None:
        shelf = _Shelf()
        setattr(loop, ATTRIBUTE, shelf)
        await anext(shelf.keeper)
    found = shelf.things.get(make)
    if found is None:
        found = shelf.things[make] = make()
    return cast("K", found)
