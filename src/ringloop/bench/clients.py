"""Clients of real services on any asyncio event loop: what the benchmark measures.

    python -P on_loop.py --loop uvloop clients.py --kind redis --tasks 64

Each task does one operation after another and looks at every answer. What counts is the
CPU time of this process; the service may use another core. It prints one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib
import json
import os
import time
import uuid
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    Operation = Callable[[], Awaitable[bool]]
    """Whether the answer was right."""

OPERATION_TIMEOUT_S = 5.0


@contextlib.asynccontextmanager
async def redis(host: str, port: int, tasks: int) -> AsyncIterator[list[Operation]]:
    """SET and GET in turn, each task on a key of its own; the client has a connection a task."""
    key = f"ringloop-bench-{uuid.uuid4()}"
    async with importlib.import_module("redis.asyncio").Redis(host=host, port=port) as client:

        def operation(number: int) -> Operation:
            name, value = f"{key}-{number}", b""

            async def run() -> bool:
                nonlocal value
                if value:
                    expected, value = value, b""
                    return bool(await client.get(name) == expected)
                value = os.urandom(16)
                return bool(await client.set(name, value, ex=60))

            return run

        yield [operation(number) for number in range(tasks)]
        await client.delete(*[f"{key}-{number}" for number in range(tasks)])


@contextlib.asynccontextmanager
async def aiomysql(host: str, port: int, tasks: int) -> AsyncIterator[list[Operation]]:
    """A connection a task."""
    connect = importlib.import_module("aiomysql").connect
    connections = [
        await connect(
            host=host,
            port=port,
            user=os.environ.get("MYSQL_USER", "root"),
            password=os.environ.get("MYSQL_PWD", ""),
            db=os.environ.get("MYSQL_DATABASE", "test"),
        )
        for _ in range(tasks)
    ]

    def operation(number: int) -> Operation:
        async def run() -> bool:
            async with connections[number].cursor() as cursor:
                await cursor.execute("SELECT 1")
                return bool(await cursor.fetchone() == (1,))

        return run

    yield [operation(number) for number in range(tasks)]
    for connection in connections:
        connection.close()


@contextlib.asynccontextmanager
async def asyncpg(host: str, port: int, tasks: int) -> AsyncIterator[list[Operation]]:
    """A connection a task."""
    connect = importlib.import_module("asyncpg").connect
    connections = [
        await connect(
            host=host,
            port=port,
            user=os.environ.get("PGUSER", "postgres"),
            password=os.environ.get("PGPASSWORD"),
            database=os.environ.get("PGDATABASE", "postgres"),
        )
        for _ in range(tasks)
    ]

    def operation(number: int) -> Operation:
        async def run() -> bool:
            return bool(await connections[number].fetchval("SELECT 1") == 1)

        return run

    yield [operation(number) for number in range(tasks)]
    for connection in connections:
        await connection.close()


@contextlib.asynccontextmanager
async def nats(host: str, port: int, tasks: int) -> AsyncIterator[list[Operation]]:
    """One connection asks and another one answers, both of this process."""
    connect = importlib.import_module("nats").connect
    subject = f"ringloop.bench.{uuid.uuid4()}"
    asking, answering = [await connect(f"nats://{host}:{port}") for _ in range(2)]

    async def answer(message: object) -> None:
        await message.respond(message.data)  # type: ignore[attr-defined]

    await answering.subscribe(subject, cb=answer)
    await answering.flush()

    async def run() -> bool:
        data = os.urandom(16)
        reply = await asking.request(subject, data, timeout=OPERATION_TIMEOUT_S)
        return bool(reply.data == data)

    yield [run] * tasks
    await asking.close()
    await answering.close()


KINDS = {"redis": redis, "aiomysql": aiomysql, "asyncpg": asyncpg, "nats": nats}


async def measure(
    operations: list[Operation], warmup_s: float, duration_s: float
) -> dict[str, object]:
    finished, wrong, going = 0, False, True

    async def work(operation: Operation) -> None:
        nonlocal finished, wrong
        while going:
            if not await operation():
                wrong = True
            finished += 1

    working = asyncio.gather(*map(work, operations))
    await asyncio.sleep(warmup_s)
    count, start, cpu = finished, time.perf_counter(), time.process_time()
    await asyncio.sleep(duration_s)
    requests, seconds = finished - count, time.perf_counter() - start
    cpu_seconds = time.process_time() - cpu
    going = False
    await working
    return {
        "requests": requests,
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "wrong": wrong,
        "error": "wrong answers" if wrong else None if requests else "nothing was answered",
    }


async def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="clients.py")
    parser.add_argument("--kind", required=True, choices=KINDS)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--tasks", type=int, default=64)
    parser.add_argument("--warmup", type=float, default=0.3, help="seconds")
    parser.add_argument("--duration", type=float, default=1.0, help="seconds")
    options = parser.parse_args(arguments)
    async with KINDS[options.kind](options.host, options.port, options.tasks) as operations:
        print(json.dumps(await measure(operations, options.warmup, options.duration)))
