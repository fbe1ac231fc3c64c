"""What is measured: a cell is a kind of program, a number of connections, a message size.

A new kind is an entry in `KINDS`, and the program it names: a server in `servers.py`, which
the load generator drives, or a client in `clients.py`, which drives a service.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Service:
    """A server that a client needs; where it is comes from the environment."""

    name: str
    host_variable: str
    port_variable: str
    default_port: int

    @property
    def address(self) -> tuple[str, int]:
        host = os.environ.get(self.host_variable, "127.0.0.1")
        return host, int(os.environ.get(self.port_variable, self.default_port))


@dataclass(frozen=True)
class Kind:
    title: str
    server: str = ""
    """Its name in `servers.py`; nothing for a client."""
    load: tuple[str, ...] = ()
    """Options of the load generator."""
    tls: bool = False
    in_c: bool = True
    """The C peers take part."""
    modules: tuple[str, ...] = ()
    """Packages that it needs."""
    service: Service | None = None
    """For a client: what it talks to. It has tasks instead of connections."""
    stdlib_streams: bool = False
    """asyncio's own streams, also on a ringloop."""


REDIS = Service("Redis", "REDIS_HOST", "REDIS_PORT", 6379)
MARIADB = Service("MariaDB", "MYSQL_HOST", "MYSQL_TCP_PORT", 3306)
POSTGRESQL = Service("PostgreSQL", "PGHOST", "PGPORT", 5432)
NATS = Service("NATS", "NATS_HOST", "NATS_PORT", 4222)

UDP = "udp"
KINDS = {
    "protocol": Kind("protocol", "protocol"),
    "streams": Kind("streams", "streams"),
    "stdlib_streams": Kind("asyncio's own streams", "streams", stdlib_streams=True),
    "readexactly": Kind("streams, readexactly", "readexactly"),
    "readline": Kind("streams, readline", "readline", ("--lines",)),
    "sock": Kind("sock_*", "sock"),
    "connect": Kind("connect per request", "protocol", ("--reconnect",)),
    UDP: Kind("UDP", "udp", ("--udp",)),
    "tls": Kind("protocol over TLS", "tls", tls=True, in_c=False),
    "tls_streams": Kind("streams over TLS, readexactly", "tls_streams", tls=True, in_c=False),
    "uvicorn": Kind(
        "uvicorn with httptools",
        "uvicorn",
        ("--http",),
        in_c=False,
        modules=("uvicorn", "httptools"),
    ),
    "redis": Kind("redis-py GET or SET", in_c=False, modules=("redis",), service=REDIS),
    "aiomysql": Kind("aiomysql SELECT 1", in_c=False, modules=("aiomysql",), service=MARIADB),
    "asyncpg": Kind("asyncpg SELECT 1", in_c=False, modules=("asyncpg",), service=POSTGRESQL),
    "nats": Kind("nats-py request, reply", in_c=False, modules=("nats",), service=NATS),
}

MAX_CONNECTIONS = 16384
MAX_TASKS = 1024
MAX_DATAGRAM_BYTES = 65507
MAX_MESSAGE_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True)
class Cell:
    name: str
    """Of its kind."""
    connections: int
    """Or tasks, of a client."""
    message_bytes: int = 0

    @classmethod
    def parse(cls, text: str) -> Cell:
        """From 'KIND:CONNECTIONSxBYTES' or 'KIND:TASKS'; ValueError says what is wrong."""
        match = re.fullmatch(r"(\w+):(\d+)(?:x(\d+))?", text)
        if not match or match[1] not in KINDS:
            raise ValueError(
                f"{text!r} is not a cell: write KIND:CONNECTIONSxBYTES, e.g. protocol:64x1024, "
                f"with a kind of {', '.join(KINDS)}"
            )
        cell = cls(match[1], int(match[2]), int(match[3] or 0))
        if cell.kind.service:
            if match[3] or not 1 <= cell.connections <= MAX_TASKS:
                raise ValueError(f"{text}: write {cell.name}:TASKS, with 1 to {MAX_TASKS} tasks")
            return cell
        if not 1 <= cell.connections <= MAX_CONNECTIONS:
            raise ValueError(f"{text}: connections go from 1 to {MAX_CONNECTIONS}")
        if not 1 <= cell.message_bytes <= MAX_MESSAGE_BYTES:
            raise ValueError(f"{text}: bytes go from 1 to {MAX_MESSAGE_BYTES}")
        if cell.name == UDP and cell.message_bytes > MAX_DATAGRAM_BYTES:
            raise ValueError(f"{text}: a datagram has at most {MAX_DATAGRAM_BYTES} bytes")
        return cell

    def __str__(self) -> str:
        size = "" if self.kind.service else f"x{self.message_bytes}"
        return f"{self.name}:{self.connections}{size}"

    @property
    def kind(self) -> Kind:
        return KINDS[self.name]

    @property
    def title(self) -> str:
        if self.kind.service:
            return self.label
        noun = "connection" if self.connections == 1 else "connections"
        return f"{self.kind.title}: {self.connections:,} {noun} x {self._size}"

    @property
    def label(self) -> str:
        """A short title."""
        what = "tasks" if self.kind.service else f"x {self._size}"
        return f"{self.kind.title}: {self.connections:,} {what}"

    @property
    def _size(self) -> str:
        size = self.message_bytes
        return f"{size // 1024} KiB" if size % 1024 == 0 else f"{size} B"


SHORT = [
    Cell("protocol", 1000, 256),
    Cell("protocol", 64, 1024),
    Cell("protocol", 64, 65536),
    Cell("protocol", 1, 1024),
    Cell("sock", 64, 1024),
    Cell("streams", 64, 1024),
    Cell(UDP, 64, 64),
    Cell("tls", 32, 1024),
    Cell("tls", 32, 65536),
]

FULL = (
    [
        Cell(kind, connections, message_bytes)
        for kind in ("protocol", "streams", "sock")
        for connections in (1, 64, 1000)
        for message_bytes in (256, 1024, 65536)
    ]
    + [Cell(UDP, connections, 64) for connections in (1, 64)]
    + [Cell(kind, 64, 1024) for kind in ("readexactly", "readline", "connect", "tls_streams")]
    + [Cell("tls", 32, 1024), Cell("tls", 32, 65536), Cell("uvicorn", 64, 12)]
    + [Cell(kind, 64) for kind in KINDS if KINDS[kind].service]
)

SMOKE = [Cell("protocol", 64, 1024), Cell("tls_streams", 8, 1024)]
