"""A conversation: both ends of a connection send, receive, dawdle, and end it well or badly."""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from soak.pattern import Pattern
from soak.scene import KEY_SIZE, EndedEarly, Provoked, Wrong

if TYPE_CHECKING:
    from collections.abc import Iterator

    from soak.channels import Channel
    from soak.scene import Scene

CHUNK_MAX = 150_000  # bytes of a write
NAPS_MAX = 30  # in one conversation
ENDS = ("abort", "reset", "close", "provoke")
# What a connection that somebody breaks may raise at either end.
BROKEN = (OSError, EOFError, Provoked, ssl.SSLError)


@dataclass
class Plan:
    """What the two ends have agreed upon. Key and totals are those of client and server."""

    keys: tuple[int, int]
    totals: tuple[int, int]
    violence: tuple[str, int, int] | None  # how, by whom (0: the client), after how many bytes
    half_close: bool
    dawdling: tuple[float, float]  # share of receives after which an end takes a nap
    sendfile_by: int  # by both at once would wait for ever: asyncio stops reading meanwhile


def new_plan(scene: Scene, half_close: bool = True) -> Plan:
    keys = (scene.tools.new_key(), scene.tools.new_key())
    most = 1 << scene.random.choice((10, 14, 17, 20))
    # TLS: who closes must have read what the other sent, session tickets included.
    totals = (scene.size(most), max(1, scene.size(most)))
    violence = None
    if scene.chance(0.3):
        who = scene.random.randrange(2)
        violence = (scene.random.choice(ENDS), who, scene.random.randint(0, totals[who]))
    return Plan(
        keys,
        totals,
        violence,
        half_close and scene.chance(0.5),
        (scene.random.choice((0, 0, 0.1, 0.5)), scene.random.choice((0, 0, 0.1, 0.5))),
        scene.random.choice((0, 1, -1, -1, -1, -1, -1, -1)),
    )


def key_bytes(key: int) -> bytes:
    return key.to_bytes(KEY_SIZE, "big")


def relevant(group: BaseException) -> Iterator[BaseException]:
    """The exceptions inside exception groups."""
    if isinstance(group, BaseExceptionGroup):
        for exc in group.exceptions:
            yield from relevant(exc)
    else:
        yield group


async def speak(scene: Scene, channel: Channel, plan: Plan, me: int, header: bytes) -> bool:
    """Send our stream. False: it ended badly, as was planned."""
    pattern = Pattern(plan.keys[me])
    total = plan.totals[me]
    how, who, until = plan.violence or ("", -1, 0)
    end = min(total, until) if who == me else total
    at = 0
    if header:
        await channel.send([header])
    while at < end:
        if plan.sendfile_by == me and channel.can_send_files and scene.chance(0.3):
            at += await send_part_of_file(scene, channel, pattern, at, end)
            continue
        pieces = []
        for _ in range(scene.random.choice((1, 1, 1, 2, 5))):
            n = min(end - at, max(1, scene.size(CHUNK_MAX)))
            pieces.append(pattern.piece(at, n))
            at += n
        await channel.send(pieces)
        if scene.chance(0.3):
            await scene.nap()
    if who == me:
        if how == "abort":
            channel.abort()
        elif how == "reset":
            channel.reset()
        elif how == "provoke":
            channel.provoke()
        else:
            await channel.hang_up()
        return False
    if plan.half_close and channel.can_half_close:
        await channel.send_eof()
    return True


async def send_part_of_file(
    scene: Scene, channel: Channel, pattern: Pattern, at: int, end: int
) -> int:
    """Send a part of the stream from a file that has other things before and after it."""
    before, n, after = scene.size(10_000), min(end - at, 1 + scene.size(200_000)), scene.size(999)
    path = Path(scene.new_path("file"))
    path.write_bytes(bytes(before) + pattern.piece(at, n) + bytes(after))
    try:
        with path.open("rb") as file:
            sent = await channel.send_file(file, before, n)
    finally:
        path.unlink()
    if sent != n:
        raise Wrong(f"sendfile() says that it sent {sent} of {n} bytes")
    return n


async def listen(scene: Scene, channel: Channel, plan: Plan, me: int) -> None:
    """Check the other's stream, to its end."""
    pattern = Pattern(plan.keys[1 - me])
    total = plan.totals[1 - me]
    at = 0
    naps = NAPS_MAX
    # An end of the stream is to be seen where the other closes its side first.
    while at < total or (me == 1 and plan.violence is None):
        data = await channel.recv()
        if not data:
            break
        pattern.check(at, data)
        at += len(data)
        scene.tally.bytes_checked += len(data)
        if at > total:
            raise Wrong(f"stream {pattern.key}: {at} bytes received, {total} sent")
        if naps and scene.chance(plan.dawdling[me]):
            naps -= 1
            await scene.nap()
    if at < total and plan.violence is None:
        raise EndedEarly(f"stream {pattern.key} ended after {at} of {total} bytes")


async def converse(scene: Scene, channel: Channel, plan: Plan, me: int) -> None:
    """One end's part, from connection to close. Raises what the plan did not provide for."""
    header = key_bytes(plan.keys[0]) if me == 0 else b""
    with scene.tally.connection():
        try:
            async with asyncio.TaskGroup() as both:
                speaker = both.create_task(speak(scene, channel, plan, me, header))
                both.create_task(listen(scene, channel, plan, me))
            if speaker.result():
                await channel.close()
        except* BROKEN:
            if plan.violence is None:
                raise
        finally:
            channel.dispose()
