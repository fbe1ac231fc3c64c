"""What a broker must do, and one that lives in this process."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable
    from uuid import UUID

    from filedesk.settings import Settings

Event = dict[str, Any]


class Job:
    """A file to examine. It comes again if its worker is gone before `done()`."""

    def __init__(self, file_id: UUID) -> None:
        self.file_id = file_id

    async def alive(self) -> None:
        """Say that somebody still works on it; call this every few seconds."""

    async def done(self) -> None:
        """It need not come again."""

    async def again(self) -> None:
        """It must come again. A broker elsewhere sees to that when it hears no more of it."""


class Broker(ABC):
    """Brings each job to one worker, and each event to every process that shows them."""

    @abstractmethod
    async def start(self) -> None:
        """Connect."""

    @abstractmethod
    async def close(self) -> None:
        """Disconnect."""

    @abstractmethod
    async def submit(self, file_id: UUID) -> None:
        """Have a file examined. It may be submitted again: then a job may come twice."""

    @abstractmethod
    async def take(self) -> Job:
        """Wait for a job."""

    @abstractmethod
    async def publish(self, event: Event) -> None:
        """Tell everybody who listens."""

    @abstractmethod
    async def listen(self, told: Callable[[Event], None]) -> None:
        """From now on call `told` with each event."""


class EmbeddedJob(Job):
    """Nobody else knows of it."""

    def __init__(self, file_id: UUID, jobs: asyncio.Queue[UUID]) -> None:
        super().__init__(file_id)
        self._jobs = jobs

    async def again(self) -> None:
        self._jobs.put_nowait(self.file_id)


class EmbeddedBroker(Broker):
    """For a single process. What it forgets with the process is in the database."""

    def __init__(self) -> None:
        self._jobs: asyncio.Queue[UUID] = asyncio.Queue()
        self._listeners: list[Callable[[Event], None]] = []

    async def start(self) -> None:
        pass

    async def close(self) -> None:
        self._listeners.clear()

    async def submit(self, file_id: UUID) -> None:
        self._jobs.put_nowait(file_id)

    async def take(self) -> Job:
        return EmbeddedJob(await self._jobs.get(), self._jobs)

    async def publish(self, event: Event) -> None:
        for told in self._listeners:
            told(event)

    async def listen(self, told: Callable[[Event], None]) -> None:
        self._listeners.append(told)


def make_broker(settings: Settings) -> Broker:
    """The one that the settings name; its library is imported only then."""
    scheme = settings.broker.partition("://")[0]
    if not scheme:
        return EmbeddedBroker()
    if scheme == "nats":
        from filedesk.nats_broker import NatsBroker  # noqa: PLC0415

        return NatsBroker(settings.broker, settings.namespace)
    if scheme in ("redis", "rediss"):
        from filedesk.redis_broker import RedisBroker  # noqa: PLC0415

        return RedisBroker(settings.broker, settings.namespace)
    raise ValueError(f"{settings.broker!r} is no broker: use nats://HOST:4222 or redis://HOST:6379")
