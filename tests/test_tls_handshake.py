"""What a handshake settles: who the peer is, names, protocols, sessions, and who is refused."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from typing import TYPE_CHECKING, Any

import pytest

from certificates import Authority
from tls_peer import Peer, Recorder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import ringloop

    Run = Callable[..., Any]

pytestmark = pytest.mark.usefixtures("engine")


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls"))


class Served:
    """An echo server; `async with` gives its address. `done` has its ended connections."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self.context = context
        self.seen: list[Any] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.seen.append(writer)
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            await writer.wait_closed()

    async def __aenter__(self) -> tuple[str, int]:
        self.server = await asyncio.start_server(self.serve, "127.0.0.1", 0, ssl=self.context)
        address: tuple[str, int] = self.server.sockets[0].getsockname()
        return address

    async def __aexit__(self, *exc_info: object) -> None:
        self.server.close()
        await self.server.wait_closed()


async def exchange(address: tuple[str, int], context: ssl.SSLContext, **kwargs: Any) -> Any:
    """Connect, see that data passes, close; the client's transport."""
    reader, writer = await asyncio.open_connection(*address, ssl=context, **kwargs)
    writer.write(b"question")
    assert await reader.readexactly(8) == b"question"
    writer.close()
    await writer.wait_closed()
    return writer.transport


# -- the peer's certificate --------------------------------------------------------------


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("expired", "certificate has expired"),
        ("other host", "Hostname mismatch"),
        ("other address", "IP address mismatch"),
        ("other authority", "unable to get local issuer|self-signed"),
        ("revoked", "certificate revoked"),
    ],
)
def test_a_certificate_that_is_not_good_is_rejected(
    run: Run, tmp_path: Path, case: str, message: str
) -> None:
    authority = Authority(tmp_path)
    certificate = authority.issue(
        "localhost",
        *(["127.0.0.1"] if case != "other address" else []),
        expires_in_days=-1 if case == "expired" else 1,
    )
    client = authority.client()
    host = "127.0.0.1" if case == "other address" else "localhost"
    if case == "other host":
        host = "example.org"
    elif case == "other authority":
        client = Authority(tmp_path, "another authority").client()
    elif case == "revoked":
        client.load_verify_locations(authority.revoke(certificate))
        client.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF

    async def main() -> None:
        async with Served(authority.server(certificate)) as address:
            with pytest.raises(ssl.SSLCertVerificationError, match=message) as caught:
                await asyncio.open_connection(*address, ssl=client, server_hostname=host)
            assert caught.value.verify_code > 0
            assert caught.value.verify_message in str(caught.value)
            # Nothing is wrong with the server.
            relaxed = ssl.create_default_context()
            relaxed.check_hostname = False
            relaxed.verify_mode = ssl.CERT_NONE
            await exchange(address, relaxed)

    run(main())


def test_a_certificate_that_is_not_revoked_is_accepted(run: Run, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    certificate, other = authority.issue("localhost"), authority.issue("localhost")
    client = authority.client()
    client.load_verify_locations(authority.revoke(other))
    client.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF

    async def main() -> None:
        async with Served(authority.server(certificate)) as address:
            await exchange(address, client, server_hostname="localhost")

    run(main())


def test_the_peer_hears_why_it_was_rejected(
    run: Run, loop: ringloop.EventLoop, authority: Authority
) -> None:
    async def main() -> None:
        near, far = socket.socketpair()
        with far:
            peer = Peer(far, authority.server())
            untrusting = ssl.create_default_context()
            connect = loop.create_connection(
                Recorder, sock=near, ssl=untrusting, server_hostname="localhost"
            )
            ours, theirs = await asyncio.gather(connect, peer.handshake(), return_exceptions=True)
            assert isinstance(ours, ssl.SSLCertVerificationError)
            if theirs is None:  # TLS 1.3: its handshake was over before ours failed
                with pytest.raises(ssl.SSLError) as caught:
                    await peer.read()
                theirs = caught.value
            assert isinstance(theirs, ssl.SSLError)
            assert theirs.reason == "TLSV1_ALERT_UNKNOWN_CA"

    run(main())


def test_a_unicode_host_name_is_compared_as_idna(run: Run, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    server = authority.server(authority.issue("xn--bcher-kva.example"))

    async def main() -> None:
        async with Served(server) as address:
            transport = await exchange(
                address, authority.client(), server_hostname="bücher.example"
            )
            assert transport.get_extra_info("ssl_object").server_hostname == (
                "xn--bcher-kva.example"
            )

    run(main())


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_client_certificate(run: Run, authority: Authority, version: ssl.TLSVersion) -> None:
    server = authority.server()
    server.verify_mode = ssl.CERT_REQUIRED
    with_one, without = authority.client(), authority.client()
    with_one.load_cert_chain(authority.issue("somebody"))
    with_one.maximum_version = without.maximum_version = version

    async def main() -> None:
        served = Served(server)
        async with served as address:
            await exchange(address, with_one)
            subject = served.seen[0].get_extra_info("peercert")["subject"]
            assert subject == ((("commonName", "somebody"),),)
            with pytest.raises((ssl.SSLError, ConnectionError)) as caught:
                await exchange(address, without)
            if isinstance(caught.value, ssl.SSLError):
                assert "ALERT" in caught.value.reason
            assert len(served.seen) == 1

    run(main())


def test_a_client_certificate_asked_for_later(run: Run, authority: Authority) -> None:
    server, client = authority.server(), authority.client()
    server.verify_mode = ssl.CERT_REQUIRED
    server.post_handshake_auth = client.post_handshake_auth = True
    client.load_cert_chain(authority.issue("somebody"))

    async def main() -> None:
        subjects = []

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            tls = writer.get_extra_info("ssl_object")
            assert tls.getpeercert() is None
            assert await reader.readexactly(5) == b"hello"
            tls.verify_client_post_handshake()
            writer.write(b"who are you?")
            assert await reader.readexactly(5) == b"guess"
            subjects.append(tls.getpeercert()["subject"])
            writer.close()
            await writer.wait_closed()

        listening = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=server)
        address = listening.sockets[0].getsockname()
        reader, writer = await asyncio.open_connection(*address, ssl=client)
        writer.write(b"hello")
        assert await reader.readexactly(12) == b"who are you?"
        writer.write(b"guess")
        assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()
        listening.close()
        await listening.wait_closed()
        assert subjects == [((("commonName", "somebody"),),)]

    run(main())


# -- what else is settled ----------------------------------------------------------------


def test_the_extra_information(run: Run, authority: Authority) -> None:
    client = authority.client()

    async def main() -> None:
        async with Served(authority.server()) as address:
            reader, writer = await asyncio.open_connection(*address, ssl=client)
            tls = writer.get_extra_info("ssl_object")
            assert type(tls) is ssl.SSLObject
            assert isinstance(writer.transport, asyncio.Transport)
            assert writer.get_extra_info("sslcontext") is client
            assert writer.get_extra_info("cipher") == tls.cipher()
            assert writer.get_extra_info("compression") is None
            assert writer.get_extra_info("peercert") == tls.getpeercert()
            names = writer.get_extra_info("peercert")["subjectAltName"]
            assert names == (("DNS", "localhost"), ("IP Address", "127.0.0.1"))
            assert writer.get_extra_info("peername") == address
            assert writer.get_extra_info("nothing", 5) == 5
            writer.close()
            await writer.wait_closed()
            assert await reader.read() == b""

    run(main())


def test_alpn(run: Run, authority: Authority) -> None:
    server, client = authority.server(), authority.client()
    server.set_alpn_protocols(["h2", "http/1.1"])
    client.set_alpn_protocols(["http/1.1"])

    async def main() -> None:
        async with Served(server) as address:
            transport = await exchange(address, client)
            assert transport.get_extra_info("ssl_object").selected_alpn_protocol() == "http/1.1"

    run(main())


def test_the_sni_callback_chooses_the_context(run: Run, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    first = authority.server(authority.issue("one.example"))
    second = authority.server(authority.issue("two.example"))
    asked = []

    def choose(tls: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> int | None:
        asked.append((type(tls), name, context is first))
        if name == "two.example":
            tls.context = second
        elif name == "nobody.example":
            return ssl.ALERT_DESCRIPTION_UNRECOGNIZED_NAME
        return None

    first.sni_callback = choose

    async def main() -> None:
        async with Served(first) as address:
            for name in ("one.example", "two.example"):
                transport = await exchange(address, authority.client(), server_hostname=name)
                names = transport.get_extra_info("peercert")["subjectAltName"]
                assert names == (("DNS", name),)
            with pytest.raises(ssl.SSLError, match=r"(?i)unrecognized.name"):
                await exchange(address, authority.client(), server_hostname="nobody.example")

    run(main())
    assert asked == [
        (ssl.SSLObject, name, True) for name in ("one.example", "two.example", "nobody.example")
    ]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_failing_sni_callback_ends_the_handshake(run: Run, authority: Authority) -> None:
    server = authority.server()

    def fail(tls: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        raise ZeroDivisionError

    server.sni_callback = fail

    async def main() -> None:
        async with Served(server) as address:
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await exchange(address, authority.client())

    run(main())


class Resuming(ssl.SSLContext):
    """A client's context that offers the session of the connection before."""

    saved: ssl.SSLSession | None = None

    def wrap_bio(self, *args: Any, **kwargs: Any) -> ssl.SSLObject:
        kwargs["session"] = self.saved
        return super().wrap_bio(*args, **kwargs)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_session_is_used_again(run: Run, authority: Authority, version: ssl.TLSVersion) -> None:
    client = Resuming(ssl.PROTOCOL_TLS_CLIENT)
    client.load_verify_locations(authority.path)
    client.maximum_version = version

    async def main() -> None:
        async with Served(authority.server()) as address:
            for expected in (False, True, True):
                tls = (await exchange(address, client)).get_extra_info("ssl_object")
                assert tls.session_reused is expected
                client.saved = tls.session

    run(main())


def test_a_context_may_be_told_of_messages_and_keys(
    run: Run, authority: Authority, tmp_path: Path
) -> None:
    server, client = authority.server(), authority.client()
    messages = []
    client._msg_callback = lambda *args: messages.append(args)  # type: ignore[attr-defined]
    server.keylog_filename = str(tmp_path / "keys")

    async def main() -> None:
        async with Served(server) as address:
            await exchange(address, client)

    run(main())
    assert "CLIENT_TRAFFIC_SECRET_0" in (tmp_path / "keys").read_text()
    assert len(messages) > 10


def test_a_client_may_not_renegotiate(run: Run, authority: Authority) -> None:
    """A handshake costs the server far more than the client: CVE-2011-1473."""
    from OpenSSL import SSL  # noqa: PLC0415 - its libssl is another one

    def talk(address: tuple[str, int]) -> None:
        context = SSL.Context(SSL.TLS_CLIENT_METHOD)
        context.set_max_proto_version(SSL.TLS1_2_VERSION)
        with socket.create_connection(address, timeout=30) as sock:
            sock.setblocking(True)
            connection = SSL.Connection(context, sock)
            connection.set_connect_state()
            connection.do_handshake()
            connection.sendall(b"before")
            assert connection.recv(100) == b"before"
            assert connection.renegotiate()
            with pytest.raises(SSL.Error, match="no renegotiation"):
                connection.do_handshake()

    async def main() -> None:
        async with Served(authority.server()) as address:
            await asyncio.to_thread(talk, address)
            await exchange(address, authority.client(), server_hostname="localhost")

    run(main())


def test_no_common_version_is_an_error_on_both_sides(run: Run, authority: Authority) -> None:
    server, client = authority.server(), authority.client()
    server.minimum_version = ssl.TLSVersion.TLSv1_3
    client.maximum_version = ssl.TLSVersion.TLSv1_2

    async def main() -> None:
        async with Served(server) as address:
            with pytest.raises(ssl.SSLError) as caught:
                await exchange(address, client)
            assert caught.value.reason == "TLSV1_ALERT_PROTOCOL_VERSION"

    run(main())


# -- start_tls ---------------------------------------------------------------------------


def test_what_was_read_with_the_plaintext_is_the_handshake(
    run: Run, loop: ringloop.EventLoop, authority: Authority
) -> None:
    """A client that does not wait for the answer to its STARTTLS."""

    async def main() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            assert await reader.readline() == b"STARTTLS\n"
            while not reader._buffer:  # type: ignore[attr-defined]
                await asyncio.sleep(0)
            await writer.start_tls(server)
            writer.write(await reader.readexactly(5))
            writer.close()
            await writer.wait_closed()

        server = authority.server()
        listening = await asyncio.start_server(serve, "127.0.0.1", 0)
        with socket.create_connection(listening.sockets[0].getsockname()) as sock:
            peer = Peer(sock, authority.client(), server_side=False, server_hostname="localhost")
            with pytest.raises(ssl.SSLWantReadError):
                peer.tls.do_handshake()
            await loop.sock_sendall(sock, b"STARTTLS\n" + peer.outgoing.read())
            await peer.handshake()
            await peer.write(b"hello")
            assert await peer.readexactly(5) == b"hello"
            assert await peer.read() == b""
            await peer.send_close_notify()
        listening.close()
        await listening.wait_closed()

    run(main())


@pytest.mark.parametrize("same", [True, False])
def test_a_protocol_that_was_paused_for_plaintext_is_resumed(
    run: Run, loop: ringloop.EventLoop, authority: Authority, same: bool
) -> None:
    async def main() -> None:
        near, far = socket.socketpair()
        with far:
            far.setblocking(False)
            before = Recorder()
            plain, _ = await loop.create_connection(lambda: before, sock=near)
            size = 0
            while "pause" not in before.events:
                plain.write(bytes(50_000))
                size += 50_000
            recorder = before if same else Recorder()
            upgrading = asyncio.ensure_future(
                loop.start_tls(plain, recorder, authority.client(), server_hostname="localhost")
            )
            for _ in range(5):
                await asyncio.sleep(0)
            assert before.events == ["made", "pause"]
            while size:
                size -= len(await loop.sock_recv(far, min(size, 65536)))
            peer = Peer(far, authority.server())
            transport, _ = await asyncio.gather(upgrading, peer.handshake())
            assert transport is not None
            assert before.events == ["made", "pause"] + same * ["resume"]
            # and that is not the end of flow control
            recorder.events.clear()
            transport.write(bytes(2_000_000))
            assert recorder.events == ["pause"]
            await peer.readexactly(2_000_000)
            await recorder.until(lambda: recorder.events == ["pause", "resume"])
            transport.close()
            await peer.send_close_notify()
            assert await recorder.lost is None

    run(main())


def test_tls_inside_tls(run: Run, loop: ringloop.EventLoop, authority: Authority) -> None:
    server, client = authority.server(), authority.client()

    async def main() -> None:
        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(await reader.readexactly(3))
            await writer.drain()
            await writer.start_tls(server)
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
            writer.close()
            await writer.wait_closed()

        listening = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=server)
        reader, writer = await asyncio.open_connection(
            *listening.sockets[0].getsockname(), ssl=client
        )
        writer.write(b"abc")
        assert await reader.readexactly(3) == b"abc"
        await writer.start_tls(client, server_hostname="localhost")
        data = bytes(range(256)) * 4096
        writer.write(data)
        assert await reader.readexactly(len(data)) == data
        writer.close()
        await writer.wait_closed()
        listening.close()
        await listening.wait_closed()

    run(main())


def test_over_a_transport_that_is_not_ours(authority: Authority, engine: str) -> None:
    from ringloop._tls.transport import TLSTransport  # noqa: PLC0415

    async def main() -> None:
        loop = asyncio.get_running_loop()
        near, far = socket.socketpair()
        with far:
            peer = Peer(far, authority.server())
            recorder = Recorder()
            tls = TLSTransport(
                loop, recorder, authority.client(), None, server_hostname="localhost"
            )
            await loop.create_connection(lambda: tls, sock=near)
            await peer.handshake()
            await peer.write(b"x" * 100_000)
            await recorder.until(lambda: len(recorder.data) == 100_000)
            recorder.transport.write(b"y" * 1_000_000)
            assert await peer.readexactly(1_000_000) == b"y" * 1_000_000
            recorder.transport.close()
            assert await peer.read() == b""
            await peer.send_close_notify()
            assert await recorder.lost is None

    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        runner.run(asyncio.wait_for(main(), 10))
