"""Server-sent events: what happens to the files, to every page that is open."""

from __future__ import annotations

import asyncio
import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from filedesk.broker import Event

KEEP_ALIVE_S = 15.0  # Proxies cut connections that are silent for long.


class Viewer:
    """What one page has not been told yet: of each file, only the newest."""

    def __init__(self) -> None:
        self.news: dict[str, Event] = {}
        self.something = asyncio.Event()


class Live:
    """Brings events to viewers. A slow one skips steps; it never holds up others, or memory."""

    def __init__(self) -> None:
        self._viewers: set[Viewer] = set()
        self._stopping = False

    def told(self, event: Event) -> None:
        """Pass on an event."""
        for viewer in self._viewers:
            viewer.news[event["id"]] = event
            viewer.something.set()

    def stop(self) -> None:
        """End all streams: a server waits for its connections before it goes."""
        self._stopping = True
        for viewer in self._viewers:
            viewer.something.set()

    @contextmanager
    def _viewer(self) -> Iterator[Viewer]:
        viewer = Viewer()
        self._viewers.add(viewer)
        try:
            yield viewer
        finally:
            self._viewers.discard(viewer)

    async def stream(self, snapshot: Callable[[], Awaitable[list[Event]]]) -> AsyncIterator[str]:
        """All there is, then each change, in the text form of server-sent events."""
        with self._viewer() as viewer:  # First, so that nothing falls between the two.
            yield _message("snapshot", await snapshot())
            while not self._stopping:
                try:
                    async with asyncio.timeout(KEEP_ALIVE_S):
                        await viewer.something.wait()
                except TimeoutError:
                    yield ": still here\n\n"
                    continue
                viewer.something.clear()
                news, viewer.news = viewer.news, {}
                for event in news.values():
                    yield _message("gone" if event.get("gone") else "file", event)


def _message(kind: str, data: Any) -> str:
    return f"event: {kind}\ndata: {json.dumps(data)}\n\n"
