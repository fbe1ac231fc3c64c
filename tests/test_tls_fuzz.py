"""TLS under a peer that cuts, flips, drops, repeats and reorders what it sends.

Each case is a number, from which all of it follows. A transport of ours talks, without
sockets, to an SSL object; between the two sits the damage. Whatever happens, the
protocol gets a prefix of what was sent, in order; then the connection ends once, with an
error that TLS may have; and nothing is left.

RINGLOOP_FUZZ_CASES=100000 for more cases than the default.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import random
import ssl
import weakref
from typing import TYPE_CHECKING, Any

import pytest

import ringloop
from certificates import Authority
from ringloop._tls.transport import TLSTransport

if TYPE_CHECKING:
    from collections.abc import Callable

CASES = int(os.environ.get("RINGLOOP_FUZZ_CASES", "1000"))
VERSIONS = (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3)
RECORD_HEADER = 5


@pytest.fixture(scope="module")
def contexts(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Any, Any]]:
    """Pairs of a client's context and a server's, one for each version."""
    authority = Authority(tmp_path_factory.mktemp("tls"))
    certificate = authority.issue("localhost")
    pairs = []
    for version in VERSIONS:
        client, server = authority.client(), authority.server(certificate)
        for context in (client, server):
            context.minimum_version = context.maximum_version = version
        pairs.append((client, server))
    return pairs


class Lower(asyncio.Transport):
    """The transport below: what is written is kept, and sometimes there is no room."""

    def __init__(self, dice: random.Random) -> None:
        super().__init__()
        self.dice = dice
        self.sent = bytearray()
        self.tls: Any = None
        self.full = False
        self.reading = True
        self.ending: list[Exception | None] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.ending
        self.sent += data
        if not self.full and self.dice.random() < 0.05:
            self.full = True
            self.tls.pause_writing()

    def make_room(self) -> None:
        if self.full:
            self.full = False
            self.tls.resume_writing()

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def close(self) -> None:
        self.ending.append(None)

    def _force_close(self, exc: Exception | None) -> None:
        self.ending.append(exc)


class Sink(asyncio.Protocol):
    def __init__(self) -> None:
        self.data = bytearray()
        self.made = self.lost = 0
        self.error: BaseException | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.made += 1

    def data_received(self, data: bytes) -> None:
        assert self.made == 1
        assert not self.lost
        self.data += data

    def connection_lost(self, exc: BaseException | None) -> None:
        self.lost += 1
        self.error = exc


def records(stream: bytearray) -> list[bytearray]:
    """Cut a stream of whole records."""
    found = []
    while stream:
        n = RECORD_HEADER + int.from_bytes(stream[3:5], "big")
        found.append(stream[:n])
        del stream[:n]
    return found


def damage(dice: random.Random, pieces: list[bytearray]) -> None:
    if not pieces:
        return
    i = dice.randrange(len(pieces))
    kind = dice.randrange(6)
    if kind == 0 and pieces[i]:
        at = dice.randrange(len(pieces[i]))
        pieces[i][at] ^= 1 << dice.randrange(8)
    elif kind == 1:
        del pieces[i][dice.randrange(len(pieces[i]) + 1) :]
    elif kind == 2:
        pieces.insert(i, pieces[i][:])
    elif kind == 3:
        pieces.insert(dice.randrange(len(pieces)), pieces.pop(i))
    elif kind == 4:
        del pieces[i]
    else:
        at = dice.randrange(len(pieces[i]) + 1)
        pieces[i][at:at] = dice.randbytes(dice.randrange(1, 40))


class Case:
    def __init__(
        self, loop: ringloop.EventLoop, contexts: list[tuple[Any, Any]], seed: int
    ) -> None:
        self.dice = dice = random.Random(seed)
        client, server = dice.choice(contexts)
        self.we_serve = dice.random() < 0.5
        self.harmless = dice.random() < 0.2
        self.hurt_at = dice.randrange(30)
        self.lower = Lower(dice)
        self.sink = Sink()
        self.waiter = loop.create_future()
        self.waiter.add_done_callback(lambda waiter: waiter.exception())
        ours, theirs = (server, client) if self.we_serve else (client, server)
        self.tls = TLSTransport(
            loop,
            self.sink,
            ours,
            self.waiter,
            self.we_serve,
            None if self.we_serve else "localhost",
        )
        self.lower.tls = self.tls
        self.incoming, self.outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.peer = theirs.wrap_bio(
            self.incoming,
            self.outgoing,
            server_side=not self.we_serve,
            server_hostname="localhost" if self.we_serve else None,
        )
        self.shaken = False
        self.peer_failed = False
        self.sent = bytearray()  # by the peer
        self.written = bytearray()  # by us
        self.read = bytearray()  # by the peer

    def peer_step(self) -> None:
        try:
            if not self.shaken:
                self.peer.do_handshake()
                self.shaken = True
            while data := self.peer.read(65536):
                self.read += data
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError:
            self.peer_failed = True
        if self.shaken and not self.peer_failed and self.dice.random() < 0.7:
            data = self.dice.randbytes(self.dice.choice((1, 50, 1000, 16384, 40_000)))
            with contextlib.suppress(ssl.SSLError):
                self.peer.write(data)
                self.sent += data

    def our_step(self) -> None:
        chance = self.dice.random()
        if chance < 0.3 and self.sink.made and not self.tls.is_closing():
            data = self.dice.randbytes(self.dice.choice((1, 100, 20_000, 200_000)))
            self.written += data
            self.tls.write(data)
        elif chance < 0.4:
            self.tls.pause_reading()
        elif chance < 0.6:
            self.tls.resume_reading()
        elif chance < 0.62:
            self.tls.close()

    def deliver(self, step: int) -> None:
        stream = bytearray(self.outgoing.read())
        pieces = records(stream)
        if not self.harmless and step >= self.hurt_at and self.dice.random() < 0.4:
            damage(self.dice, pieces)
        stream = bytearray().join(pieces)
        while stream and not self.lower.ending:
            n = self.dice.choice((1, 7, 100, 5000, 70_000))
            self.tls.data_received(bytes(stream[:n]))
            del stream[:n]

    async def play(self) -> None:
        self.tls.connection_made(self.lower)
        for step in range(40):
            self.incoming.write(bytes(self.lower.sent))
            self.lower.sent.clear()
            self.peer_step()
            if self.lower.reading:
                self.deliver(step)
            if self.lower.ending:
                break
            self.our_step()
            self.lower.make_room()
            if step % 8 == 0:
                await asyncio.sleep(0)  # resume_reading() takes effect
        if not self.lower.ending:
            if self.dice.random() < 0.5:
                self.tls.eof_received()
            if not self.lower.ending:
                self.tls.abort()
        self.tls.connection_lost(self.lower.ending[0])
        for _ in range(2):
            await asyncio.sleep(0)

    def check(self) -> None:
        sink = self.sink
        assert self.sent.startswith(sink.data)
        assert self.written.startswith(self.read)
        assert sink.lost == sink.made <= 1
        assert self.waiter.done()
        assert (self.waiter.exception() is None) == bool(sink.made)
        for error in (sink.error, self.waiter.exception()):
            assert error is None or isinstance(error, (ssl.SSLError, ConnectionError))
        if self.harmless:
            assert not isinstance(sink.error, ssl.SSLError)


@pytest.fixture
def fuzz(engine: str, contexts: list[tuple[Any, Any]]) -> Callable[[range], list[weakref.ref[Any]]]:
    def fuzz(seeds: range) -> list[weakref.ref[Any]]:
        loop = ringloop.EventLoop("epoll")
        failures: list[dict[str, Any]] = []
        loop.set_exception_handler(lambda _, context: failures.append(context))
        refs: list[weakref.ref[Any]] = []

        async def main() -> None:
            for seed in seeds:
                case = Case(loop, contexts, seed)
                try:
                    await case.play()
                    case.check()
                    assert not failures
                except Exception as exc:
                    raise AssertionError(f"case {seed} of the {engine} engine") from exc
                if len(refs) < 100:
                    refs.append(weakref.ref(case.tls))

        try:
            loop.run_until_complete(main())
        finally:
            loop.close()
        return refs

    return fuzz


def test_damaged_streams(fuzz: Callable[[range], list[weakref.ref[Any]]]) -> None:
    refs = fuzz(range(CASES))
    gc.collect()
    assert refs
    assert [ref for ref in refs if ref() is not None] == []
