"""Client libraries of databases, caches and brokers against real servers, on both drivers."""

from __future__ import annotations

import asyncio
import gc
import importlib.util
import socket
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from requirement import missing
from services.clients import CLIENTS, Client, Service
from services.ports import established, unread
from services.proxy import Proxy
from services.servers import SERVERS, Server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

OPERATIONS = 1000
IN_FLIGHT = 200
OPERATION_S = 10
RECONNECT_S = 20
IMPATIENCE_S = 3  # of a client that loses its server
LATE_S = 3  # a busy machine
TEST_S = 90

# What the libraries themselves warn about is theirs.
pytestmark = [pytest.mark.filterwarnings("ignore")]


@pytest.fixture(params=CLIENTS, ids=lambda client: client.name)
def client_class(request: pytest.FixtureRequest) -> type[Client]:
    """The adapter of a library that is installed and whose server answers."""
    client: type[Client] = request.param
    for module in client.modules:
        if importlib.util.find_spec(module) is None:
            missing(f"{module} is not installed: make test-services does that")
    service = client.service
    if service is not None:
        try:
            socket.create_connection((service.host, service.port), timeout=5).close()
        except OSError as error:
            missing(
                f"{service.name} does not answer on {service.host}:{service.port} ({error}): "
                f"start it, or say where it is with {service.variables}"
            )
    return client


@pytest.fixture
def of_a_server(client_class: type[Client]) -> type[Client]:
    if client_class.service is None:
        pytest.skip(f"{client_class.name} has no server: its database is a file")
    return client_class


@pytest.fixture(scope="module")
def servers() -> Iterator[dict[Service, Server]]:
    """The servers of the tests' own."""
    ours: dict[Service, Server] = {}
    yield ours
    for server in ours.values():
        server.remove()


@pytest.fixture
def server(of_a_server: type[Client], servers: dict[Service, Server]) -> Server:
    """One of our own for this client, up whatever the test before did to it."""
    service = of_a_server.service
    assert service is not None
    if service not in servers:
        servers[service] = SERVERS[service]()
    server = servers[service]
    if not server.is_up():
        server.kill()
        server.start()
    return server


async def settled(before: set[asyncio.Task[Any]]) -> None:
    """Returns when no task is left but those of before; fails if that does not come."""
    deadline = time.monotonic() + OPERATION_S
    while left := asyncio.all_tasks() - before:
        assert time.monotonic() < deadline, f"tasks were left: {left}"
        await asyncio.wait(left, timeout=0.1)


async def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + OPERATION_S
    while not condition():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.01)


def test_a_thousand_concurrent_operations(
    run: Callable[..., Any], client_class: type[Client], tmp_path: Path
) -> None:
    async def main() -> None:
        before = asyncio.all_tasks()
        async with client_class(client_class.service, tmp_path).open() as client:
            answers = await asyncio.gather(*(client.ask(n) for n in range(OPERATIONS)))
        assert answers == list(range(OPERATIONS))
        await settled(before)

    run(main(), timeout=TEST_S)


def test_transaction_or_acknowledgement(
    run: Callable[..., Any], client_class: type[Client], tmp_path: Path
) -> None:
    async def main() -> None:
        before = asyncio.all_tasks()
        async with client_class(client_class.service, tmp_path).open() as client:
            assert await client.promise() == [1]
        await settled(before)

    run(main(), timeout=TEST_S)


def test_over_tls(
    run: Callable[..., Any], of_a_server: type[Client], server: Server, tmp_path: Path
) -> None:
    async def main() -> None:
        before = asyncio.all_tasks()
        async with of_a_server(server.address, tmp_path, server.ca).open() as client:
            assert await client.promise() == [1]
            answers = await asyncio.gather(*(client.ask(n) for n in range(IN_FLIGHT)))
            assert answers == list(range(IN_FLIGHT))
        await settled(before)
        # TLS ends with an answer of the server's.
        await until(lambda: established(server.port) == 0, "connections were left")

    run(main(), timeout=TEST_S)


async def ask(client: Client, number: int) -> int:
    async with asyncio.timeout(OPERATION_S):
        return await client.ask(number)


async def answered(client: Client) -> None:
    while True:
        try:
            await client.reconnect()
            assert await ask(client, 7) == 7
            return
        except Exception:  # as long as the server is on its way back
            await asyncio.sleep(0.05)


def test_connections_that_are_reset(
    run: Callable[..., Any], of_a_server: type[Client], tmp_path: Path
) -> None:
    service = of_a_server.service
    assert service is not None

    async def main() -> None:
        before = asyncio.all_tasks()
        with Proxy((service.host, service.port)) as proxy:
            at = replace(service, host="127.0.0.1", port=proxy.port)
            async with of_a_server(at, tmp_path, patience_s=IMPATIENCE_S).open() as client:
                assert await ask(client, 1) == 1
                proxy.hold()
                asked = [asyncio.create_task(ask(client, n)) for n in range(IN_FLIGHT)]
                await asyncio.to_thread(proxy.wait_held)
                proxy.cut()
                results = await asyncio.gather(*asked, return_exceptions=True)
                failed = [r for r in results if isinstance(r, Exception)]
                assert failed, "the server was lost and nobody was told"
                assert all(r == n or isinstance(r, Exception) for n, r in enumerate(results)), (
                    results
                )
                proxy.restore()
                async with asyncio.timeout(RECONNECT_S):
                    await answered(client)
                again = await asyncio.gather(*(ask(client, n) for n in range(IN_FLIGHT)))
                assert again == list(range(IN_FLIGHT))
            await settled(before)
        del failed, results, asked  # with the frames in their tracebacks
        gc.collect()

    run(main(), timeout=TEST_S)


def test_server_restarted_under_operations_in_flight(
    run: Callable[..., Any], of_a_server: type[Client], server: Server, tmp_path: Path
) -> None:
    """Every caller is told in its time, the client finds the new server, nothing is left."""
    at = server.address

    async def timed(client: Client, number: int) -> tuple[int | Exception, float]:
        asked = time.monotonic()
        try:
            answer: int | Exception = await ask(client, number)
        except Exception as error:
            answer = error.with_traceback(None)  # which would keep what the client has
        return answer, time.monotonic() - asked

    async def main() -> None:
        before = asyncio.all_tasks()
        adapter = of_a_server(at, tmp_path, server.ca, IMPATIENCE_S)
        async with adapter.open() as client:
            assert await ask(client, 1) == 1
            server.freeze()
            asked = [asyncio.create_task(timed(client, n)) for n in range(IN_FLIGHT)]
            await until(lambda: unread(at.port) > 0, "nothing reached the server")
            assert not any(task.done() for task in asked)
            await asyncio.to_thread(server.kill)
            start = asyncio.create_task(asyncio.to_thread(server.start))
            results = await asyncio.gather(*asked)
            for number, (answer, seconds) in enumerate(results):
                assert answer == number or isinstance(answer, Exception)
                assert seconds < OPERATION_S + LATE_S, answer
            await start
            async with asyncio.timeout(RECONNECT_S):
                await answered(client)
            again = await asyncio.gather(*(ask(client, n) for n in range(IN_FLIGHT)))
            assert again == list(range(IN_FLIGHT))
            assert established(at.port) > 0
        await settled(before)
        gc.collect()
        await until(lambda: established(at.port) == 0, "connections were left")

    run(main(), timeout=TEST_S)
