"""Scenarios with connections: every kind of server with every kind of client."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

from soak.channels import (
    BufferedChannel,
    Channel,
    ProtocolChannel,
    SocketChannel,
    StreamChannel,
    WatchChannel,
)
from soak.scene import KEY_SIZE, settle
from soak.talk import BROKEN, Plan, converse, new_plan

if TYPE_CHECKING:
    from collections.abc import Callable

    from soak.scene import Scene

    OnChannel = Callable[[Channel], None]

PROTOCOLS: tuple[Any, ...] = (ProtocolChannel, BufferedChannel)


class Meeting:
    """A server, its clients, and who talks with whom."""

    def __init__(self, scene: Scene, tasks: asyncio.TaskGroup, channels: list[Channel]) -> None:
        self.scene = scene
        self.tasks = tasks
        self.plans: dict[int, Plan] = {}
        self.over = False
        self.nameless: list[str] = []
        self.channels = channels

    def new_plan(self, half_close: bool = True) -> Plan:
        plan = new_plan(self.scene, half_close)
        self.plans[plan.keys[0]] = plan
        return plan

    def arrived(self, channel: Channel) -> None:
        """The server has a connection."""
        if self.over:
            channel.dispose()  # a client gave up before it was accepted
        else:
            self.channels.append(channel)
            self.tasks.create_task(self.serve(channel))

    async def serve(self, channel: Channel) -> None:
        try:
            key = await channel.recv_exactly(KEY_SIZE)
        except BROKEN as exc:
            # A client that hung up at once; others find out that nobody answers.
            self.nameless.append(f"{channel!r}: {exc!r}")
            channel.dispose()
            return
        except BaseException:
            channel.dispose()
            raise
        plan = self.plans.pop(int.from_bytes(key, "big"))
        await converse(self.scene, channel, plan, 1)


async def accept(scene: Scene, listening: socket.socket, arrived: OnChannel) -> None:
    """A server by sock_accept()."""
    while True:
        sock, _ = await scene.loop.sock_accept(listening)
        how = scene.random.choice((SocketChannel, WatchChannel, *PROTOCOLS))
        if how in PROTOCOLS:
            with contextlib.suppress(*BROKEN):
                await scene.loop.connect_accepted_socket(
                    lambda how=how: how(scene, arrived),  # type: ignore[misc]
                    sock,
                )
        else:
            arrived(how(scene, sock))


def random_host(scene: Scene) -> str:
    """Of all addresses of this machine, so that ports do not run out."""
    octets = [scene.random.randint(1, 250) for _ in range(3)]
    return "127." + ".".join(map(str, octets))


def listening_socket(scene: Scene, unix: bool) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX if unix else socket.AF_INET)
    try:
        sock.setblocking(False)
        sock.bind(scene.new_path("sock") if unix else (random_host(scene), 0))
        sock.listen(100)
    except BaseException:
        sock.close()
        raise
    return sock


async def serve(scene: Scene, sock: socket.socket, arrived: OnChannel, tls: bool) -> Any:
    """A server on that socket by transports."""
    unix = sock.family == socket.AF_UNIX
    context = scene.tools.server_tls if tls else None
    if scene.chance(0.4):

        def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            arrived(StreamChannel(scene, reader, writer))

        start: Any = asyncio.start_unix_server if unix else asyncio.start_server
        return await start(connected, sock=sock, ssl=context, start_serving=False)
    how = scene.random.choice(PROTOCOLS)
    create: Any = scene.loop.create_unix_server if unix else scene.loop.create_server
    return await create(lambda: how(scene, arrived), sock=sock, ssl=context, start_serving=False)


async def connect(scene: Scene, address: Any, tls: bool) -> Channel:
    """A connection to `address`, by any of the means."""
    unix = isinstance(address, str)
    how = scene.random.choice(
        (*PROTOCOLS, *PROTOCOLS, "streams", "streams")
        if tls
        else (*PROTOCOLS, "streams", SocketChannel, WatchChannel)
    )
    if how in (SocketChannel, WatchChannel):
        sock = socket.socket(socket.AF_UNIX if unix else socket.AF_INET)
        sock.setblocking(False)
        try:
            await scene.loop.sock_connect(sock, address)
        except BaseException:
            sock.close()
            raise
        return how(scene, sock)  # type: ignore[no-any-return]
    options: dict[str, Any] = {}
    if tls:
        options = {"ssl": scene.tools.client_tls, "server_hostname": "localhost"}
    where = (address,) if unix else address
    if how == "streams":
        limit = 1 + scene.size(200_000)
        open_connection: Any = asyncio.open_unix_connection if unix else asyncio.open_connection
        return StreamChannel(scene, *await open_connection(*where, limit=limit, **options))
    create: Any = scene.loop.create_unix_connection if unix else scene.loop.create_connection
    if unix:
        _, channel = await create(lambda: how(scene), address, **options)
    else:
        _, channel = await create(lambda: how(scene), *address, **options)
    return channel  # type: ignore[no-any-return]


async def client(scene: Scene, meeting: Meeting, address: Any, tls: bool) -> None:
    plan = meeting.new_plan(half_close=not tls)
    channel = await connect(scene, address, tls)
    try:
        await converse(scene, channel, plan, 0)
    except Exception as exc:
        exc.add_note(f"at the server ended before they had a name: {meeting.nameless}")
        raise


async def connections(scene: Scene, unix: bool, tls: bool) -> None:
    """A server and some clients, which talk with it at the same time."""
    sock = listening_socket(scene, unix)
    address = sock.getsockname()
    by_hand = not tls and scene.chance(0.3)
    server = accepting = None
    arrived: list[Channel] = []
    try:
        async with asyncio.TaskGroup() as tasks:
            meeting = Meeting(scene, tasks, arrived)
            try:
                if by_hand:
                    accepting = tasks.create_task(accept(scene, sock, meeting.arrived))
                else:
                    # In two steps: a server whose start is cancelled goes on without us.
                    server = await serve(scene, sock, meeting.arrived, tls)
                    await server.start_serving()
                clients = [
                    tasks.create_task(client(scene, meeting, address, tls))
                    for _ in range(scene.random.choice((1, 1, 2, 5)))
                ]
                await asyncio.wait(clients)
                # What they left in the backlog.
                await asyncio.sleep(0.01)
            finally:
                meeting.over = True
                if accepting is not None:
                    accepting.cancel()
                if server is not None:
                    server.close()
        if server is not None:
            await server.wait_closed()
    finally:
        # A task that is cancelled before it begins closes nothing.
        for channel in arrived:
            channel.dispose()
        sock.close()
        if unix:
            Path(address).unlink(missing_ok=True)


async def tcp(scene: Scene) -> None:
    """TCP: protocols, buffered protocols, streams, sock_*, add_reader."""
    await connections(scene, unix=False, tls=False)


async def unix(scene: Scene) -> None:
    """The same over Unix sockets."""
    await connections(scene, unix=True, tls=False)


async def tls(scene: Scene) -> None:
    """TLS over TCP and Unix sockets."""
    await connections(scene, unix=scene.chance(0.3), tls=True)


async def header(channel: Channel, plan: Plan) -> bool:
    """Skip the key that a stream begins with. False: the connection was broken as planned."""
    try:
        await channel.recv_exactly(KEY_SIZE)
    except BROKEN:
        channel.dispose()
        if plan.violence is None:
            raise
        return False
    return True


async def pair(scene: Scene) -> None:
    """A socket pair, both ends of any kind."""
    ours = list(socket.socketpair())
    ends = []
    try:
        for _ in range(2):
            # From here on it belongs to whoever gets it, even if that fails.
            sock = ours.pop()
            sock.setblocking(False)
            how = scene.random.choice((SocketChannel, WatchChannel, *PROTOCOLS, "streams"))
            if how == "streams":
                ends.append(StreamChannel(scene, *await asyncio.open_unix_connection(sock=sock)))
            elif how in PROTOCOLS:
                _, channel = await scene.loop.create_unix_connection(
                    lambda how=how: how(scene),  # type: ignore[misc]
                    sock=sock,
                )
                ends.append(channel)
            else:
                ends.append(how(scene, sock))
        plan = new_plan(scene)

        async def serve() -> None:
            if await header(ends[1], plan):
                await converse(scene, ends[1], plan, 1)

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(converse(scene, ends[0], plan, 0))
            tasks.create_task(serve())
    finally:
        for end in ends:
            end.dispose()
        for sock in ours:
            sock.close()


async def start_tls(scene: Scene) -> None:
    """A connection that turns to TLS after a word in clear."""
    plan = new_plan(scene, half_close=False)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        channel = StreamChannel(scene, reader, writer)
        try:
            await reader.readexactly(KEY_SIZE)
            writer.write(b"go")
            await writer.start_tls(scene.tools.server_tls)
            channel.can_half_close = False
            if not await header(channel, plan):
                return
        except BROKEN:
            # Of TLS 1.3 the client is through with the handshake first.
            channel.dispose()
            if plan.violence is None:
                raise
            return
        except BaseException:
            channel.dispose()
            raise
        await converse(scene, channel, plan, 1)

    served: asyncio.Future[None] = scene.loop.create_future()
    writers: list[asyncio.StreamWriter] = []
    over = False

    async with asyncio.TaskGroup() as tasks:

        def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            if writers or over:
                writer.transport.abort()
                return
            writers.append(writer)
            tasks.create_task(serve(reader, writer)).add_done_callback(lambda _: settle(served))

        server = await asyncio.start_server(connected, random_host(scene), 0, start_serving=False)
        try:
            await server.start_serving()
            reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
            channel = StreamChannel(scene, reader, writer)
            try:
                writer.write(bytes(KEY_SIZE))
                await reader.readexactly(2)
                await writer.start_tls(scene.tools.client_tls, server_hostname="localhost")
                channel.can_half_close = False
            except BaseException:
                channel.dispose()
                raise
            await converse(scene, channel, plan, 0)
            await served
        finally:
            server.close()
            # Its task closes nothing if it is cancelled before it begins.
            for writer in writers:
                writer.transport.abort()
            over = True
