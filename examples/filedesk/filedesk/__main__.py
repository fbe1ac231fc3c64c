"""Run it: `python -m filedesk`, on ringloop by Uvicorn."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from dataclasses import fields, replace
from typing import TYPE_CHECKING

import uvicorn

import ringloop
from filedesk.api import Services, create_app
from filedesk.settings import Settings

if TYPE_CHECKING:
    import socket
    from types import FrameType

    from fastapi import FastAPI


class Server(uvicorn.Server):
    """Uvicorn that says where it listens, and ends the streams of events when it is to stop."""

    def __init__(self, app: FastAPI, host: str, port: int) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                host,
                port,
                loop="ringloop:new_event_loop",
                log_level="warning",
                timeout_graceful_shutdown=10,
            )
        )
        self._live = app.state.services.live
        self._loop: asyncio.AbstractEventLoop

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        if self.started:
            host, port = self.servers[0].sockets[0].getsockname()[:2]
            print(f"filedesk on http://{host}:{port}, {type(self._loop).__module__}", flush=True)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal came: stop."""
        self._loop.call_soon_threadsafe(self._live.stop)
        super().handle_exit(sig, frame)


async def work(settings: Settings) -> None:
    """Only examine files, until a signal comes."""
    stopping = asyncio.Event()
    for signum in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(signum, stopping.set)
    async with Services(settings).running(web=False):
        print("filedesk works", flush=True)
        await stopping.wait()


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="filedesk", description=__doc__)
    parser.add_argument("role", nargs="?", choices=("all", "web", "worker"), default="all")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    settings = Settings.from_environment()
    for field in fields(settings):
        value = getattr(settings, field.name)
        flag = f"--{field.name.replace('_', '-')}"
        parser.add_argument(flag, type=type(value), default=value, help=f"default: {value!r}")
    given = vars(parser.parse_args())
    role, host, port = given.pop("role"), given.pop("host"), given.pop("port")
    settings = replace(settings, **given)
    if role != "all" and not settings.broker:
        sys.exit(f"`{role}` alone needs a broker that others reach: --broker nats://HOST:4222")
    if role == "worker":
        ringloop.run(work(settings))
        return
    # Uvicorn shuts down, and then lets the signal have its own effect: to have been asked to stop
    # is no failure.
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, lambda *_: sys.exit(0))
    server = Server(create_app(settings, workers=role == "all"), host, port)
    server.run()
    if not server.started:
        sys.exit(3)


if __name__ == "__main__":
    main()
