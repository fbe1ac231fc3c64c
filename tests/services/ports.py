"""Ports for servers, and what the kernel says of the connections to them."""

from __future__ import annotations

import contextlib
import random
import socket
from pathlib import Path

# Below the range that connections get theirs from: while its server is away, none of our
# own may take the port, nor a client be connected to itself.
PORTS = range(20000, 32000)
ESTABLISHED = "01"


def free_port() -> int:
    while True:
        port = random.choice(PORTS)
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port


def connections(port: int) -> list[tuple[str, int]]:
    """The server's side of each connection to a port of 127.0.0.1: its state (as in
    /proc/net/tcp), and how many bytes came that the server has not read."""
    found = []
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, _, state, queues, *_ = line.split()
        if int(local.split(":")[1], 16) == port:
            found.append((state, int(queues.split(":")[1], 16)))
    return found


def established(port: int) -> int:
    return sum(state == ESTABLISHED for state, _ in connections(port))


def unread(port: int) -> int:
    """The bytes that wait for the server in established connections."""
    return sum(waiting for state, waiting in connections(port) if state == ESTABLISHED)
