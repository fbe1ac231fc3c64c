"""Web frameworks on servers on ringloop, with many clients and through their end."""

from __future__ import annotations

import asyncio
import importlib.util
import itertools
import re
import resource
import signal
import time
from typing import TYPE_CHECKING, Any

import pytest

from certificates import Authority
from requirement import missing
from services.serving import SERVERS, Serving

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from pathlib import Path

    import ringloop

FRAMEWORKS = {
    "starlette": ["starlette"],
    "fastapi": ["fastapi"],
    "django": ["django"],
    "flask": ["flask", "a2wsgi"],
    "quart": ["quart"],
    "sanic": ["sanic"],
}
OF_ASGI = ["Uvicorn", "Gunicorn", "Hypercorn", "Daphne", "Granian"]
OWN_SITES = {"aiohttp": "aiohttp_site", "Sanic": "sanic_site"}
WITHOUT_SOCKETS = {"django", "flask"}
# Pairs that do not fit on any loop, the stock one included.
NO_PAIRS = {
    ("flask", "Granian"): "a2wsgi takes receive() for a coroutine, and it is another awaitable",
    ("quart", "Daphne"): "Quart wants a WebSocket's scheme, which Daphne does not tell",
    ("sanic", "Daphne"): "Sanic starts with the lifespan protocol, which Daphne does not speak",
}
PAIRS = [pair for pair in itertools.product(FRAMEWORKS, OF_ASGI) if pair not in NO_PAIRS]
ON_RINGLOOP = re.compile("<EventLoop running=True")  # asyncio's is _UnixSelectorEventLoop
CLIENTS = 1000
FILES = CLIENTS + 500
REQUESTS = 50
TEST_S = 120
PATIENCE_S = 30

# What the libraries themselves warn about is theirs.
pytestmark = [pytest.mark.filterwarnings("ignore")]


def needs(*modules: str) -> None:
    for module in ("aiohttp", *modules):
        if importlib.util.find_spec(module) is None:
            missing(f"{module} is not installed: make test-services does that")


def served(server: str, site: str, driver: str, folder: Path, **options: Any) -> Serving:
    """That site, by a framework's own server in the place of the example's application."""
    first = {"aiohttp": "async def", "Sanic": "app ="}
    last = {"aiohttp": "web.run_app", "Sanic": "app.config"}
    edit: Callable[[str], str] = options.pop("edit", str)

    def of_the_site(text: str) -> str:
        if server in first:
            start, end = text.index(first[server]), text.index(last[server])
            text = f"{text[:start]}from app import app\n{text[end:]}"
        if server == "Sanic":
            start, end = text.index("@app.get"), text.index("if __name__")
            text = text[:start] + text[end:]
        return edit(text)

    return Serving(server, site, driver, folder, edit=of_the_site, **options)


async def until(condition: Callable[[], Awaitable[bool]], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not await condition():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.02)


async def check(base: str, site: str) -> None:
    import aiohttp  # noqa: PLC0415 - it may be missing

    async with aiohttp.ClientSession(base, timeout=aiohttp.ClientTimeout(PATIENCE_S)) as session:

        async def text(path: str) -> str:
            async with session.get(path) as response:
                assert response.status == 200
                return await response.text()

        answers = await asyncio.gather(*(text("/hello") for _ in range(REQUESTS)))
        assert answers == ["hello"] * REQUESTS
        async with session.get("/hello") as response:
            loop = response.headers["x-loop"]
            assert ON_RINGLOOP.match(loop), loop
        body = bytes(range(256)) * 1000
        async with session.post("/echo", data=body) as response:
            assert await response.read() == body
        assert await text("/stream") == "0\n1\n2\n3\n4\n"
        async with session.get("/broken") as response:
            assert response.status == 500
        if site == "django":
            assert await text("/rows") == "0,1,2,4,5,6,7,8,9"
        if site not in WITHOUT_SOCKETS:
            async with session.ws_connect("/chat") as socket:
                for size in (1, 200, 70_000):
                    await socket.send_str("x" * size)
                    assert await socket.receive_str() == "x" * size
        assert await text("/hello") == "hello"


@pytest.mark.parametrize(("site", "server"), PAIRS, ids=lambda name: name)
def test_framework(
    run: Callable[..., Any], driver: str, site: str, server: str, tmp_path: Path
) -> None:
    needs(*SERVERS[server], *FRAMEWORKS[site])
    with Serving(server, f"{site}_site", driver, tmp_path) as serving:
        serving.get("/hello")
        run(check(f"http://127.0.0.1:{serving.port}", site), timeout=TEST_S)
        if site == "starlette":
            # Not all end at any time: Daphne does not wait for a2wsgi's threads, nor do
            # these notice, on any loop.
            assert serving.terminate() in (0, -signal.SIGTERM), serving.said()


@pytest.mark.parametrize(
    ("site", "server"),
    [("aiohttp", "aiohttp"), ("aiohttp", "Gunicorn"), ("sanic", "Sanic")],
)
def test_framework_with_a_server_of_its_own(
    run: Callable[..., Any], driver: str, site: str, server: str, tmp_path: Path
) -> None:
    needs(*SERVERS[server], site)

    def of_the_framework(text: str) -> str:
        return text.replace("UvicornWorker", "AiohttpWorker")

    with served(server, f"{site}_site", driver, tmp_path, edit=of_the_framework) as serving:
        serving.get("/hello")
        run(check(f"http://127.0.0.1:{serving.port}", site), timeout=TEST_S)
        assert serving.terminate() in (0, -signal.SIGTERM), serving.said()


@pytest.mark.parametrize("server", ["aiohttp", "Sanic"])
def test_the_examples_with_an_application(driver: str, server: str, tmp_path: Path) -> None:
    """The examples with an application of their own, as they stand."""
    needs(*SERVERS[server])
    with Serving(server, None, driver, tmp_path) as serving:
        loop, _ = serving.get()
        assert ON_RINGLOOP.match(loop), loop
        assert serving.terminate() in (0, -signal.SIGTERM), serving.said()


def test_uvicorn_with_several_processes(driver: str, tmp_path: Path) -> None:
    needs(*SERVERS["Uvicorn"], "starlette")
    arguments = ("--workers", "2")
    with Serving("Uvicorn", "starlette_site", driver, tmp_path, arguments=arguments) as serving:
        _, headers = serving.get("/hello")
        assert ON_RINGLOOP.match(headers["x-loop"]), headers["x-loop"]
        assert serving.terminate() in (0, -signal.SIGTERM), serving.said()


@pytest.mark.parametrize("how", ["Uvicorn, started by the program", "Uvicorn, unchanged"])
def test_uvicorn_without_its_command(driver: str, how: str, tmp_path: Path) -> None:
    needs(*SERVERS["Uvicorn"], "starlette")
    with Serving(how, "starlette_site", driver, tmp_path) as serving:
        _, headers = serving.get("/hello")
        assert ON_RINGLOOP.match(headers["x-loop"]), headers["x-loop"]
        assert serving.terminate() in (0, -signal.SIGTERM), serving.said()


def test_a_script_that_leaves_the_loop_to_uvicorn(driver: str, tmp_path: Path) -> None:
    needs(*SERVERS["Uvicorn"], "starlette")

    def without_loop(text: str) -> str:
        assert ', loop="ringloop:new_event_loop"' in text
        return text.replace(', loop="ringloop:new_event_loop"', "")

    serving = Serving(
        "Uvicorn, started by the program",
        "starlette_site",
        driver,
        tmp_path,
        edit=without_loop,
    )
    serving.command = ["ringloop", "run", "serve.py"]
    with serving:
        _, headers = serving.get("/hello")
        assert ON_RINGLOOP.match(headers["x-loop"]), headers["x-loop"]
        assert serving.terminate() in (0, -signal.SIGTERM), serving.said()


# -- a thousand clients --------------------------------------------------------------


@pytest.fixture
def many_files() -> Iterator[None]:
    """The server inherits it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < FILES:
        missing(f"this needs {FILES} open files, and the limit is {hard}: ulimit -Hn {FILES}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, FILES), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("kind", ["websockets", "events"])
@pytest.mark.parametrize("server", ["Uvicorn", "aiohttp"])
@pytest.mark.usefixtures("many_files")
def test_a_thousand_clients_listen_at_once(
    run: Callable[..., Any],
    loop: ringloop.EventLoop,
    driver: str,
    server: str,
    kind: str,
    tmp_path: Path,
) -> None:
    needs(*SERVERS[server], "starlette")
    import aiohttp  # noqa: PLC0415 - it may be missing

    async def by_socket(session: aiohttp.ClientSession) -> list[str]:
        async with session.ws_connect("/listen") as socket:
            return [message.data async for message in socket]

    async def by_events(session: aiohttp.ClientSession) -> list[str]:
        async with session.get("/events") as response:
            assert response.content_type == "text/event-stream"
            lines = [line.decode().strip() async for line in response.content]
        return [line.removeprefix("data: ") for line in lines if line]

    listen = by_socket if kind == "websockets" else by_events
    heard = ["welcome", *(f"message {number}" for number in range(5))]

    async def main(serving: Serving) -> None:
        at_rest = loop._live_operations()

        async def nothing_in_flight() -> bool:
            return loop._live_operations() <= at_rest

        base = f"http://127.0.0.1:{serving.port}"
        connector = aiohttp.TCPConnector(limit=0)
        timeout = aiohttp.ClientTimeout(TEST_S)
        async with aiohttp.ClientSession(base, connector=connector, timeout=timeout) as session:

            async def listening(number: int) -> bool:
                async with session.get("/state") as response:
                    return await response.text() == f"{number} listen, 0 wait"

            clients = [asyncio.create_task(listen(session)) for _ in range(CLIENTS)]
            await until(lambda: listening(CLIENTS), "they were not all there at once")
            assert not any(client.done() for client in clients)
            for text in (*heard[1:], "end"):
                async with session.post("/publish", data=text) as response:
                    assert response.status == 200
            assert await asyncio.gather(*clients) == [heard] * CLIENTS
            await until(lambda: listening(0), "the server did not see that they left")
        # aiohttp does not wait for its connections to be closed.
        await until(nothing_in_flight, "connections were left")

    with served(server, OWN_SITES.get(server, "starlette_site"), driver, tmp_path) as serving:
        serving.get("/hello")
        run(main(serving), timeout=TEST_S)
        assert serving.terminate() in (0, -signal.SIGTERM), serving.said()


# -- the end -------------------------------------------------------------------------


async def wait_at(serving: Serving, base: str) -> list[asyncio.Task[str]]:
    """Requests that the server has and does not answer until it is released."""
    import aiohttp  # noqa: PLC0415 - it may be missing

    async def get(path: str) -> str:
        timeout = aiohttp.ClientTimeout(PATIENCE_S)
        async with (
            aiohttp.ClientSession(base, timeout=timeout) as session,
            session.get(path) as response,
        ):
            return await response.text()

    async def all_wait() -> bool:
        return await get("/state") == f"0 listen, {REQUESTS} wait"

    waiting = [asyncio.create_task(get("/wait")) for _ in range(REQUESTS)]
    await until(all_wait, f"they did not all wait; {serving.said()}")
    return waiting


async def refused(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return True
    writer.close()
    return False


@pytest.mark.parametrize(
    "server", ["Uvicorn", "Gunicorn", "Hypercorn", "Granian", "aiohttp", "Sanic"]
)
def test_requests_in_flight_are_answered_before_the_end(
    run: Callable[..., Any], driver: str, server: str, tmp_path: Path
) -> None:
    """SIGTERM: no new connections, what was asked is answered, and the server ends."""
    needs(*SERVERS[server], "starlette")

    def with_grace(text: str) -> str:  # Hypercorn's is 3 s otherwise
        return text.replace("bind=[", f"graceful_timeout={PATIENCE_S}, bind=[")

    async def main(serving: Serving) -> None:
        waiting = await wait_at(serving, f"http://127.0.0.1:{serving.port}")
        serving.child.send_signal(signal.SIGTERM)
        await until(lambda: refused(serving.port), f"it went on to listen; {serving.said()}")
        assert serving.child.poll() is None
        assert not any(task.done() for task in waiting)
        (tmp_path / "release").touch()
        assert await asyncio.gather(*waiting) == ["waited"] * REQUESTS
        status = await asyncio.to_thread(serving.child.wait, PATIENCE_S)
        assert status in (0, -signal.SIGTERM), serving.said()

    site = OWN_SITES.get(server, "starlette_site")
    with served(server, site, driver, tmp_path, edit=with_grace) as serving:
        serving.get("/hello")
        run(main(serving), timeout=TEST_S)


def test_gunicorn_reloads_without_losing_requests(
    run: Callable[..., Any], driver: str, tmp_path: Path
) -> None:
    """SIGHUP: new workers with new code, while the old ones answer what they were asked."""
    needs(*SERVERS["Gunicorn"], "starlette")

    async def main(serving: Serving) -> None:
        waiting = await wait_at(serving, f"http://127.0.0.1:{serving.port}")
        (tmp_path / "app.py").write_text("from fastapi_site import app\n")
        serving.child.send_signal(signal.SIGHUP)

        async def is_new() -> bool:
            # The new code knows no /state.
            answer = await asyncio.to_thread(serving.status, "/state")
            return answer == 404

        await until(is_new, f"the old code went on; {serving.said()}")
        (tmp_path / "release").touch()
        assert await asyncio.gather(*waiting) == ["waited"] * REQUESTS

    with Serving("Gunicorn", "starlette_site", driver, tmp_path) as serving:
        serving.get("/hello")
        run(main(serving), timeout=TEST_S)
        assert serving.terminate() == 0, serving.said()


# -- TLS -----------------------------------------------------------------------------


@pytest.mark.parametrize("server", ["Uvicorn", "Gunicorn", "Hypercorn", "aiohttp", "Sanic"])
def test_over_tls(run: Callable[..., Any], driver: str, server: str, tmp_path: Path) -> None:
    needs(*SERVERS[server], "starlette")
    import aiohttp  # noqa: PLC0415 - it may be missing

    folder = tmp_path / "certificates"
    folder.mkdir()
    authority = Authority(folder)
    pem = str(authority.issue("127.0.0.1", "localhost"))

    def edit(text: str) -> str:
        context = (
            "import ssl\n"
            "tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)\n"
            f"tls.load_cert_chain({pem!r})\n"
        )
        return {
            "Hypercorn": text.replace("bind=[", f"certfile={pem!r}, keyfile={pem!r}, bind=["),
            "aiohttp": context + text.replace("host=", "ssl_context=tls, host="),
            "Sanic": context + text.replace("host=", "ssl=tls, host="),
        }.get(server, text)

    arguments = {
        "Uvicorn": ("--ssl-certfile", pem, "--ssl-keyfile", pem),
        "Gunicorn": ("--certfile", pem, "--keyfile", pem),
    }.get(server, ())

    async def main(serving: Serving) -> None:
        connector = aiohttp.TCPConnector(ssl=authority.client())
        base = f"https://127.0.0.1:{serving.port}"
        async with aiohttp.ClientSession(base, connector=connector) as session:

            async def answers() -> bool:
                try:
                    async with session.get("/hello") as response:
                        return ON_RINGLOOP.match(response.headers["x-loop"]) is not None
                except aiohttp.ClientConnectorError:
                    assert serving.child.poll() is None, serving.said()
                    return False

            await until(answers, f"no answer; {serving.said()}")
            body = bytes(range(256)) * 4000
            async with session.post("/echo", data=body) as response:
                assert await response.read() == body
            async with session.ws_connect("/chat") as socket:
                await socket.send_str("x" * 70_000)
                assert await socket.receive_str() == "x" * 70_000

    site = OWN_SITES.get(server, "starlette_site")
    with served(server, site, driver, tmp_path, edit=edit, arguments=arguments) as serving:
        run(main(serving), timeout=TEST_S)
        assert serving.terminate() in (0, -signal.SIGTERM), serving.said()
