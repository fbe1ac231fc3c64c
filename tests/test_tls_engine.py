"""Which TLS engine is used, what of that is verified, and what an engine keeps."""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from certificates import Authority
from ringloop._tls import choose
from ringloop._tls.direct import DirectEngine
from ringloop._tls.engine import MemoryEngine
from ringloop._tls.openssl import why_not_direct
from ringloop._tls.transport import TLSTransport

if TYPE_CHECKING:
    from pathlib import Path

    import ringloop

needs_direct = pytest.mark.skipif(
    why_not_direct() is not None, reason=f"no direct engine here: {why_not_direct()}"
)


def in_a_process(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


INFO = """
import json, ringloop
info = ringloop.backend_info()
print(json.dumps([info["tls"], info["tls_reason"]]))
"""


def test_what_is_in_use_is_said() -> None:
    name, reason = json.loads(in_a_process(INFO, RINGLOOP_TLS=""))
    assert (name, reason) == (
        ("direct", None) if why_not_direct() is None else ("memory", why_not_direct())
    )
    assert json.loads(in_a_process(INFO, RINGLOOP_TLS="memory")) == [
        "memory",
        "RINGLOOP_TLS asks for it",
    ]


def test_an_unknown_engine_is_refused() -> None:
    code = "import ringloop\ntry: ringloop.backend_info()\nexcept ValueError as e: print(e)"
    assert "not 'fast'" in in_a_process(code, RINGLOOP_TLS="fast")


HIDDEN = """
import sys, ssl, _ssl
{change}
import ringloop
from ringloop._tls.openssl import why_not_direct
from ringloop._tls.transport import TLSTransport
print(why_not_direct())
try:
    ringloop.backend_info()
except RuntimeError as error:
    print(error)
"""


@needs_direct
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("del _ssl.__file__", "part of the interpreter"),
        ("_ssl.__file__ = '/nowhere/_ssl.so'", "not loaded as a shared library"),
        ("import _struct; _ssl.__file__ = _struct.__file__", "does not show|not loaded"),
        ("ssl.OPENSSL_VERSION = 'OpenSSL 3.99.0'", "is not the OpenSSL 3.99.0"),
        ("ssl.OPENSSL_VERSION = 'AWS-LC 1.0'", "is not OpenSSL 3"),
        ("ssl.OPENSSL_VERSION_INFO = (1, 1, 1, 0, 15)", "is not OpenSSL 3"),
        ("sys.version_info = (3, 99)", "is not known"),
    ],
)
def test_what_is_not_as_expected_is_not_touched(change: str, words: str) -> None:
    told, raised = in_a_process(HIDDEN.format(change=change), RINGLOOP_TLS="direct").splitlines()
    assert any(word in told for word in words.split("|")), told
    assert raised == f"libssl cannot be called directly: {told}"


LAYOUT = """
import ssl, _ssl

class Raw:
    # As large as what _ssl has, with other things in it.
    __slots__ = ("first", "second")

class Made:
    _sslobj = Raw()

{change}
from ringloop._tls.openssl import why_not_direct
from ringloop._tls.transport import TLSTransport
print(why_not_direct())
"""


@needs_direct
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("Made._sslobj = 5", "of other types"),
        ("_ssl._SSLSocket = bytes", "of other types"),
        ("_ssl._SSLSocket = object", "too small"),
        ("_ssl._SSLSocket = Raw", "no SSL in"),  # NULL
        ("_ssl._SSLSocket = Raw; Made._sslobj.second = Made", "no SSL in"),
        pytest.param(
            "_ssl._SSLSocket = Raw; Made._sslobj.second = ssl.MemoryBIO()",
            "no SSL in",
            marks=pytest.mark.skipif(
                "libasan" in os.environ.get("LD_PRELOAD", ""),
                reason="it looks beyond a small object, as is meant, and the sanitizer reports it",
            ),
        ),
    ],
)
def test_other_objects_are_not_taken_for_the_ssl_modules(change: str, words: str) -> None:
    made = "ssl.SSLObject._create = classmethod(lambda cls, *a, **k: Made())"
    told = in_a_process(LAYOUT.format(change=f"{change}\n{made if 'bytes' not in change else ''}"))
    assert told.startswith("the ssl module's objects are not laid out as known")
    assert words in told


@needs_direct
def test_a_class_of_ones_own_for_ssl_objects_gets_the_memory_engine(tmp_path: Path) -> None:
    class Own(ssl.SSLObject):
        pass

    context = Authority(tmp_path).client()
    assert type(choose.new_engine(context, False, "localhost")) is DirectEngine
    context.sslobject_class = Own
    assert type(choose.new_engine(context, False, "localhost")) is MemoryEngine


@needs_direct
def test_callbacks_that_may_raise_get_the_memory_engine(tmp_path: Path) -> None:
    context = Authority(tmp_path).client()
    context._msg_callback = lambda *args: None  # type: ignore[attr-defined]
    assert type(choose.new_engine(context, False, "localhost")) is MemoryEngine
    context = Authority(tmp_path).client()
    context.keylog_filename = str(tmp_path / "keys")
    assert type(choose.new_engine(context, False, "localhost")) is MemoryEngine


@needs_direct
def test_an_ssl_object_may_outlive_its_engine(tmp_path: Path) -> None:
    engine = choose.new_engine(Authority(tmp_path).client(), False, "localhost")
    ssl_object = engine.ssl_object
    del engine
    with pytest.raises(ssl.SSLError):
        ssl_object.do_handshake()


@needs_direct
def test_the_direct_engine_takes_no_other_object(tmp_path: Path) -> None:
    context = Authority(tmp_path).client()
    bios = ssl.MemoryBIO(), ssl.MemoryBIO()
    made = context.wrap_bio(*bios, server_hostname="localhost")
    with pytest.raises(TypeError, match="no SSLObject"):
        DirectEngine(made, ssl.MemoryBIO(), bios[1], False)
    with pytest.raises(TypeError, match="no SSLObject"):
        DirectEngine(object(), *bios, False)  # type: ignore[arg-type]


class Below(asyncio.Transport):
    """The transport below a TLS transport: what is written is kept."""

    def __init__(self) -> None:
        super().__init__()
        self.written = bytearray()

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += data

    def abort(self) -> None:
        pass


@pytest.mark.parametrize("size", [1, 100_000])
def test_what_was_received_and_read_is_let_go(
    loop: ringloop.EventLoop, tmp_path: Path, engine: str, size: int
) -> None:
    authority = Authority(tmp_path)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    peer = authority.server().wrap_bio(incoming, outgoing, server_side=True)
    below = Below()
    got = bytearray()

    class Protocol(asyncio.Protocol):
        def data_received(self, data: bytes) -> None:
            got.extend(data)

    tls = TLSTransport(loop, Protocol(), authority.client(), None, server_hostname="localhost")
    tls.connection_made(below)
    while True:
        incoming.write(bytes(below.written))
        below.written.clear()
        try:
            peer.do_handshake()
            break
        except ssl.SSLWantReadError:
            tls.data_received(outgoing.read())
    for i in range(0, size, 10_000):
        peer.write(bytes(min(10_000, size - i)))
    received = outgoing.read()
    references = sys.getrefcount(received)
    tls.data_received(received)
    assert got == bytes(size)
    assert sys.getrefcount(received) == references
    tls.abort()
    tls.connection_lost(None)


IDLE = """
import asyncio, ssl, sys, psutil, ringloop

async def main():
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    client = ssl.create_default_context()
    server.load_cert_chain(sys.argv[1])
    server.num_tickets = 0
    client.check_hostname = False
    client.verify_mode = ssl.CERT_NONE

    class Echo(asyncio.Protocol):
        def connection_made(self, transport):
            self.transport = transport
        def data_received(self, data):
            self.transport.write(data)

    class Client(Echo):
        def data_received(self, data):
            self.got.set_result(data)

    loop = asyncio.get_running_loop()
    listening = await loop.create_server(Echo, "127.0.0.1", 0, ssl=server)
    address = listening.sockets[0].getsockname()
    clients = []

    async def more(n):
        for _ in range(n):
            _, protocol = await loop.create_connection(Client, *address, ssl=client)
            protocol.got = loop.create_future()
            protocol.transport.write(b"x" * 10_000)
            await asyncio.sleep(0)
            clients.append(protocol)

    await more(20)
    before = psutil.Process().memory_info().rss
    await more(200)
    print((psutil.Process().memory_info().rss - before) // 400)

loop = ringloop.new_event_loop if sys.argv[2] == "ringloop" else asyncio.SelectorEventLoop
with asyncio.Runner(loop_factory=loop) as runner:
    runner.get_loop().set_exception_handler(lambda *args: None)
    runner.run(main())
"""


@pytest.mark.measures_memory
def test_an_idle_connection_holds_little_memory(tmp_path: Path, engine: str) -> None:
    """Of both ends, with what libssl keeps. asyncio's own takes some 300 KiB."""
    certificate = str(Authority(tmp_path).issue("localhost"))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", IDLE, certificate, "ringloop"],
        env=os.environ | {"RINGLOOP_TLS": engine},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 100_000
