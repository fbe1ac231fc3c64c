"""What all sites share: a stream, requests that wait, and members that listen."""

import asyncio
import contextlib
from pathlib import Path

RELEASE = Path("release")  # in the server's folder: made by the test

members = set()
waiting = 0


async def lines():
    for number in range(5):
        await asyncio.sleep(0)
        yield f"{number}\n".encode()


async def wait():
    """Until the test makes that file."""
    global waiting
    waiting += 1
    try:
        while not RELEASE.exists():
            await asyncio.sleep(0.01)
    finally:
        waiting -= 1


@contextlib.contextmanager
def member():
    queue = asyncio.Queue()
    members.add(queue)
    try:
        yield queue
    finally:
        members.discard(queue)


def publish(text):
    for queue in members:
        queue.put_nowait(text)


def state():
    return f"{len(members)} listen, {waiting} wait"
