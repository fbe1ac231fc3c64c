"""Scenarios without connections: datagrams, children, pipes, time, threads, signals, names."""

from __future__ import annotations

import asyncio
import concurrent.futures
import dataclasses
import os
import signal
import socket
import threading
from pathlib import Path
from typing import Any

import drivers
import ringloop
from soak.pattern import Pattern
from soak.scene import EXECUTOR_THREADS, KEY_SIZE, Scene, Tally, Wrong, settle
from soak.streams import pair, random_host
from soak.talk import key_bytes

NUMBER_SIZE = 4  # bytes

# -- datagrams -----------------------------------------------------------------------


def datagram(pattern: Pattern, number: int, size: int) -> bytes:
    """A datagram that says who sent it, which it is, and what it must hold."""
    return (
        key_bytes(pattern.key) + number.to_bytes(NUMBER_SIZE, "big") + pattern.piece(number, size)
    )


def check_datagram(scene: Scene, data: bytes, pattern: Pattern, sizes: list[int]) -> None:
    key = int.from_bytes(data[:KEY_SIZE], "big")
    number = int.from_bytes(data[KEY_SIZE : KEY_SIZE + NUMBER_SIZE], "big")
    body = data[KEY_SIZE + NUMBER_SIZE :]
    if key != pattern.key:
        raise Wrong(f"a datagram of {key} was delivered to {pattern.key}")
    if number >= len(sizes) or len(body) != sizes[number]:
        raise Wrong(f"datagram {number} of {key} has {len(body)} bytes, not as it was sent")
    pattern.check(number, body)
    scene.tally.datagrams += 1
    scene.tally.bytes_checked += len(data)


class EchoDatagrams(asyncio.DatagramProtocol):
    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        if addr:
            self.transport.sendto(data, addr)


class SomeDatagrams(asyncio.DatagramProtocol):
    """Takes what comes back."""

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.pattern = Pattern(scene.tools.new_key())
        self.sizes: list[int] = []
        self.lost = scene.loop.create_future()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: Any) -> None:
        check_datagram(self.scene, data, self.pattern, self.sizes)

    def connection_lost(self, exc: Exception | None) -> None:
        settle(self.lost)


async def datagrams(scene: Scene) -> None:
    """UDP and Unix datagrams by transports: an echo server, and clients that check."""
    unix = scene.chance(0.3)
    family = socket.AF_UNIX if unix else socket.AF_INET
    paths = []

    def new_address() -> Any:
        if not unix:
            return (random_host(scene), 0)
        paths.append(scene.new_path("dgram"))
        return paths[-1]

    transports: list[Any] = []
    try:
        server, _ = await scene.loop.create_datagram_endpoint(
            EchoDatagrams, local_addr=new_address(), family=family
        )
        transports.append(server)
        address = server.get_extra_info("sockname")
        clients = []
        for _ in range(scene.random.randint(1, 4)):
            connected = scene.chance(0.5)
            local = new_address() if unix or not connected else None
            transport, client = await scene.loop.create_datagram_endpoint(
                lambda: SomeDatagrams(scene),
                local_addr=local,
                remote_addr=address if connected else None,
                family=family,
            )
            transports.append(transport)
            clients.append((client, None if connected else address))
        for _ in range(scene.size(200)):
            client, to = scene.random.choice(clients)
            size = scene.size(60_000)
            message = datagram(client.pattern, len(client.sizes), size)
            client.sizes.append(size)
            client.transport.sendto(message, to)
            if scene.chance(0.4):
                await scene.nap()
        await asyncio.sleep(0.01)
        for client, _ in clients:
            client.transport.close()
            await client.lost
    finally:
        for transport in transports:
            if not transport.is_closing():
                transport.abort()
        for path in paths:
            Path(path).unlink(missing_ok=True)


async def sock_datagrams(scene: Scene) -> None:
    """UDP by sock_sendto(), sock_recvfrom() and sock_recvfrom_into()."""
    loop = scene.loop
    pattern = Pattern(scene.tools.new_key())
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other,
    ):
        for sock in (one, other):
            sock.setblocking(False)
            sock.bind((random_host(scene), 0))
        buffer = bytearray(65536)
        sizes = []
        for number in range(scene.random.randint(1, 20)):
            sizes.append(scene.size(40_000))
            await loop.sock_sendto(one, datagram(pattern, number, sizes[-1]), other.getsockname())
            try:
                async with asyncio.timeout(1):
                    if scene.chance(0.5):
                        data, sender = await loop.sock_recvfrom(other, 65536)
                    else:
                        n, sender = await loop.sock_recvfrom_into(other, buffer)
                        data = bytes(buffer[:n])
            except TimeoutError:
                continue  # lost
            if sender != one.getsockname():
                raise Wrong(f"a datagram of {one.getsockname()} came from {sender}")
            check_datagram(scene, data, pattern, sizes)


# -- children and pipes --------------------------------------------------------------


async def children(scene: Scene) -> None:
    """`cat` echoes; or it is killed; or a shell says how it ended."""
    how = scene.random.choice(("echo", "echo", "kill", "status", "communicate"))
    PIPE = asyncio.subprocess.PIPE  # noqa: N806
    if how == "status":
        status = scene.random.randrange(100)
        process = await asyncio.create_subprocess_exec("sh", "-c", f"exit {status}")
        wanted = status
    else:
        process = await asyncio.create_subprocess_exec("cat", stdin=PIPE, stdout=PIPE)
        wanted = 0
    try:
        if how == "communicate":
            data = Pattern(scene.tools.new_key()).piece(0, scene.size(300_000))
            output, _ = await process.communicate(data)
            if output != data:
                raise Wrong(f"communicate() gave {len(output)} other bytes for {len(data)}")
            scene.tally.bytes_checked += len(data)
        elif how == "echo":
            await echo(scene, process)
        elif how == "kill":
            assert process.stdin is not None
            process.stdin.write(bytes(scene.size(300_000)))
            await scene.nap()
            process.kill()
            wanted = -signal.SIGKILL
            # wait() waits for the pipes, too, and one is not done with before it is read.
            assert process.stdout is not None
            await process.stdout.read()
        if await process.wait() != wanted:
            raise Wrong(f"child ended with {process.returncode}, not {wanted}")
    finally:
        if process.returncode is None:
            process.kill()
        if process.stdin is not None:
            process.stdin.close()
        if process.stdout is not None:
            # A pipe is done with when its end was read.
            await process.stdout.read()
        await process.wait()


async def echo(scene: Scene, process: asyncio.subprocess.Process) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    pattern = Pattern(scene.tools.new_key())
    total = scene.size(1 << 20)
    stdin, stdout = process.stdin, process.stdout

    async def send() -> None:
        at = 0
        while at < total:
            n = min(total - at, 1 + scene.size(100_000))
            stdin.write(pattern.piece(at, n))
            at += n
            await stdin.drain()
            if scene.chance(0.2):
                await scene.nap()
        stdin.close()

    async def receive() -> None:
        at = 0
        while data := await stdout.read(scene.read_size(100_000)):
            pattern.check(at, data)
            at += len(data)
            scene.tally.bytes_checked += len(data)
            if scene.chance(0.05):
                await scene.nap()
        if at != total:
            raise Wrong(f"cat gave {at} bytes of {total}")

    with scene.tally.connection():
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(send())
            tasks.create_task(receive())


class PipeReader(asyncio.Protocol):
    """Checks what comes out of a pipe."""

    def __init__(self, scene: Scene, key: int) -> None:
        self.scene = scene
        self.pattern = Pattern(key)
        self.at = 0
        self.eof = False
        self.lost = scene.loop.create_future()
        self.wrong: Exception | None = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        try:
            self.pattern.check(self.at, data)
            if self.eof:
                raise Wrong("data after EOF in a pipe")
        except Exception as exc:
            self.wrong = self.wrong or exc
        self.at += len(data)
        self.scene.tally.bytes_checked += len(data)
        if self.scene.chance(0.1):
            self.transport.pause_reading()
            self.scene.loop.call_later(
                self.scene.random.uniform(0, 0.01), self.transport.resume_reading
            )

    def eof_received(self) -> None:
        self.eof = True

    def connection_lost(self, exc: Exception | None) -> None:
        settle(self.lost)


class PipeWriter(asyncio.BaseProtocol):
    """Counts nothing, waits when it is told to."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.may_write = asyncio.Event()
        self.may_write.set()
        self.lost = loop.create_future()

    def pause_writing(self) -> None:
        self.may_write.clear()

    def resume_writing(self) -> None:
        self.may_write.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.may_write.set()
        settle(self.lost)


async def pipes(scene: Scene) -> None:
    """A pipe, written and read by pipe transports; at times the reader goes away."""
    loop = scene.loop
    key = scene.tools.new_key()
    pattern = Pattern(key)
    total = scene.size(1 << 20)
    leaves = scene.chance(0.2)
    r, w = os.pipe()
    # From the call on they belong to a transport, even if that fails.
    ours = [os.fdopen(w, "wb", 0), os.fdopen(r, "rb", 0)]
    reading: Any = None
    writing: Any = None
    try:
        reading, reader = await loop.connect_read_pipe(lambda: PipeReader(scene, key), ours.pop())
        writing, writer = await loop.connect_write_pipe(lambda: PipeWriter(loop), ours.pop())
        at = 0
        while at < total and not writing.is_closing():
            n = min(total - at, 1 + scene.size(100_000))
            writing.write(pattern.piece(at, n))
            at += n
            await writer.may_write.wait()
            if scene.chance(0.2):
                await scene.nap()
            if leaves and scene.chance(0.1):
                reading.close()
        writing.write_eof() if scene.chance(0.5) else writing.close()
        await writer.lost
        await reader.lost
        if reader.wrong:
            raise reader.wrong
        if not leaves and (reader.at != total or not reader.eof):
            raise Wrong(f"{reader.at} bytes of {total} came out of a pipe, EOF {reader.eof}")
    finally:
        for end in ours:
            end.close()
        if writing is not None and not writing.is_closing():
            writing.abort()
        if reading is not None:
            reading.close()


# -- time, threads, signals, names ---------------------------------------------------


async def timers(scene: Scene) -> None:
    """Timers run in order, none early, none that was cancelled."""
    loop = scene.loop
    ran: list[float] = []
    early: list[float] = []
    cancelled: list[float] = []

    def due(when: float, dead: list[bool]) -> None:
        ran.append(when)
        if dead[0]:
            cancelled.append(when)
        if loop.time() < when - 0.001:
            early.append(when)

    handles = []
    for _ in range(scene.size(300)):
        when = loop.time() + scene.random.uniform(0, 0.05)
        dead = [False]
        handles.append((loop.call_at(when, due, when, dead), dead, when))
        if scene.chance(0.05):
            await scene.nap()
    left = 0
    for handle, dead, when in handles:
        if scene.chance(0.5):
            dead[0] = when not in ran
            handle.cancel()
        left += when not in ran and not dead[0]
    expected = len(ran) + left
    await asyncio.sleep(0.06)
    for _ in range(100):
        if len(ran) >= expected:
            break
        await asyncio.sleep(0.01)
    if early or cancelled or len(ran) != expected:
        raise Wrong(
            f"{len(early)} timers early, {len(cancelled)} after their cancellation, "
            f"{len(ran)} of {expected} ran"
        )


async def threads(scene: Scene) -> None:
    """Threads call in: everything arrives once, in each thread's order."""
    loop = scene.loop
    seen: dict[int, list[int]] = {}
    done = [loop.create_future() for _ in range(scene.random.randint(1, 3))]
    count = scene.size(500)

    def work(me: int) -> None:
        for i in range(count):
            loop.call_soon_threadsafe(seen.setdefault(me, []).append, i)
        loop.call_soon_threadsafe(settle, done[me])

    workers = [threading.Thread(target=work, args=(i,)) for i in range(len(done))]
    for worker in workers:
        worker.start()
    try:
        await asyncio.gather(*done)
    finally:
        # They may wait for the GIL only.
        for worker in workers:
            worker.join()
    for me in range(len(done)):
        if seen.get(me, []) != list(range(count)):
            raise Wrong(f"thread {me} called {count} times, {len(seen.get(me, []))} arrived")


async def executor(scene: Scene) -> None:
    """run_in_executor() and run_coroutine_threadsafe() from there."""
    loop = scene.loop

    async def double(x: int) -> int:
        await scene.nap()
        return 2 * x

    def work(x: int) -> int:
        return asyncio.run_coroutine_threadsafe(double(x), loop).result(20) + 1

    for x in range(scene.random.randint(1, 5)):
        if await loop.run_in_executor(None, work, x) != 2 * x + 1:
            raise Wrong("a wrong result from the executor")


async def names(scene: Scene) -> None:
    """localhost has an address, and can be connected to by name."""
    loop = scene.loop
    server = await asyncio.start_server(
        lambda _r, w: w.close(), "127.0.0.1", 0, start_serving=False
    )
    try:
        # Not at once: a server whose start is cancelled goes on without us.
        await server.start_serving()
        port = server.sockets[0].getsockname()[1]
        found = await loop.getaddrinfo(
            "localhost", port, family=socket.AF_INET, type=socket.SOCK_STREAM
        )
        if ("127.0.0.1", port) not in [entry[4] for entry in found]:
            raise Wrong(f"localhost is {found}")
        name, service = await loop.getnameinfo(("127.0.0.1", port), socket.NI_NUMERICHOST)
        if name != "127.0.0.1":
            raise Wrong(f"127.0.0.1 is called {name}:{service}")
        reader, writer = await asyncio.open_connection("localhost", port)
        try:
            if await reader.read():
                raise Wrong("data from a server that sends none")
        finally:
            writer.close()
    finally:
        server.close()


async def signals(scene: Scene) -> None:
    """A handler runs for a signal. It is one scenario at a time: handlers are the process's."""
    if not scene.tools.in_main_thread:
        return
    async with scene.tools.signal_lock:
        arrived = asyncio.Event()
        arrived.set()
        scene.loop.add_signal_handler(signal.SIGUSR1, arrived.set)
        try:
            for _ in range(scene.random.randint(1, 5)):
                arrived.clear()
                os.kill(os.getpid(), signal.SIGUSR1)
                await arrived.wait()
        finally:
            # After a cancellation one may be on its way.
            await arrived.wait()
            scene.loop.remove_signal_handler(signal.SIGUSR1)


async def other_loops(scene: Scene) -> None:
    """Loops in other threads, one after the other: each has a conversation of its own."""
    tools = scene.tools
    seed = scene.random.getrandbits(32)
    twice = scene.chance(0.5)
    tally = Tally()

    def run(loop: ringloop.EventLoop) -> None:
        mine = dataclasses.replace(tools, loop=loop, tally=tally, in_main_thread=False)
        loop.run_until_complete(pair(Scene(f"{scene.name}/pair", seed, mine)))

    def live() -> None:
        loop = ringloop.EventLoop(drivers.make(tools.driver))
        loop.set_exception_handler(tally.on_exception)
        try:
            run(loop)
            if twice:
                # Another thread takes it over.
                with concurrent.futures.ThreadPoolExecutor(1, EXECUTOR_THREADS) as second:
                    second.submit(run, loop).result()
        finally:
            loop.close()

    await asyncio.shield(scene.loop.run_in_executor(None, live))
    scene.tally.add(tally)
