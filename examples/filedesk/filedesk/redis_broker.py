"""Jobs in a stream of Redis with a consumer group, events by publish and subscribe."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import uuid
from typing import TYPE_CHECKING, Any

from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from filedesk.broker import Broker, Event, Job

if TYPE_CHECKING:
    from collections.abc import Callable

log = logging.getLogger(__name__)
GROUP = "workers"
LOST_AFTER_MS = 30_000  # A job comes again when its worker has said nothing for this long.
BLOCK_MS = 2_000
RETRY_S = 1.0


class RedisJob(Job):
    """An entry of the stream that is pending."""

    def __init__(self, redis: Redis, key: str, consumer: str, entry: Any) -> None:
        self._redis, self._key, self._consumer = redis, key, consumer
        self._entry, fields = entry
        super().__init__(uuid.UUID(fields["file"]))

    async def alive(self) -> None:
        await self._redis.xclaim(self._key, GROUP, self._consumer, 0, [self._entry], justid=True)

    async def done(self) -> None:
        await self._redis.xack(self._key, GROUP, self._entry)
        await self._redis.xdel(self._key, self._entry)


class RedisBroker(Broker):
    """For any number of processes."""

    def __init__(self, url: str, namespace: str) -> None:
        self._redis: Redis = Redis.from_url(url, decode_responses=True)
        self._jobs, self._events = f"{namespace}:jobs", f"{namespace}:events"
        self._consumer = str(uuid.uuid4())
        self._listening: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        try:
            await self._redis.xgroup_create(self._jobs, GROUP, id="0", mkstream=True)
        except ResponseError as error:
            if "BUSYGROUP" not in str(error):  # It is there.
                raise

    async def close(self) -> None:
        for task in self._listening:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
        await self._redis.aclose()

    async def submit(self, file_id: uuid.UUID) -> None:
        await self._redis.xadd(self._jobs, {"file": str(file_id)})

    async def take(self) -> Job:
        while True:
            _, entries, *_ = await self._redis.xautoclaim(
                self._jobs, GROUP, self._consumer, LOST_AFTER_MS, count=1
            )
            if not entries:
                found = await self._redis.xreadgroup(
                    GROUP, self._consumer, {self._jobs: ">"}, count=1, block=BLOCK_MS
                )
                entries = _entries(found)
            if entries:
                return RedisJob(self._redis, self._jobs, self._consumer, entries[0])

    async def publish(self, event: Event) -> None:
        await self._redis.publish(self._events, json.dumps(event))

    async def listen(self, told: Callable[[Event], None]) -> None:
        channel = self._redis.pubsub(ignore_subscribe_messages=True)
        await channel.subscribe(self._events)

        async def receive() -> None:
            async with channel:
                while True:
                    try:
                        async for message in channel.listen():
                            told(json.loads(message["data"]))
                    except RedisError as error:  # It is away; listen() subscribes again.
                        log.warning("no events from Redis until it is back: %s", error)
                        await asyncio.sleep(RETRY_S)

        self._listening.append(asyncio.create_task(receive()))


def _entries(found: Any) -> list[Any]:
    """What XREADGROUP found, in the form of either protocol version."""
    if not found:
        return []
    if isinstance(found, dict):
        [batches] = found.values()
        return [entry for batch in batches for entry in batch]
    return list(found[0][1])
