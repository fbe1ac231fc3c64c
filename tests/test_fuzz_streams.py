"""Random sequences of what one can do to a stream transport, against a model.

Each case is a seed. One end is a transport, the other a plain socket that is read and
written by hand. Bytes arrive as a prefix of what was sent, all of it if nobody broke the
connection, and callbacks come in the order that asyncio promises.
"""

from __future__ import annotations

import asyncio
import os
import random
import socket
import struct
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable

    import ringloop

    Run = Callable[..., Any]

ON_FAULTY_DRIVERS = True

# RINGLOOP_FUZZ=20000 for a long run; a failure names the seed of its case.
CASES = int(os.environ.get("RINGLOOP_FUZZ", "60"))
BATCH = 20
STEPS_MAX = 25
WRITE_MAX = 300 * 1024
CASE_TIMEOUT_S = 20
RUN_TIMEOUT_S = 600
LINGER_RESET = struct.pack("ii", 1, 0)

SENT = random.Random(0).randbytes(1 << 22)  # what both sides send, from the beginning


class Model:
    """What the protocol was told, and whether it may be told so."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.transport: Any = None
        self.received = bytearray()
        self.eof = False
        self.lost = loop.create_future()
        self.writing_paused = False
        self.wrong: list[str] = []
        self.keep_open = False
        self.tricks: list[Callable[[], None]] = []  # done inside the next callbacks

    def must(self, truth: bool, otherwise: str) -> None:
        if not truth:
            self.wrong.append(otherwise)

    def alive(self, what: str) -> None:
        self.must(self.transport is not None, f"{what} before connection_made()")
        self.must(not self.lost.done(), f"{what} after connection_lost()")

    def got(self, data: bytes) -> None:
        self.alive("data")
        self.must(not self.eof, "data after EOF")
        self.must(self.transport.is_reading(), "data while paused or closing")
        self.received += data
        if self.tricks:
            self.tricks.pop()()


class Base(asyncio.BaseProtocol):
    def __init__(self, model: Model) -> None:
        self.model = model

    def connection_made(self, transport: Any) -> None:
        self.model.must(self.model.transport is None, "connection_made() twice")
        self.model.transport = transport

    def eof_received(self) -> bool:
        self.model.alive("eof_received()")
        self.model.must(not self.model.eof, "eof_received() twice")
        self.model.eof = True
        return self.model.keep_open

    def connection_lost(self, exc: Exception | None) -> None:
        self.model.alive("connection_lost()")
        self.model.lost.set_result(exc)

    def pause_writing(self) -> None:
        self.model.alive("pause_writing()")
        self.model.must(not self.model.writing_paused, "pause_writing() twice")
        self.model.writing_paused = True

    def resume_writing(self) -> None:
        self.model.alive("resume_writing()")
        self.model.must(self.model.writing_paused, "resume_writing() without a pause")
        self.model.writing_paused = False


class Plain(Base, asyncio.Protocol):
    def data_received(self, data: bytes) -> None:
        self.model.got(data)


class Buffered(Base, asyncio.BufferedProtocol):
    def __init__(self, model: Model, size: int) -> None:
        super().__init__(model)
        self.buffer = bytearray(size)

    def get_buffer(self, sizehint: int) -> bytearray:
        self.model.alive("get_buffer()")
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.model.got(bytes(self.buffer[:nbytes]))


class Case:
    """One connection and what is done to it."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.loop = asyncio.get_running_loop()
        self.model = Model(self.loop)
        self.written = 0  # by the transport
        self.peer_sent = 0
        self.peer_got = bytearray()
        self.peer_eof = False
        self.broken = False  # what follows may be lost
        self.wrote_eof = False
        self.peer_closed = False

    def size(self) -> int:
        return min(WRITE_MAX, int(2 ** self.random.uniform(0, 18.2)) - 1)

    def protocol(self) -> Any:
        if self.random.random() < 0.5:
            return Plain(self.model)
        return Buffered(self.model, self.random.choice((1 << 8, 1 << 12, 1 << 16, 1 << 18)))

    # -- the transport's side --

    def write(self) -> None:
        if not self.wrote_eof:
            n = min(self.size(), len(SENT) - self.written)
            data: Any = SENT[self.written : self.written + n]
            self.model.transport.write(self.random.choice((bytes, bytearray, memoryview))(data))
            self.wrote(n)

    def writelines(self) -> None:
        if not self.wrote_eof:
            pieces, at = [], self.written
            for _ in range(self.random.choice((0, 1, 3, 100))):
                n = min(self.size() // 10, len(SENT) - at)
                pieces.append(SENT[at : at + n])
                at += n
            self.model.transport.writelines(pieces)
            self.wrote(at - self.written)

    def wrote(self, n: int) -> None:
        # After close() asyncio still takes what is written, but promises nothing.
        if not self.model.transport.is_closing():
            self.written += n
        else:
            self.broken = True
            self.written += n

    def write_eof(self) -> None:
        if not self.model.transport.is_closing():
            self.model.transport.write_eof()
            self.wrote_eof = True

    def pause(self) -> None:
        self.model.transport.pause_reading()

    def resume(self) -> None:
        self.model.transport.resume_reading()

    def limits(self) -> None:
        high = self.size()
        low = self.random.choice((None, self.random.randint(0, high)))
        self.model.transport.set_write_buffer_limits(high, low)

    def set_protocol(self) -> None:
        self.model.transport.set_protocol(self.protocol())

    def close(self) -> None:
        self.model.transport.close()

    def abort(self) -> None:
        self.broken = True
        self.model.transport.abort()

    def trick(self) -> None:
        what = (self.pause, self.set_protocol, self.write, self.close, self.resume, self.abort)
        self.model.tricks.append(self.random.choice(what))

    # -- the peer's side --

    def peer_send(self) -> None:
        if self.peer_closed:
            return
        n = min(self.size(), len(SENT) - self.peer_sent)
        try:
            self.peer_sent += self.peer.send(SENT[self.peer_sent : self.peer_sent + n])
        except BlockingIOError:
            pass
        except OSError:
            self.peer_closed = self.broken = True

    def peer_read(self) -> None:
        try:
            data = self.peer.recv(max(1, self.size()))
        except BlockingIOError:
            return
        except OSError:
            self.broken = self.peer_eof = True
            return
        self.peer_eof = self.peer_eof or not data
        self.peer_got += data

    def peer_shutdown(self) -> None:
        if not self.peer_closed:
            self.peer_closed = True
            try:
                self.peer.shutdown(socket.SHUT_WR)
            except OSError:
                self.broken = True

    def peer_reset(self) -> None:
        self.broken = self.peer_closed = self.peer_eof = True
        if self.peer.family != socket.AF_UNIX:
            self.peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_RESET)
        self.peer.close()

    async def connect(self) -> None:
        if self.random.random() < 0.5:
            mine, self.peer = socket.socketpair()
        else:
            with socket.create_server(("127.0.0.1", 0)) as listening:
                self.peer = socket.create_connection(listening.getsockname())
                mine, _ = listening.accept()
        mine.setblocking(False)
        self.peer.setblocking(False)
        protocol = self.protocol()
        await self.loop.connect_accepted_socket(lambda: protocol, mine)

    async def run(self) -> None:
        await self.connect()
        self.model.keep_open = self.random.random() < 0.5
        steps = [self.write, self.writelines, self.pause, self.resume, self.peer_send]
        steps = steps * 3 + [self.peer_read, self.trick, self.limits, self.set_protocol] * 2
        steps += [self.write_eof, self.peer_shutdown]
        if self.random.random() < 0.5:
            steps += [self.close, self.abort, self.peer_reset]
        try:
            for _ in range(self.random.randint(1, STEPS_MAX)):
                if self.peer.fileno() < 0:
                    break
                self.random.choice(steps)()
                for _ in range(self.random.choice((0, 0, 1, 1, 2, 5))):
                    await asyncio.sleep(0)
            await self.end()
        finally:
            self.model.transport.abort()
            self.peer.close()
        self.check()

    async def end(self) -> None:
        """Let everything arrive, then close."""
        self.model.tricks.clear()
        self.model.transport.resume_reading()
        done = self.model.lost
        while not done.done() and not self.broken:
            self.peer_read()
            if self.model.received == SENT[: self.peer_sent]:
                if not self.model.transport.is_closing():
                    self.model.transport.close()
                if self.peer_eof:
                    break
            await asyncio.sleep(0)
        if self.broken:
            self.model.transport.abort()
        await done
        while not self.peer_eof:
            self.peer_read()
            await asyncio.sleep(0)

    def check(self) -> None:
        model = self.model
        assert not model.wrong, model.wrong
        assert model.received == SENT[: len(model.received)]
        assert self.peer_got == SENT[: len(self.peer_got)]
        assert len(model.received) <= self.peer_sent
        if not self.broken:
            assert len(self.peer_got) == self.written
        if model.eof and not self.broken:
            assert len(model.received) == self.peer_sent


async def one(seed: int) -> None:
    try:
        async with asyncio.timeout(CASE_TIMEOUT_S):
            await Case(seed).run()
    except BaseException as exc:
        exc.add_note(f"the seed of this case is {seed}")
        raise


def test_any_sequence_of_operations_keeps_the_promises(run: Run, loop: ringloop.EventLoop) -> None:
    reported: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _loop, context: reported.append(context))

    async def main() -> None:
        for start in range(0, CASES, BATCH):
            async with asyncio.TaskGroup() as tasks:
                for seed in range(start, min(start + BATCH, CASES)):
                    tasks.create_task(one(seed))
            assert not reported

    run(main(), timeout=RUN_TIMEOUT_S)


@pytest.mark.parametrize("kind", ["plain", "buffered"])
def test_eof_comes_once_although_readiness_is_reported_again(
    run: Run, loop: ringloop.EventLoop, kind: str
) -> None:
    """A flood is received by readiness, which may be reported after the end, too."""

    async def main() -> None:
        for _ in range(20):
            mine, peer = socket.socketpair()
            with peer:
                peer.setblocking(False)
                mine.setblocking(False)
                model = Model(loop)
                model.keep_open = True
                protocol: Any = Plain(model) if kind == "plain" else Buffered(model, 1 << 17)
                await loop.create_unix_connection(lambda p=protocol: p, sock=mine)  # type: ignore[misc]
                await loop.sock_sendall(peer, SENT[: 1 << 20])
                peer.shutdown(socket.SHUT_WR)
                while not model.eof:
                    await asyncio.sleep(0)
                for _ in range(20):
                    await asyncio.sleep(0)
                model.transport.close()
                await model.lost
                assert not model.wrong
                assert model.received == SENT[: 1 << 20]

    run(main(), timeout=60)


def test_eof_waits_for_what_a_change_of_protocol_left_over(
    run: Run, loop: ringloop.EventLoop
) -> None:
    """A BufferedProtocol takes some of what came, then another protocol takes over."""

    async def main() -> None:
        for _ in range(20):
            mine, peer = socket.socketpair()
            mine.setblocking(False)
            model = Model(loop)
            model.keep_open = True
            protocol = Buffered(model, 100)
            await loop.create_unix_connection(lambda p=protocol: p, sock=mine)  # type: ignore[misc]
            successor = Plain(model)
            model.tricks.append(lambda m=model, p=successor: m.transport.set_protocol(p))  # type: ignore[misc]
            with peer:
                peer.sendall(SENT[:1000])
            while not model.eof:
                await asyncio.sleep(0)
            assert model.received == SENT[:1000]
            model.transport.close()
            await model.lost
            assert not model.wrong

    run(main(), timeout=20)
