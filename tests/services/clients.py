"""One adapter for each client library: what the tests ask of all of them, in its own words.

A library is imported when its adapter is opened, so that one can be missing.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import ssl
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

POOL = 10  # connections
PATIENCE_S = 60  # for an operation or a connection, also behind a thousand others


@dataclass(frozen=True)
class Service:
    """A server that the tests need; where it is comes from the environment."""

    name: str
    host: str
    port: int
    user: str = ""
    password: str = ""
    database: str = ""
    variables: str = ""


def _service(name: str, host: str, port: str, default_port: int, **others: str) -> Service:
    """`others` are pairs "VARIABLE:default" of the remaining fields."""
    given = {}
    for field, pair in others.items():
        variable, default = pair.split(":")
        given[field] = os.environ.get(variable, default)
    return Service(
        name,
        os.environ.get(host, "127.0.0.1"),
        int(os.environ.get(port, default_port)),
        variables=", ".join([host, port, *(pair.split(":")[0] for pair in others.values())]),
        **given,
    )


POSTGRESQL = _service(
    "PostgreSQL",
    "PGHOST",
    "PGPORT",
    5432,
    user="PGUSER:postgres",
    password="PGPASSWORD:",
    database="PGDATABASE:postgres",
)
MARIADB = _service(
    "MariaDB",
    "MYSQL_HOST",
    "MYSQL_TCP_PORT",
    3306,
    user="MYSQL_USER:root",
    password="MYSQL_PWD:",
    database="MYSQL_DATABASE:test",
)
REDIS = _service("Redis", "REDIS_HOST", "REDIS_PORT", 6379)
RABBITMQ = _service(
    "RabbitMQ",
    "RABBITMQ_HOST",
    "RABBITMQ_PORT",
    5672,
    user="RABBITMQ_USER:guest",
    password="RABBITMQ_PASSWORD:guest",
)
MOSQUITTO = _service("an MQTT broker", "MQTT_HOST", "MQTT_PORT", 1883)
NATS = _service("NATS with JetStream", "NATS_HOST", "NATS_PORT", 4222)


class Client:
    """What each adapter does. `open()` gives a connected one and closes it afterwards."""

    name: ClassVar[str]
    modules: ClassVar[tuple[str, ...]]
    service: ClassVar[Service | None] = None

    def __init__(
        self,
        at: Service | None,
        folder: Path,
        ca: Path | None = None,
        patience_s: float = PATIENCE_S,
    ) -> None:
        """`at` is the server, `folder` for files, `ca` whom to trust; without it no TLS."""
        if at is not None:
            self.at = at
        self.folder = folder
        self.ca = ca
        self.patience_s = patience_s
        self.tls = ca and ssl.create_default_context(cafile=ca)

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[Client]:
        await self.connect()
        try:
            yield self
        finally:
            await self.close()

    async def connect(self) -> None:
        raise NotImplementedError

    async def close(self) -> None:
        raise NotImplementedError

    async def reconnect(self) -> None:
        """For a library that does not by itself."""

    async def ask(self, number: int) -> int:
        """That number, by way of the server."""
        raise NotImplementedError

    async def promise(self) -> list[int]:
        """Commit (or have acknowledged) 1, roll back (or refuse) 2, and what is there then."""
        raise NotImplementedError


def _libpq_tls(ca: Path | None) -> dict[str, str]:
    """libpq has its own TLS."""
    if ca is None:
        return {"sslmode": "disable"}
    return {"sslmode": "verify-full", "sslrootcert": str(ca)}


class _Sql(Client):
    """The statements that all SQL databases share."""

    create = "CREATE TEMPORARY TABLE promised (n INTEGER)"
    insert = "INSERT INTO promised VALUES ({})"
    select = "SELECT n FROM promised"
    drop = "DROP TABLE promised"


class Asyncpg(_Sql):
    name = "asyncpg"
    modules = ("asyncpg",)
    service = POSTGRESQL

    async def connect(self) -> None:
        self.pool = await importlib.import_module("asyncpg").create_pool(
            host=self.at.host,
            port=self.at.port,
            user=self.at.user,
            password=self.at.password,
            database=self.at.database,
            ssl=self.tls or False,
            min_size=1,
            max_size=POOL,
        )

    async def close(self) -> None:
        await self.pool.close()

    async def ask(self, number: int) -> int:
        answer: int = await self.pool.fetchval("SELECT $1::int", number)
        return answer

    async def promise(self) -> list[int]:
        async with self.pool.acquire() as connection:
            await connection.execute(self.create)
            async with connection.transaction():
                await connection.execute(self.insert.format(1))
            with contextlib.suppress(ZeroDivisionError):
                async with connection.transaction():
                    await connection.execute(self.insert.format(2))
                    raise ZeroDivisionError
            found = [row["n"] for row in await connection.fetch(self.select)]
            await connection.execute(self.drop)
        return found


class Psycopg(_Sql):
    name = "psycopg"
    modules = ("psycopg", "psycopg_pool")
    service = POSTGRESQL

    async def connect(self) -> None:
        self.pool = importlib.import_module("psycopg_pool").AsyncConnectionPool(
            kwargs={
                "host": self.at.host,
                "port": self.at.port,
                "user": self.at.user,
                "password": self.at.password,
                "dbname": self.at.database,
                **_libpq_tls(self.ca),
            },
            min_size=1,
            max_size=POOL,
            max_waiting=0,
            timeout=self.patience_s,
            open=False,
        )
        await self.pool.open(wait=True)

    async def close(self) -> None:
        await self.pool.close()

    async def ask(self, number: int) -> int:
        async with self.pool.connection() as connection:
            cursor = await connection.execute("SELECT %s::int", (number,))
            (answer,) = await cursor.fetchone()
        return int(answer)

    async def promise(self) -> list[int]:
        async with self.pool.connection() as connection:
            await connection.execute(self.create)
            async with connection.transaction():
                await connection.execute(self.insert.format(1))
            with contextlib.suppress(ZeroDivisionError):
                async with connection.transaction():
                    await connection.execute(self.insert.format(2))
                    raise ZeroDivisionError
            cursor = await connection.execute(self.select)
            found = [n for (n,) in await cursor.fetchall()]
            await connection.execute(self.drop)
        return found


class _CursorPool(_Sql):
    """aiopg, aiomysql and asyncmy have one interface, that of aiopg."""

    pool: Any
    select_number = "SELECT %s"

    async def close(self) -> None:
        self.pool.close()
        await self.pool.wait_closed()

    async def ask(self, number: int) -> int:
        async with self.pool.acquire() as connection, connection.cursor() as cursor:
            await cursor.execute(self.select_number, (number,))
            (answer,) = await cursor.fetchone()
        return int(answer)

    async def promise(self) -> list[int]:
        async with self.pool.acquire() as connection, connection.cursor() as cursor:
            await cursor.execute(self.create)
            for number, end in ((1, "COMMIT"), (2, "ROLLBACK")):
                await cursor.execute("BEGIN")
                await cursor.execute(self.insert.format(number))
                await cursor.execute(end)
            await cursor.execute(self.select)
            found = [n for (n,) in await cursor.fetchall()]
            await cursor.execute(self.drop)
        return found


class Aiopg(_CursorPool):
    name = "aiopg"
    modules = ("aiopg",)
    service = POSTGRESQL

    async def connect(self) -> None:
        self.pool = await importlib.import_module("aiopg").create_pool(
            host=self.at.host,
            port=self.at.port,
            user=self.at.user,
            password=self.at.password,
            dbname=self.at.database,
            **_libpq_tls(self.ca),
            minsize=1,
            maxsize=POOL,
            timeout=self.patience_s,
        )

    async def close(self) -> None:
        await super().close()
        # libpq closes the fd of a lost connection itself. If a thread of the proxy gets that
        # number before aiopg looks whether it is closed, aiopg never removes its reader.
        loop = asyncio.get_running_loop()
        for fd in range(256):
            loop.remove_reader(fd)
            loop.remove_writer(fd)


class Aiomysql(_CursorPool):
    name = "aiomysql"
    modules = ("aiomysql",)
    service = MARIADB

    async def connect(self) -> None:
        self.pool = await importlib.import_module(self.modules[0]).create_pool(
            host=self.at.host,
            port=self.at.port,
            user=self.at.user,
            password=self.at.password,
            db=self.at.database,
            minsize=1,
            maxsize=POOL,
            connect_timeout=self.patience_s,
            ssl=self.tls,
        )


class Asyncmy(Aiomysql):
    name = "asyncmy"
    modules = ("asyncmy",)


class Aiosqlite(_Sql):
    name = "aiosqlite"
    modules = ("aiosqlite",)

    async def connect(self) -> None:
        self.database = await importlib.import_module("aiosqlite").connect(f"{self.folder}/db")

    async def close(self) -> None:
        await self.database.close()

    async def ask(self, number: int) -> int:
        async with self.database.execute("SELECT ?", (number,)) as cursor:
            (answer,) = await cursor.fetchone()
        return int(answer)

    async def promise(self) -> list[int]:
        await self.database.execute(self.create)
        await self.database.execute(self.insert.format(1))
        await self.database.commit()
        await self.database.execute(self.insert.format(2))
        await self.database.rollback()
        async with self.database.execute(self.select) as cursor:
            return [n for (n,) in await cursor.fetchall()]


class _SqlAlchemy(_Sql):
    scheme: ClassVar[str]
    number = "SELECT CAST(:n AS INTEGER)"

    def url(self) -> str:
        at = self.at
        return f"{self.scheme}://{at.user}:{at.password}@{at.host}:{at.port}/{at.database}"

    async def connect(self) -> None:
        self.text = importlib.import_module("sqlalchemy").text
        create = importlib.import_module("sqlalchemy.ext.asyncio").create_async_engine
        self.engine = create(
            self.url(),
            pool_size=POOL,
            max_overflow=0,
            pool_timeout=self.patience_s,
            connect_args={"ssl": self.tls} if self.tls else {},
        )
        async with self.engine.connect():
            pass

    async def close(self) -> None:
        await self.engine.dispose()

    async def ask(self, number: int) -> int:
        async with self.engine.connect() as connection:
            answer = await connection.execute(self.text(self.number), {"n": number})
            return int(answer.scalar_one())

    async def promise(self) -> list[int]:
        async with self.engine.connect() as connection:
            await connection.execute(self.text(self.create))
            await connection.commit()
            async with connection.begin():
                await connection.execute(self.text(self.insert.format(1)))
            async with connection.begin() as transaction:
                await connection.execute(self.text(self.insert.format(2)))
                await transaction.rollback()
            found = list((await connection.execute(self.text(self.select))).scalars())
            await connection.execute(self.text(self.drop))
        return found


class SqlAlchemyAsyncpg(_SqlAlchemy):
    name = "SQLAlchemy-asyncpg"
    modules = ("sqlalchemy", "greenlet", "asyncpg")
    service = POSTGRESQL
    scheme = "postgresql+asyncpg"


class SqlAlchemyAiomysql(_SqlAlchemy):
    name = "SQLAlchemy-aiomysql"
    modules = ("sqlalchemy", "greenlet", "aiomysql")
    service = MARIADB
    scheme = "mysql+aiomysql"
    number = "SELECT CAST(:n AS SIGNED)"


class SqlAlchemyAiosqlite(_SqlAlchemy):
    name = "SQLAlchemy-aiosqlite"
    modules = ("sqlalchemy", "greenlet", "aiosqlite")

    def url(self) -> str:
        return f"sqlite+aiosqlite:///{self.folder}/db"


class Redis(Client):
    name = "redis-py"
    modules = ("redis",)
    service = REDIS

    async def connect(self) -> None:
        redis = importlib.import_module("redis.asyncio")
        tls = {"connection_class": redis.SSLConnection, "ssl_ca_certs": str(self.ca)}
        pool = redis.BlockingConnectionPool(
            host=self.at.host,
            port=self.at.port,
            max_connections=POOL,
            timeout=self.patience_s,
            **(tls if self.tls else {}),
        )
        self.redis = redis.Redis.from_pool(pool)
        await self.redis.ping()

    async def close(self) -> None:
        await self.redis.aclose()

    async def ask(self, number: int) -> int:
        return int(await self.redis.echo(str(number)))

    async def promise(self) -> list[int]:
        key, watched = f"ringloop-{uuid.uuid4()}", f"ringloop-{uuid.uuid4()}"
        async with self.redis.pipeline(transaction=True) as pipeline:
            await pipeline.rpush(key, 1).execute()
            await pipeline.watch(watched)
            await self.redis.set(watched, 1)
            pipeline.multi()
            with contextlib.suppress(importlib.import_module("redis").WatchError):
                await pipeline.rpush(key, 2).execute()
            found, _ = await pipeline.lrange(key, 0, -1).delete(key, watched).execute()
        return [int(n) for n in found]


class AioPika(Client):
    name = "aio-pika"
    modules = ("aio_pika",)
    service = RABBITMQ

    async def connect(self) -> None:
        self.aio_pika = importlib.import_module("aio_pika")
        self.connection = await self.aio_pika.connect_robust(
            host=self.at.host,
            port=self.at.port,
            login=self.at.user,
            password=self.at.password,
            ssl=self.tls is not None,
            ssl_context=self.tls,
            reconnect_interval=0.2,
        )
        self.channel = await self.connection.channel(publisher_confirms=True)
        self.queue = await self.channel.declare_queue(exclusive=True, auto_delete=True)

    async def close(self) -> None:
        await self.connection.close()

    async def ask(self, number: int) -> int:
        """The broker confirms."""
        await self._publish(number)
        return number

    async def _publish(self, number: int) -> None:
        message = self.aio_pika.Message(str(number).encode())
        await self.channel.default_exchange.publish(message, routing_key=self.queue.name)

    async def promise(self) -> list[int]:
        found = []
        await self._publish(1)
        await self._publish(2)
        for _ in range(2):
            message = await self.queue.get()
            number = int(message.body)
            await (message.ack() if number == 1 else message.reject(requeue=False))
            if number == 1:
                found.append(number)
        assert await self.queue.get(fail=False) is None
        return found


class Aiomqtt(Client):
    name = "aiomqtt"
    modules = ("aiomqtt",)
    service = MOSQUITTO

    async def connect(self) -> None:
        aiomqtt = importlib.import_module("aiomqtt")
        self.topic = f"ringloop/{uuid.uuid4()}"
        self.client = aiomqtt.Client(
            self.at.host,
            self.at.port,
            timeout=self.patience_s,
            tls_context=self.tls,
            max_queued_outgoing_messages=0,
            max_inflight_messages=1000,
        )
        await self.client.__aenter__()

    async def close(self) -> None:
        await self.client.__aexit__(None, None, None)

    async def reconnect(self) -> None:
        await self.close_lost()
        await self.connect()

    async def close_lost(self) -> None:
        with contextlib.suppress(importlib.import_module("aiomqtt").MqttError):
            await self.client.__aexit__(None, None, None)

    async def ask(self, number: int) -> int:
        """The broker acknowledges (QoS 1)."""
        await self.client.publish(self.topic, str(number), qos=1)
        return number

    async def promise(self) -> list[int]:
        await self.client.subscribe(self.topic, qos=2)
        await self.client.publish(self.topic, "1", qos=2)
        return [int((await anext(aiter(self.client.messages))).payload)]


class NatsPy(Client):
    name = "nats-py"
    modules = ("nats",)
    service = NATS

    async def connect(self) -> None:
        self.nats = await importlib.import_module("nats").connect(
            f"nats://{self.at.host}:{self.at.port}",
            tls=self.tls,
            reconnect_time_wait=0.2,
            error_cb=self._told,
        )
        self.jetstream = self.nats.jetstream()
        self.stream = f"ringloop-{uuid.uuid4()}"
        await self.reconnect()

    async def reconnect(self) -> None:
        """The connection comes back by itself; what the server had in memory does not."""
        storage = importlib.import_module("nats.js.api").StorageType.MEMORY
        await self.jetstream.add_stream(name=self.stream, subjects=[self.stream], storage=storage)

    async def _told(self, error: Exception) -> None:
        """What nats-py would log."""

    async def close(self) -> None:
        await self.jetstream.delete_stream(self.stream)
        await self.nats.close()

    async def ask(self, number: int) -> int:
        """JetStream acknowledges."""
        await self.jetstream.publish(self.stream, str(number).encode(), timeout=self.patience_s)
        return number

    async def promise(self) -> list[int]:
        found = []
        subscription = await self.jetstream.pull_subscribe(self.stream, durable="one")
        for number in (1, 2):
            await self.ask(number)
        for message in await subscription.fetch(2, timeout=self.patience_s):
            if message.data == b"1":
                await message.ack_sync()
                found.append(1)
            else:
                await message.term()
        await asyncio.sleep(0)
        await subscription.unsubscribe()
        return found


CLIENTS: tuple[type[Client], ...] = (
    Asyncpg,
    Psycopg,
    Aiopg,
    Aiomysql,
    Asyncmy,
    Aiosqlite,
    SqlAlchemyAsyncpg,
    SqlAlchemyAiomysql,
    SqlAlchemyAiosqlite,
    Redis,
    AioPika,
    Aiomqtt,
    NatsPy,
)
