"""Several processes: the page in one, workers in others, PostgreSQL and a broker between them."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import subprocess
import uuid
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import aiohttp
import asyncpg  # type: ignore[import-untyped]
import nats
import pytest
import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from desk import Desk, content
from filedesk.redis_broker import RedisBroker
from prerequisite import missing

if TYPE_CHECKING:
    from collections.abc import Iterator

    from filedesk.broker import Event

POSTGRESQL = os.environ.get("FILEDESK_TEST_POSTGRESQL", "postgresql://postgres@127.0.0.1:5432")
BROKERS = {
    "nats": os.environ.get("FILEDESK_TEST_NATS", "nats://127.0.0.1:4222"),
    "redis": os.environ.get("FILEDESK_TEST_REDIS", "redis://127.0.0.1:6379"),
}
Start = Any


def need(url: str, variable: str) -> None:
    """Skip, or fail in CI, if nobody listens there."""
    place = urlsplit(url)
    try:
        socket.create_connection((place.hostname, place.port or 5432), timeout=3).close()
    except OSError as error:
        missing(f"nothing answers at {url} ({error}); start it, or set {variable}")


@pytest.fixture
def database() -> Iterator[str]:
    """An empty database."""
    need(POSTGRESQL, "FILEDESK_TEST_POSTGRESQL")
    name = f"filedesk_test_{uuid.uuid4().hex}"

    async def do(statement: str) -> None:
        connection = await asyncpg.connect(f"{POSTGRESQL}/postgres")
        try:
            await connection.execute(statement)
        finally:
            await connection.close()

    asyncio.run(do(f"CREATE DATABASE {name}"))
    yield f"{POSTGRESQL}/{name}"
    asyncio.run(do(f"DROP DATABASE {name} WITH (FORCE)"))


@pytest.fixture(params=BROKERS)
def broker(request: pytest.FixtureRequest) -> Iterator[tuple[str, str]]:
    """URL of a broker, and a namespace in it that is removed afterwards."""
    url = BROKERS[request.param]
    need(url, f"FILEDESK_TEST_{request.param.upper()}")
    namespace = f"filedesk-test-{uuid.uuid4().hex}"
    yield url, namespace

    async def clean() -> None:
        if request.param == "redis":
            async with redis.asyncio.Redis.from_url(url) as client:
                await client.delete(f"{namespace}:jobs")
        else:
            connection = await nats.connect(url)
            await connection.jetstream().delete_stream(namespace)
            await connection.close()

    asyncio.run(clean())


def test_workers_elsewhere(start: Start, database: str, broker: tuple[str, str], run: Any) -> None:
    url, namespace = broker
    shared = ("--database", database, "--broker", url, "--namespace", namespace)
    web = start("web", "--port", "0", *shared)
    workers = [start("worker", *shared) for _ in range(2)]

    async def main() -> None:
        async with aiohttp.ClientSession(web.url) as session:
            desk = Desk(session)
            stream = desk.events()
            assert (await anext(stream))[0] == "snapshot"
            names = {f"{n}": content(400_000, n) for n in range(8)}
            files = await asyncio.gather(*(desk.upload(*one) for one in names.items()))
            waiting = {file["id"] for file in files}
            examined = set()
            async with asyncio.timeout(30):
                async for _, data in stream:  # It is told here what happens there.
                    if data["state"] == "working":
                        examined.add(data["id"])
                    if data["state"] == "done":
                        waiting.discard(data["id"])
                    if not waiting:
                        break
            await stream.aclose()
            assert examined
            for file in files:
                assert (await desk.download(file["id"]))[1] == names[file["name"]]

    run(main())
    for process in [*workers, web]:
        status, errors, seconds = process.end(signal.SIGTERM)
        assert (status, errors) == (0, "")
        assert seconds < 8


async def uploaded(url: str, name: str) -> str:
    async with aiohttp.ClientSession(url) as session:
        file_id: str = (await Desk(session).upload(name, b"abc"))["id"]
        return file_id


async def state_in_the_end(url: str, file_id: str) -> str:
    async with aiohttp.ClientSession(url) as session:
        state: str = (await Desk(session).ended(file_id))["state"]
        return state


def test_a_job_that_was_lost_comes_at_the_next_start(
    start: Start, database: str, broker: tuple[str, str], run: Any
) -> None:
    """As when the process is killed between the database and the broker."""
    url, namespace = broker
    shared = ("--database", database, "--broker", url, "--namespace", namespace)
    web = start("web", "--port", "0", *shared)

    async def lose() -> None:
        if url.startswith("redis"):
            async with redis.asyncio.Redis.from_url(url) as client:
                assert await client.delete(f"{namespace}:jobs")
        else:
            connection = await nats.connect(url)
            assert await connection.jetstream().purge_stream(namespace)
            await connection.close()

    file_id = run(uploaded(web.url, "lost"))
    web.end(signal.SIGKILL)
    run(lose())
    web = start("web", "--port", "0", *shared)
    start("worker", *shared)
    assert run(state_in_the_end(web.url, file_id)) == "done"


def test_jobs_wait_until_a_worker_comes(
    start: Start, database: str, broker: tuple[str, str], run: Any
) -> None:
    url, namespace = broker
    shared = ("--database", database, "--broker", url, "--namespace", namespace)
    web = start("web", "--port", "0", *shared)

    file_id = run(uploaded(web.url, "waits"))
    start("worker", *shared)
    assert run(state_in_the_end(web.url, file_id)) == "done"


class RedisServer:
    """One of the test's own, to be away for a while."""

    def __init__(self) -> None:
        program = shutil.which("redis-server")
        if program is None:
            missing("there is no redis-server: apt install redis-server")
        with socket.create_server(("127.0.0.1", 0)) as sock:
            port = sock.getsockname()[1]
        self.url = f"redis://127.0.0.1:{port}"
        self._command = [str(program), "--bind", "127.0.0.1", "--port", str(port), "--save", ""]

    async def start(self) -> None:
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        async with redis.asyncio.Redis.from_url(self.url) as client:
            while True:
                with contextlib.suppress(RedisError):
                    await client.ping()
                    break
                assert self._process.poll() is None

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()


def test_events_go_on_when_redis_was_away(run: Any, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        server = RedisServer()
        try:
            await server.start()
            broker = RedisBroker(server.url, "filedesk-test")
            broker._redis.set_retry(Retry(NoBackoff(), 0))
            events: asyncio.Queue[Event] = asyncio.Queue()
            await broker.listen(events.put_nowait)
            await broker.publish({"n": 1})
            assert await events.get() == {"n": 1}
            server.kill()
            while not caplog.records:
                await asyncio.sleep(0.01)
            await server.start()
            while events.empty():
                with contextlib.suppress(RedisError):  # of a connection that is gone
                    await broker.publish({"n": 2})
                await asyncio.sleep(0.05)
            assert await events.get() == {"n": 2}
            await broker.close()
        finally:
            server.kill()

    run(main())
