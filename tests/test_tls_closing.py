"""TLS connections that end: how, when, in which state, and what nobody may notice."""

from __future__ import annotations

import asyncio
import gc
import io
import socket
import ssl
import struct
import weakref
from typing import TYPE_CHECKING, Any

import pytest

from certificates import Authority
from ringloop._tls.transport import TLSTransport
from tls_peer import Inside, Peer, Recorder

if TYPE_CHECKING:
    from collections.abc import Callable

    import ringloop

    Run = Callable[..., Any]

pytestmark = pytest.mark.usefixtures("engine")
RESET = struct.pack("ii", 1, 0)  # SO_LINGER: close() resets


class Contexts:
    def __init__(self, authority: Authority) -> None:
        self.server = authority.server()
        self.client = authority.client()


@pytest.fixture(scope="module")
def contexts(tmp_path_factory: pytest.TempPathFactory) -> Contexts:
    return Contexts(Authority(tmp_path_factory.mktemp("tls")))


class Pair:
    """Our client over a socket pair, and the peer that is the server."""

    def __init__(self, loop: ringloop.EventLoop, contexts: Contexts, **kwargs: Any) -> None:
        self.near, self.far = socket.socketpair()
        self.peer = Peer(self.far, contexts.server)
        self.recorder = Recorder()
        self.connecting = asyncio.ensure_future(
            loop.create_connection(
                lambda: self.recorder,
                sock=self.near,
                ssl=contexts.client,
                server_hostname="localhost",
                **kwargs,
            )
        )

    async def __aenter__(self) -> Pair:
        await self.peer.handshake()
        await self.connecting
        self.transport = self.recorder.transport
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.far.close()
        await self.recorder.lost

    async def ended(self) -> Exception | None:
        return await self.recorder.lost


def noted(loop: ringloop.EventLoop) -> list[dict[str, Any]]:
    contexts: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: contexts.append(context))
    return contexts


# -- close() -----------------------------------------------------------------------------


def test_close_says_goodbye_and_waits_for_the_peers(
    run: Run, loop: ringloop.EventLoop, contexts: Contexts
) -> None:
    async def main() -> None:
        async with Pair(loop, contexts) as pair:
            pair.transport.write(b"last words")
            pair.transport.close()
            assert pair.transport.is_closing()
            assert await pair.peer.readexactly(10) == b"last words"
            assert await pair.peer.read() == b""
            assert not pair.peer.eof
            assert "lost" not in pair.recorder.events
            await pair.peer.send_close_notify()
            assert await pair.ended() is None
            assert pair.recorder.events == ["made", "eof", "lost"]

    run(main())


def test_close_sends_all_that_was_written(
    run: Run, loop: ringloop.EventLoop, contexts: Contexts
) -> None:
    data = bytes(range(256)) * 20_000  # 5 MB

    async def main() -> None:
        async with Pair(loop, contexts) as pair:
            pair.transport.write(data)
            assert pair.transport.get_write_buffer_size() > 0
            pair.transport.close()
            pair.transport.write(b"too late")
            assert await pair.peer.readexactly(len(data)) == data
            assert await pair.peer.read() == b""
            await pair.peer.send_close_notify()
            assert await pair.ended() is None

    run(main())


def test_close_does_not_go_on_downloading(
    run: Run, loop: ringloop.EventLoop, contexts: Contexts
) -> None:
    """A peer that sends for ever is not listened to after close()."""

    async def main() -> None:
        async with Pair(loop, contexts) as pair:
            sent = 0
            with pytest.raises(ConnectionError):
                while True:
                    await pair.peer.write(b"x" * 65536)
                    sent += 65536
                    if pair.recorder.data and not pair.transport.is_closing():
                        received = len(pair.recorder.data)
                        pair.transport.close()
            assert len(pair.recorder.data) == received
            assert sent < 20 << 20
            assert await pair.ended() is None

    run(main())


def test_close_gives_up_on_a_silent_peer(
    run: Run, loop: ringloop.EventLoop, contexts: Contexts
) -> None:
    async def main() -> None:
        async with Pair(loop, contexts, ssl_shutdown_timeout=0.05) as pair:
            pair.transport.close()
            error = await pair.ended()
            assert isinstance(error, TimeoutError)
            assert "SSL shutdown timed out" in str(error)

    run(main())


def test_close_gives_up_on_a_peer_that_does_not_read(
    run: Run, loop: ringloop.EventLoop, contexts: Contexts
) -> None:
    async def main() -> None:
        async with Pair(loop, contexts, ssl_shutdown_timeout=0.05) as pair:
            pair.transport.write(b"x" * 5_000_000)
            pair.transport.close()
            assert isinstance(await pair.ended(), TimeoutError)

    run(main())


def test_close_while_reading_is_paused(
    run: Run, loop: ringloop.EventLoop, contexts: Contexts
) -> None:
    async def main() -> None:
        async with Pair(loop, contexts) as pair:
            pair.transport.pause_reading()
            await pair.peer.write(b"nobody wants this")
            while not pair.transport.get_read_buffer_size():
                await asyncio.sleep(0)
            pair.transport.close()
            assert await pair.peer.read() == b""
            await pair.peer.send_close_notify()
            assert await pair.ended() is None
            assert pair.recorder.data == b""

    run(main())


def test_close_in_every_callback(run: Run, loop: ringloop.EventLoop, contexts: Contexts) -> None:
    class Closing(Recorder):
        where = ""

        def note(self, event: str) -> None:
            super().note(event)
            if event == self.where:
                self.transport.close()
                self.transport.close()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self.where == "data":
                self.transport.write(b"bye")
                self.transport.close()

    async def main() -> None:
        for where in ("made", "data", "eof"):
            near, far = socket.socketpair()
            with far:
                peer = Peer(far, contexts.server)
                recorder = Closing()
                recorder.where = where
                _, _ = await asyncio.gather(
                    loop.create_connection(
                        lambda recorder=recorder: recorder,  # type: ignore[misc]
                        sock=near,
                        ssl=contexts.client,
                        server_hostname="localhost",
                    ),
                    peer.handshake(),
                )
                if where == "data":
                    await peer.write(b"data")
                    assert await peer.readexactly(3) == b"bye"
                elif where == "eof":
                    await peer.send_close_notify()
                assert await peer.read() == b""
                if where != "eof":
                    await peer.send_close_notify()
                assert await recorder.lost is None
                assert recorder.events == ["made", "eof", "lost"]

    run(main())


# -- the peer ends it --------------------------------------------------------------------


def test_the_peers_goodbye_is_answered(
    run: Run, loop: ringloop.EventLoop, contexts: Contexts
) -> None:
    async def main() -> None:
        async with Pair(loop, contexts) as pair:
            await pair.peer.write(b"the end")
            await pair.peer.send_close_notify()
            assert await pair.ended() is None
            assert pair.recorder.data == b"the end"
            assert pair.recorder.events == ["made", "eof", "lost"]
            # The answer is a close_notify, and not only an end.
            assert await pair.peer.read() == b""
            assert not pair.peer.eof

    run(main())


def test_an_end_without_goodbye_is_not_answered(
    run: Run, loop: ringloop.EventLoop, contexts: Contexts
) -> None:
    """As in asyncio: no error, but no close_notify either."""

    async def main() -> None:
        async with Pair(loop, contexts) as pair:
            await pair.peer.write(b"cut")
            pair.far.shutdown(socket.SHUT_WR)
            assert await pair.ended() is None
            assert pair.recorder.data == b"cut"
            assert pair.recorder.events == ["made", "eof", "lost"]
            with pytest.raises(ssl.SSLEOFError):
                await pair.peer.read()

    run(main())


@pytest.mark.parametrize("goodbye", [True, False])
def test_the_end_is_told_though_the_peer_takes_nothing_any_more(
    run: Run, loop: ringloop.EventLoop, contexts: Contexts, goodbye: bool
) -> None:
    async def main() -> None:
        async with Pair(loop, contexts, ssl_shutdown_timeout=0.2) as pair:
            pair.transport.write(bytes(4_000_000))
            if goodbye:
                await pair.peer.send_close_notify()
            pair.far.shutdown(socket.SHUT_WR)
            await pair.recorder.until(lambda: "eof" in pair.recorder.events)
            assert pair.transport.is_closing()
            assert isinstance(await pair.ended(), TimeoutError)
            assert pair.recorder.events == ["made", "pause", "eof", "lost"]

    run(main())


@pytest.mark.parametrize("goodbye", [True, False])
def test_what_was_written_arrives_though_the_peer_has_ended(
    run: Run, loop: ringloop.EventLoop, contexts: Contexts, goodbye: bool
) -> None:
    data = bytes(range(250)) * 16_000

    async def main() -> None:
        async with Pair(loop, contexts) as pair:
            pair.transport.write(data)
            if goodbye:
                await pair.peer.send_close_notify()
            pair.far.shutdown(socket.SHUT_WR)
            await pair.recorder.until(lambda: "eof" in pair.recorder.events)
            received = b""
            while len(received) < len(data):
                received += await pair.peer.read()
            assert received == data
            assert await pair.ended() is None
            assert pair.recorder.events == ["made", "pause", "eof", "resume", "lost"]

    run(main())


@pytest.mark.parametrize("goodbye", [True, False])
def test_what_was_received_is_told_before_the_end_however_late(
    run: Run, loop: ringloop.EventLoop, contexts: Contexts, goodbye: bool
) -> None:
    data = bytes(range(256)) * 600  # fits into a socket's buffer

    async def main() -> None:
        async with Pair(loop, contexts) as pair:
            pair.transport.pause_reading()
            await pair.peer.write(data)
            if goodbye:
                await pair.peer.send_close_notify()
            pair.far.shutdown(socket.SHUT_WR)
            for _ in range(20):
                await asyncio.sleep(0)
            assert pair.recorder.data == b""
            assert pair.recorder.events == ["made"]
            pair.transport.resume_reading()
            assert await pair.ended() is None
            assert pair.recorder.data == data
            assert pair.recorder.events == ["made", "eof", "lost"]

    run(main())


def test_a_protocol_may_pause_in_the_middle_of_a_record(
    run: Run, loop: ringloop.EventLoop, contexts: Contexts
) -> None:
    class Pausing(Recorder, asyncio.BufferedProtocol):
        buffer = bytearray(100)

        def get_buffer(self, sizehint: int) -> bytearray:
            return self.buffer

        def buffer_updated(self, nbytes: int) -> None:
            self.data_received(bytes(self.buffer[:nbytes]))
            self.transport.pause_reading()

    async def main() -> None:
        async with Pair(loop, contexts) as pair:
            recorder = Pausing()
            recorder.transport, recorder.lost = pair.transport, pair.recorder.lost
            pair.transport.set_protocol(recorder)
            data = bytes(range(250)) * 4
            await pair.peer.write(data)
            pair.far.shutdown(socket.SHUT_WR)
            while len(recorder.data) < len(data):
                have = len(recorder.data)
                await recorder.until(lambda have=have: len(recorder.data) > have)  # type: ignore[misc]
                assert len(recorder.data) == have + 100
                for _ in range(5):
                    await asyncio.sleep(0)
                assert recorder.events == []
                pair.transport.resume_reading()
            assert await pair.ended() is None
            assert recorder.data == data
            assert recorder.events == ["eof", "lost"]

    run(main())


class Sipping(Recorder, asyncio.BufferedProtocol):
    """Pauses after each 1000 bytes."""

    buffer = bytearray(1000)

    def get_buffer(self, sizehint: int) -> bytearray:
        return self.buffer

    def buffer_updated(self, nbytes: int) -> None:
        self.data_received(bytes(self.buffer[:nbytes]))
        self.transport.pause_reading()
        asyncio.get_running_loop().call_soon(self.transport.resume_reading)


@pytest.mark.parametrize("kind", [Recorder, Sipping])
@pytest.mark.parametrize("goodbye", [True, False])
def test_what_tls_in_tls_received_is_told_before_the_end_however_late(
    run: Run,
    loop: ringloop.EventLoop,
    contexts: Contexts,
    caplog: pytest.LogCaptureFixture,
    kind: type[Recorder],
    goodbye: bool,
) -> None:
    data = bytes(range(250)) * 600

    async def main() -> None:
        async with Pair(loop, contexts) as pair:
            inside = Inside(pair.peer, contexts.server)
            recorder = kind()
            pair.recorder.lost = recorder.lost
            recorder.transport, _ = await asyncio.gather(
                loop.start_tls(
                    pair.transport, recorder, contexts.client, server_hostname="localhost"
                ),
                inside.handshake(),
            )
            recorder.transport.pause_reading()
            await inside.write(data)
            if goodbye:
                await inside.send_close_notify()
                await pair.peer.send_close_notify()
            pair.far.shutdown(socket.SHUT_WR)
            for _ in range(50):
                await asyncio.sleep(0)
            assert recorder.data == b""
            assert recorder.events == []
            recorder.transport.resume_reading()
            assert await recorder.lost is None
            assert recorder.data == data
            assert recorder.events == ["eof", "lost"]

    run(main())
    assert caplog.text == ""


def test_a_reset_is_an_error(run: Run, loop: ringloop.EventLoop, contexts: Contexts) -> None:
    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            listening.setblocking(False)
            recorder = Recorder()
            connecting = asyncio.ensure_future(
                loop.create_connection(
                    lambda: recorder, *listening.getsockname(), ssl=contexts.client,
                    server_hostname="localhost",
                )
            )  # fmt: skip
            far, _ = await loop.sock_accept(listening)
            peer = Peer(far, contexts.server)
            await peer.handshake()
            await connecting
            far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            far.close()
            assert isinstance(await recorder.lost, ConnectionResetError)
            assert recorder.events == ["made", "lost"]

    run(main())


async def break_off(pair: Pair, loop: ringloop.EventLoop, good: bytes) -> None:
    """Send good records and a broken one, all at once."""
    pair.peer.tls.write(good)
    records = pair.peer.outgoing.read()
    pair.peer.tls.write(b"bad")
    bad = bytearray(pair.peer.outgoing.read())
    bad[-1] ^= 1
    await loop.sock_sendall(pair.far, records + bad)


@pytest.mark.parametrize("size", [None, 3, 4, 1000])
def test_a_broken_record_is_an_error_after_the_good_ones(
    run: Run, loop: ringloop.EventLoop, contexts: Contexts, size: int | None
) -> None:
    class Buffered(Recorder, asyncio.BufferedProtocol):
        buffer = bytearray(size or 0)

        def get_buffer(self, sizehint: int) -> bytearray:
            return self.buffer

        def buffer_updated(self, nbytes: int) -> None:
            self.data_received(bytes(self.buffer[:nbytes]))

    async def main() -> None:
        async with Pair(loop, contexts) as pair:
            recorder = pair.recorder if size is None else Buffered()
            recorder.lost = pair.recorder.lost
            pair.transport.set_protocol(recorder)
            await break_off(pair, loop, b"good")
            error = await pair.ended()
            assert isinstance(error, ssl.SSLError)
            assert error.reason == "DECRYPTION_FAILED_OR_BAD_RECORD_MAC"
            assert error.library == "SSL"
            assert recorder.data == b"good"
            # and the peer is told
            with pytest.raises(ssl.SSLError) as caught:
                await pair.peer.read()
            assert caught.value.reason == "SSLV3_ALERT_BAD_RECORD_MAC"

    run(main())


@pytest.mark.parametrize("size", [4, 40_000, 100_000])
def test_an_answer_to_the_good_records_does_not_hide_what_is_wrong(
    run: Run, loop: ringloop.EventLoop, contexts: Contexts, size: int
) -> None:
    class Echo(Recorder):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self.transport.write(data)

    async def main() -> None:
        async with Pair(loop, contexts) as pair:
            recorder = Echo()
            recorder.transport, recorder.lost = pair.transport, pair.recorder.lost
            pair.transport.set_protocol(recorder)
            await break_off(pair, loop, b"x" * size)
            error = await pair.ended()
            assert isinstance(error, ssl.SSLError)
            assert error.reason == "DECRYPTION_FAILED_OR_BAD_RECORD_MAC"
            assert len(recorder.data) == size
            with pytest.raises(ssl.SSLError) as caught:
                while await pair.peer.read():
                    pass
            assert caught.value.reason == "SSLV3_ALERT_BAD_RECORD_MAC"

    run(main())


def test_after_an_error_it_is_still_known_who_the_peer_was(
    run: Run, loop: ringloop.EventLoop, contexts: Contexts
) -> None:
    class Asking(Recorder):
        def connection_lost(self, exc: Exception | None) -> None:
            self.known = {
                name: self.transport.get_extra_info(name)
                for name in ("peercert", "cipher", "compression")
            }
            super().connection_lost(exc)

    async def main() -> None:
        async with Pair(loop, contexts) as pair:
            recorder = Asking()
            recorder.transport, recorder.lost = pair.transport, pair.recorder.lost
            pair.transport.set_protocol(recorder)
            await break_off(pair, loop, b"good")
            assert isinstance(await pair.ended(), ssl.SSLError)
            assert recorder.known["peercert"]["subject"] == ((("commonName", "localhost"),),)
            assert recorder.known["cipher"] == pair.transport.get_extra_info("ssl_object").cipher()

    run(main())


# -- during the handshake ----------------------------------------------------------------


def test_a_cancelled_handshake_leaves_nothing(
    run: Run, loop: ringloop.EventLoop, contexts: Contexts
) -> None:
    async def main() -> None:
        near, far = socket.socketpair()
        with far:
            far.setblocking(False)
            connecting = asyncio.ensure_future(
                loop.create_connection(
                    Recorder, sock=near, ssl=contexts.client, server_hostname="localhost"
                )
            )
            assert (await loop.sock_recv(far, 65536))[:1] == b"\x16"  # the ClientHello
            connecting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await connecting
            assert await loop.sock_recv(far, 1) == b""

    run(main())


def test_an_end_during_the_handshake_is_an_error(
    run: Run, loop: ringloop.EventLoop, contexts: Contexts
) -> None:
    async def main() -> None:
        near, far = socket.socketpair()
        far.setblocking(False)
        connecting = asyncio.ensure_future(
            loop.create_connection(
                Recorder, sock=near, ssl=contexts.client, server_hostname="localhost"
            )
        )
        await loop.sock_recv(far, 65536)
        far.close()
        with pytest.raises(ConnectionResetError):
            await connecting

    run(main())


@pytest.mark.parametrize("how", ["abort", "close"])
def test_a_connection_closed_during_the_handshake_is_no_connection(
    run: Run, loop: ringloop.EventLoop, contexts: Contexts, how: str
) -> None:
    """Who waits for start_tls() must not get a transport that is dead."""

    async def main() -> None:
        near, far = socket.socketpair()
        with far:
            recorder = Recorder()
            plain, _ = await loop.create_connection(lambda: recorder, sock=near)
            upgrading = asyncio.ensure_future(
                loop.start_tls(plain, recorder, contexts.client, server_hostname="localhost")
            )
            far.setblocking(False)
            await loop.sock_recv(far, 65536)
            getattr(plain, how)()
            with pytest.raises(ConnectionAbortedError):
                await upgrading
            assert await recorder.lost is None

    run(main())


@pytest.mark.parametrize("name", ["ssl_handshake_timeout", "ssl_shutdown_timeout"])
def test_a_timeout_that_is_not_positive_is_refused(
    run: Run, loop: ringloop.EventLoop, contexts: Contexts, name: str
) -> None:
    async def main() -> None:
        near, far = socket.socketpair()
        with near, far:
            wrong: dict[str, Any] = {name: 0}
            with pytest.raises(ValueError, match=f"{name} should be a positive number, got 0"):
                await loop.create_connection(
                    Recorder, sock=near, ssl=contexts.client, server_hostname="x", **wrong
                )

    run(main())


# -- abort(), and callbacks that fail ----------------------------------------------------


def test_abort_drops_what_was_written(
    run: Run, loop: ringloop.EventLoop, contexts: Contexts
) -> None:
    async def main() -> None:
        async with Pair(loop, contexts) as pair:
            pair.transport.write(b"x" * 5_000_000)
            pair.transport.abort()
            pair.transport.abort()
            assert await pair.ended() is None
            assert pair.recorder.events == ["made", "pause", "lost"]
            await pair.peer.at_eof()

    run(main())


@pytest.mark.parametrize("then", ["abort", "fail"])
def test_what_data_received_wrote_arrives_before_it_aborts_or_fails(
    run: Run, loop: ringloop.EventLoop, contexts: Contexts, then: str
) -> None:
    def answer(transport: TLSTransport) -> None:
        transport.write(b"bad request")
        if then == "fail":
            raise ZeroDivisionError
        transport.abort()

    async def main() -> None:
        errors = noted(loop)
        async with Pair(loop, contexts) as pair:
            pair.recorder.data_received = lambda _: answer(pair.transport)  # type: ignore[method-assign, assignment]
            await pair.peer.write(b"?")
            assert await pair.peer.readexactly(11) == b"bad request"
            await pair.peer.at_eof()
            await pair.ended()
        assert len(errors) == (then == "fail")

    run(main())


def test_abort_while_closing(run: Run, loop: ringloop.EventLoop, contexts: Contexts) -> None:
    async def main() -> None:
        async with Pair(loop, contexts) as pair:
            pair.transport.close()
            pair.transport.abort()
            assert await pair.ended() is None

    run(main())


@pytest.mark.parametrize("callback", ["data_received", "eof_received", "buffer_updated"])
def test_a_callback_that_fails_closes_the_connection(
    run: Run, loop: ringloop.EventLoop, contexts: Contexts, callback: str
) -> None:
    handled = noted(loop)

    class Buffered(Recorder, asyncio.BufferedProtocol):
        def get_buffer(self, sizehint: int) -> bytearray:
            return bytearray(1000)

    async def main() -> None:
        async with Pair(loop, contexts) as pair:
            error = ZeroDivisionError(callback)

            def fail(*args: Any) -> None:
                raise error

            recorder = Buffered() if callback == "buffer_updated" else pair.recorder
            recorder.lost = pair.recorder.lost
            setattr(recorder, callback, fail)
            pair.transport.set_protocol(recorder)
            await pair.peer.write(b"data")
            if callback == "eof_received":
                await pair.peer.send_close_notify()
            assert await pair.ended() is error
            assert [context["exception"] for context in handled] == [error]

    run(main())


def test_a_write_after_the_end_is_dropped(
    run: Run, loop: ringloop.EventLoop, contexts: Contexts, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with Pair(loop, contexts) as pair:
            pair.transport.abort()
            await pair.ended()
            for _ in range(10):
                pair.transport.write(b"x")
            assert pair.transport.get_write_buffer_size() == 0
            with pytest.raises(TypeError, match="bytes-like"):
                pair.transport.write("text")
            with pytest.raises(NotImplementedError):
                pair.transport.write_eof()
            assert not pair.transport.can_write_eof()

    run(main())
    assert "SSL connection is closed" in caplog.text


# -- flow control ------------------------------------------------------------------------


def test_flow_control_of_writing(run: Run, loop: ringloop.EventLoop, contexts: Contexts) -> None:
    async def main() -> None:
        async with Pair(loop, contexts) as pair:
            transport, events = pair.transport, pair.recorder.events
            assert transport.get_write_buffer_limits() == (128 * 1024, 512 * 1024)
            transport.set_write_buffer_limits(high=100_000, low=1000)
            assert transport.get_write_buffer_limits() == (1000, 100_000)
            with pytest.raises(ValueError, match="must be >="):
                transport.set_write_buffer_limits(high=1, low=2)
            total = 0
            while "pause" not in events:
                transport.write(b"x" * 10_000)
                total += 10_000
            assert 100_000 < transport.get_write_buffer_size() <= 110_000
            await pair.peer.readexactly(total)
            await pair.recorder.until(lambda: "resume" in events)
            assert transport.get_write_buffer_size() <= 1000
            transport.close()

    run(main())


@pytest.mark.parametrize("paused", [False, True])
def test_sendfile_waits_for_a_slow_peer(
    run: Run, loop: ringloop.EventLoop, contexts: Contexts, paused: bool
) -> None:
    data = bytes(range(256)) * 12_000  # 3 MB
    errors = noted(loop)

    async def main() -> None:
        async with Pair(loop, contexts) as pair:
            transport, events = pair.transport, pair.recorder.events
            before = b""
            while paused and "pause" not in events:
                transport.write(data[:100_000])
                before += data[:100_000]
            task = asyncio.ensure_future(loop.sendfile(transport, io.BytesIO(data)))
            while not transport._protocol_paused:
                await asyncio.sleep(0)
            for _ in range(20):  # long enough for as many pieces of the file
                await loop.run_in_executor(None, int)
            assert errors == []
            assert not task.done()
            assert transport.get_write_buffer_size() < (600_000 if paused else 550_000)
            assert await pair.peer.readexactly(len(before + data)) == before + data
            assert await task == len(data)
            assert transport.get_protocol() is pair.recorder
            await pair.recorder.until(lambda: events.count("pause") == events.count("resume"))
            await pair.peer.write(b"and reading goes on")
            await pair.recorder.until(lambda: len(pair.recorder.data) == 19)
            transport.close()

    run(main())
    assert errors == []


def test_flow_control_of_reading(run: Run, loop: ringloop.EventLoop, contexts: Contexts) -> None:
    """A paused transport holds a bounded number of bytes; resuming gives all of them."""
    data = bytes(range(256)) * 16_384  # 4 MiB

    async def main() -> None:
        async with Pair(loop, contexts) as pair:
            transport = pair.transport
            assert transport.is_reading()
            transport.pause_reading()
            assert not transport.is_reading()
            sending = asyncio.ensure_future(pair.peer.write(data))
            held = -1
            while held != transport.get_read_buffer_size() or held == 0:
                held = transport.get_read_buffer_size()
                for _ in range(50):
                    await asyncio.sleep(0)
            assert not sending.done()
            assert held < 1 << 20
            assert pair.recorder.data == b""
            transport.resume_reading()
            await pair.recorder.until(lambda: len(pair.recorder.data) == len(data))
            assert pair.recorder.data == data
            await sending
            transport.close()

    run(main())


def test_a_protocol_may_pause_in_data_received(
    run: Run, loop: ringloop.EventLoop, contexts: Contexts
) -> None:
    class Pausing(Recorder):
        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self.transport.pause_reading()
            loop.call_soon(self.transport.resume_reading)

    async def main() -> None:
        async with Pair(loop, contexts) as pair:
            recorder = Pausing()
            recorder.transport, recorder.lost = pair.transport, pair.recorder.lost
            pair.transport.set_protocol(recorder)
            data = bytes(range(256)) * 4096
            sending = asyncio.ensure_future(pair.peer.write(data))
            await recorder.until(lambda: len(recorder.data) == len(data))
            assert recorder.data == data
            await sending
            pair.transport.close()

    run(main())


@pytest.mark.parametrize("size", [1, 100, 5000, 1 << 20])
def test_a_buffered_protocol(
    run: Run, loop: ringloop.EventLoop, contexts: Contexts, size: int
) -> None:
    class Buffered(Recorder, asyncio.BufferedProtocol):
        buffer = bytearray(size)

        def get_buffer(self, sizehint: int) -> bytearray:
            assert sizehint > 0
            return self.buffer

        def buffer_updated(self, nbytes: int) -> None:
            self.data_received(bytes(self.buffer[:nbytes]))

    async def main() -> None:
        async with Pair(loop, contexts) as pair:
            recorder = Buffered()
            recorder.transport, recorder.lost = pair.transport, pair.recorder.lost
            pair.transport.set_protocol(recorder)
            data = bytes(range(256)) * (4 if size == 1 else 800)
            await pair.peer.write(data)
            await pair.peer.send_close_notify()
            assert await pair.ended() is None
            assert recorder.data == data
            assert recorder.events == ["eof", "lost"]

    run(main())


def test_what_is_written_in_data_received_leaves_in_one_piece(
    run: Run, loop: ringloop.EventLoop, contexts: Contexts
) -> None:
    class Lower(asyncio.Transport):
        def __init__(self) -> None:
            super().__init__()
            self.written: list[bytes] = []

        def write(self, data: bytes | bytearray | memoryview) -> None:
            self.written.append(bytes(data))

        def abort(self) -> None:
            pass

    class Answering(Recorder):
        def data_received(self, data: bytes) -> None:
            for _ in range(10):
                self.transport.write(b"answer")

    async def main() -> None:
        lower = Lower()
        recorder = Answering()
        tls = TLSTransport(loop, recorder, contexts.client, None, server_hostname="localhost")
        near, far = socket.socketpair()
        with near, far:
            peer = Peer(far, contexts.server)
            tls.connection_made(lower)
            while "made" not in recorder.events:
                peer.incoming.write(b"".join(lower.written))
                lower.written.clear()
                try:
                    peer.tls.do_handshake()
                except ssl.SSLWantReadError:
                    pass
                tls.data_received(peer.outgoing.read())
            peer.incoming.write(b"".join(lower.written))
            peer.tls.do_handshake()
            tls.data_received(peer.outgoing.read())
            lower.written.clear()
            peer.tls.write(b"question")
            tls.data_received(peer.outgoing.read())
            assert len(lower.written) == 1
            peer.incoming.write(lower.written[0])
            assert b"".join(peer.tls.read() for _ in range(10)) == b"answer" * 10
            tls.abort()
            tls.connection_lost(None)
            await recorder.lost

    run(main())


def test_a_connection_that_ended_is_collected_without_the_garbage_collector(
    run: Run, loop: ringloop.EventLoop, contexts: Contexts
) -> None:
    async def main() -> weakref.ref[Any]:
        pair = Pair(loop, contexts)
        async with pair:
            await pair.peer.write(b"x")
            await pair.recorder.until(lambda: pair.recorder.data == b"x")
            pair.transport.close()
            assert await pair.peer.read() == b""
            await pair.peer.send_close_notify()
            await pair.ended()
        ref = weakref.ref(pair.transport)
        pair.recorder.transport = pair.transport = None
        return ref

    gc.collect()
    gc.disable()
    try:
        ref = run(main())
        run(asyncio.sleep(0))
        assert ref() is None
    finally:
        gc.enable()
