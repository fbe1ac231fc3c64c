"""Jobs in a JetStream work queue of NATS, events on a subject."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING
from uuid import UUID

import nats
from nats.errors import TimeoutError as NothingThereError
from nats.js.api import ConsumerConfig, RetentionPolicy, StreamConfig

from filedesk.broker import Broker, Event, Job

if TYPE_CHECKING:
    from collections.abc import Callable

    from nats.aio.client import Client
    from nats.aio.msg import Msg
    from nats.js.client import JetStreamContext

ACK_WAIT_S = 30  # A job comes again when its worker has said nothing for this long.
FETCH_S = 5


class NatsJob(Job):
    """A message that is not acknowledged yet."""

    def __init__(self, message: Msg) -> None:
        super().__init__(UUID(message.data.decode()))
        self._message = message

    async def alive(self) -> None:
        await self._message.in_progress()

    async def done(self) -> None:
        await self._message.ack()


class NatsBroker(Broker):
    """For any number of processes."""

    def __init__(self, url: str, namespace: str) -> None:
        self._url = url
        self._namespace = namespace
        self._client: Client
        self._stream: JetStreamContext
        self._jobs: JetStreamContext.PullSubscription

    async def start(self) -> None:
        self._client = await nats.connect(self._url)
        self._stream = self._client.jetstream()
        subject = f"{self._namespace}.jobs"
        await self._stream.add_stream(
            StreamConfig(
                name=self._namespace, subjects=[subject], retention=RetentionPolicy.WORK_QUEUE
            )
        )
        config = ConsumerConfig(ack_wait=ACK_WAIT_S)
        self._jobs = await self._stream.pull_subscribe(subject, durable="workers", config=config)

    async def close(self) -> None:
        await self._client.close()

    async def submit(self, file_id: UUID) -> None:
        await self._stream.publish(f"{self._namespace}.jobs", str(file_id).encode())

    async def take(self) -> Job:
        while True:
            try:
                [message] = await self._jobs.fetch(1, timeout=FETCH_S)
            except NothingThereError:
                continue
            return NatsJob(message)

    async def publish(self, event: Event) -> None:
        await self._client.publish(f"{self._namespace}.events", json.dumps(event).encode())

    async def listen(self, told: Callable[[Event], None]) -> None:
        async def received(message: Msg) -> None:
            told(json.loads(message.data))

        await self._client.subscribe(f"{self._namespace}.events", cb=received)
        await self._client.flush()  # It listens when this returns.
