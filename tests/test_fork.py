"""os.fork() with a live loop: the child cannot use it, and the parent does not notice."""

from __future__ import annotations

import asyncio
import json
import os
import select
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
import traceback
import warnings
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

import ringloop

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TIMEOUT_S = 20


class Child:
    """A forked child that runs `work`, sends its answer as JSON and exits by os._exit.

    With `gate=True` it first answers "ready" and waits for `release()`.
    """

    def __init__(self, work: Callable[[], Any], *, gate: bool = False) -> None:
        self.answers, answer = os.pipe()
        wait, self.gate = os.pipe()
        with warnings.catch_warnings():
            # From 3.12 on for a process with several threads, which is what is tested.
            warnings.simplefilter("ignore", DeprecationWarning)
            self.pid = os.fork()
        if self.pid == 0:
            self._be_the_child(work, answer, wait if gate else None)
        os.close(answer)
        os.close(wait)
        self.status: int | None = None

    @staticmethod
    def _be_the_child(work: Callable[[], Any], answer: int, wait: int | None) -> NoReturn:
        status = 1
        try:
            if wait is not None:
                os.write(answer, b"ready\n")
                os.read(wait, 1)
            os.write(answer, json.dumps({"result": work()}).encode() + b"\n")
            status = 0
        except BaseException:
            os.write(answer, json.dumps({"error": traceback.format_exc()}).encode() + b"\n")
        finally:
            os._exit(status)

    def line(self) -> str:
        """The next line that the child writes."""
        line = b""
        deadline = time.monotonic() + TIMEOUT_S
        while not line.endswith(b"\n"):
            left = deadline - time.monotonic()
            if not select.select([self.answers], [], [], max(0, left))[0]:
                self.kill()
                pytest.fail("the forked child hangs")
            if not (piece := os.read(self.answers, 1)):
                pytest.fail(f"the forked child died (wait status {self.wait()})")
            line += piece
        return line.decode().strip()

    def release(self) -> None:
        os.write(self.gate, b"x")

    def result(self) -> Any:
        """What `work` gave, after the child has exited."""
        answer = json.loads(self.line())
        assert self.wait() == 0 or "error" in answer
        if "error" in answer:
            pytest.fail(f"in the child:\n{answer['error']}")
        return answer["result"]

    def wait(self) -> int:
        """The child's exit status; the child is killed if it does not exit."""
        if self.status is None:
            deadline = time.monotonic() + TIMEOUT_S
            while True:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                if pid:
                    break
                if time.monotonic() > deadline:
                    self.kill()
                    pytest.fail("the forked child does not exit")
                time.sleep(0.001)
            self.status = os.waitstatus_to_exitcode(status)
            os.close(self.answers)
            os.close(self.gate)
        return self.status

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        self.wait()


class Echo(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.transport.write(data)


class Service:
    """A loop with all that can be in flight: a server, connections, a reader, a timer."""

    def __init__(self, loop: ringloop.EventLoop) -> None:
        self.loop = loop
        self.ticks = 0
        self.tick()
        self.watched, self.trigger = socket.socketpair()
        self.watched.setblocking(False)
        self.woken = 0
        loop.add_reader(self.watched, self.readable)
        self.server = loop.run_until_complete(loop.create_server(Echo, "127.0.0.1", 0))
        self.address = self.server.sockets[0].getsockname()
        self.clients: list[socket.socket] = []
        for _ in range(3):
            self.clients.append(self.connect())
        self.check()

    def tick(self) -> None:
        self.ticks += 1
        self.timer = self.loop.call_later(0.002, self.tick)

    def readable(self) -> None:
        self.woken += len(self.watched.recv(100))

    def connect(self) -> socket.socket:
        client = socket.create_connection(self.address)
        client.setblocking(False)
        return client

    async def echo(self, client: socket.socket, data: bytes) -> bytes:
        await self.loop.sock_sendall(client, data)
        received = b""
        while len(received) < len(data):
            piece = await self.loop.sock_recv(client, 65536)
            assert piece, "the connection was closed"
            received += piece
        return received

    def check(self) -> None:
        """Everything works: old connections, a new one, the reader, the timer."""

        async def check() -> None:
            async with asyncio.timeout(TIMEOUT_S):
                self.clients.append(self.connect())
                for i, client in enumerate(self.clients):
                    data = bytes([i]) * (100 if i % 2 else 50_000)
                    assert await self.echo(client, data) == data
                ticks, woken = self.ticks, self.woken
                self.trigger.send(b"x")
                while self.woken != woken + 1 or self.ticks < ticks + 2:
                    await asyncio.sleep(0.001)

        self.loop.run_until_complete(check())

    def close(self) -> None:
        self.timer.cancel()
        self.loop.remove_reader(self.watched)
        for sock in (self.watched, self.trigger, *self.clients):
            sock.close()
        self.server.close()
        self.loop.run_until_complete(asyncio.wait_for(self.server.wait_closed(), TIMEOUT_S))


@pytest.fixture
def service(loop: ringloop.EventLoop) -> Iterator[Service]:
    service = Service(loop)
    yield service
    service.close()


def never() -> None: ...


CALLS: dict[str, Callable[[Any, socket.socket], Any]] = {
    "call_soon": lambda loop, _: loop.call_soon(never),
    "call_soon_threadsafe": lambda loop, _: loop.call_soon_threadsafe(never),
    "call_later": lambda loop, _: loop.call_later(1, never),
    "call_at": lambda loop, _: loop.call_at(1, never),
    "run_forever": lambda loop, _: loop.run_forever(),
    "run_until_complete": lambda loop, _: loop.run_until_complete(loop.create_future()),
    "run_in_executor": lambda loop, _: loop.run_in_executor(None, never),
    "add_reader": lambda loop, sock: loop.add_reader(sock, never),
    "add_writer": lambda loop, sock: loop.add_writer(sock, never),
    "add_signal_handler": lambda loop, _: loop.add_signal_handler(signal.SIGUSR1, never),
    "create_connection": lambda loop, sock: loop.create_connection(Echo, sock=sock).send(None),
    "create_server": lambda loop, _: loop.create_server(
        Echo, sock=socket.create_server(("127.0.0.1", 0))
    ).send(None),
    "sock_recv": lambda loop, sock: loop.sock_recv(sock, 1).send(None),
    "sock_accept": lambda loop, _: loop.sock_accept(non_blocking_listener()).send(None),
}


def non_blocking_listener() -> socket.socket:
    sock = socket.create_server(("127.0.0.1", 0))
    sock.setblocking(False)
    return sock


def test_every_call_on_an_inherited_loop_says_that_it_is_the_parents(service: Service) -> None:
    def work() -> dict[str, str]:
        outcomes = {}
        for name, call in CALLS.items():
            sock, other = socket.socketpair()
            sock.setblocking(False)
            try:
                call(service.loop, sock)
                outcomes[name] = "no error"
            except BaseException as exc:
                outcomes[name] = f"{type(exc).__name__}: {exc}"
            other.close()
        return outcomes

    outcomes = Child(work).result()
    wrong = {
        name: said
        for name, said in outcomes.items()
        if not said.startswith("RuntimeError: ") or "fork" not in said or "child" not in said
    }
    assert wrong == {}
    assert set(outcomes) == set(CALLS)
    service.check()


def test_an_inherited_loop_and_its_transports_can_be_closed_in_the_child(
    service: Service,
) -> None:
    def work() -> str:
        service.server.close()
        service.loop.close()
        service.loop.close()
        assert service.loop.is_closed()
        return "closed"

    assert Child(work).result() == "closed"
    service.check()


async def use_a_loop() -> str:
    """Sockets, a timer and a thread on whatever loop runs this."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, ringloop.EventLoop)
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    assert await reader.read() == b""
    writer.close()
    server.close()
    await asyncio.sleep(0.001)
    return await loop.run_in_executor(None, str, "used")


def test_a_child_runs_a_loop_of_its_own(service: Service, driver: str) -> None:
    child = Child(lambda: ringloop.run(use_a_loop(), driver=driver), gate=True)
    assert child.line() == "ready"
    service.check()
    child.release()
    assert child.result() == "used"
    service.check()


def test_the_parent_goes_on_while_children_live_and_when_they_exit(service: Service) -> None:
    children = [Child(never, gate=True) for _ in range(5)]
    for child in children:
        assert child.line() == "ready"
    service.check()
    for child in children:
        child.release()
        child.result()
        service.check()


def test_a_killed_child_does_not_disturb_the_parent(service: Service) -> None:
    child = Child(never, gate=True)
    assert child.line() == "ready"
    child.kill()
    assert child.wait() == -signal.SIGKILL
    service.check()


def test_a_fork_from_inside_a_callback_leaves_the_parent_running(service: Service) -> None:
    children: list[Child] = []
    for schedule in (
        service.loop.call_soon,
        lambda callback: service.loop.call_later(0.001, callback),
    ):
        schedule(lambda: children.append(Child(lambda: "child of a callback")))
        service.check()
    assert [child.result() for child in children] == ["child of a callback"] * 2
    service.check()


def test_a_child_forked_inside_a_callback_runs_a_loop_of_its_own(
    service: Service, driver: str
) -> None:
    children: list[Child] = []

    def work() -> str:
        with pytest.raises(RuntimeError, match="no running event loop"):
            asyncio.get_running_loop()
        return ringloop.run(use_a_loop(), driver=driver)

    async def fork_in_a_task() -> None:
        children.append(Child(work))

    service.loop.run_until_complete(fork_in_a_task())
    service.check()
    assert children[0].result() == "used"


def fork() -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return os.fork()


def said_by_the_child(loop: ringloop.EventLoop) -> str:
    """Run a loop in which somebody forks; how it ended in the child, which came back here."""
    answers, answer = os.pipe()
    parent = os.getpid()
    hooks = sys.get_asyncgen_hooks()
    said = "came out without an error"
    try:
        loop.run_forever()
    except BaseException as exc:
        said = f"{type(exc).__name__}: {exc}"
        if sys.get_asyncgen_hooks() != hooks:
            said += ", with the hooks of the loop"
    finally:
        if os.getpid() != parent:
            os.write(answer, said.encode())
            os._exit(0)
    assert said == "came out without an error"
    os.close(answer)
    assert select.select([answers], [], [], TIMEOUT_S)[0], "the child hangs"
    message = os.read(answers, 1000).decode()
    os.close(answers)
    return message


def check_children(pids: list[int]) -> None:
    assert [os.waitpid(pid, 0)[1] for pid in pids] == [0]


def test_a_child_that_returns_into_the_loop_comes_out_with_the_error(service: Service) -> None:
    """os.fork() in a callback without an exit: the child must not go on as a second parent."""
    pids: list[int] = []
    others, other = os.pipe()
    service.loop.call_soon(lambda: pids.append(fork()))
    service.loop.call_soon(os.write, other, b"x")
    service.loop.call_soon(service.loop.stop)
    message = said_by_the_child(service.loop)
    check_children(pids)
    assert message.startswith("RuntimeError: ")
    assert "fork" in message
    assert os.read(others, 10) == b"x", "the child ran a callback of the parent's, too"
    os.close(others)
    os.close(other)
    service.check()


def test_a_child_forked_by_a_signal_handler_comes_out_with_the_error(
    loop: ringloop.EventLoop,
) -> None:
    """The handler runs when the signal has ended the wait, in no callback."""
    pids: list[int] = []

    def handler(*_: Any) -> None:
        pids.append(fork())
        if pids != [0]:
            loop.stop()

    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    message = said_by_the_child(loop)
    signal.signal(signal.SIGALRM, before)
    check_children(pids)
    assert message.startswith("RuntimeError: ")
    assert "fork" in message


def test_a_child_that_exits_in_the_loop_exits_as_it_wants(loop: ringloop.EventLoop) -> None:
    pids: list[int] = []

    def leave() -> None:
        pids.append(fork())
        if pids == [0]:
            sys.exit(3)
        loop.stop()

    loop.call_soon(leave)
    message = said_by_the_child(loop)
    check_children(pids)
    assert message == "SystemExit: 3"


def test_a_child_does_not_run_the_parents_timers(service: Service) -> None:
    ran: list[int] = []
    timer = service.loop.call_later(0.01, lambda: ran.append(os.getpid()))

    def work() -> list[int]:
        ringloop.run(asyncio.sleep(0.03))
        return ran

    assert Child(work).result() == []
    service.check()
    service.loop.run_until_complete(asyncio.sleep(max(0, timer.when() - service.loop.time())))
    assert ran == [os.getpid()]


def test_a_signal_to_the_child_is_not_written_to_the_parents_loop(
    loop: ringloop.EventLoop, run: Callable[..., Any]
) -> None:
    seen: list[int] = []
    loop.add_signal_handler(signal.SIGUSR1, lambda: seen.append(os.getpid()))
    run(asyncio.sleep(0))

    def work() -> str:
        signal.raise_signal(signal.SIGUSR1)  # asyncio's handler does nothing
        return "alive"

    assert Child(work).result() == "alive"
    run(asyncio.sleep(0.01))
    assert seen == []
    signal.raise_signal(signal.SIGUSR1)
    run(asyncio.sleep(0.01))
    assert seen == [os.getpid()]
    assert loop.remove_signal_handler(signal.SIGUSR1)


def test_a_fork_in_a_process_with_several_threads(service: Service, driver: str) -> None:
    over = threading.Event()
    threads = [threading.Thread(target=over.wait, args=(TIMEOUT_S,)) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        child = Child(lambda: ringloop.run(use_a_loop(), driver=driver))
        assert child.result() == "used"
    finally:
        over.set()
        for thread in threads:
            thread.join()
    service.check()


def test_a_child_of_a_loops_thread_gets_the_error_too(loop: ringloop.EventLoop) -> None:
    """Forked by another thread while the loop runs in this one."""
    said: list[str] = []

    def work() -> str:
        with pytest.raises(RuntimeError, match="fork") as caught:
            loop.call_soon_threadsafe(never)
        assert not loop.is_running()
        return str(caught.value)

    def forker() -> None:
        try:
            said.append(Child(work).result())
        finally:
            loop.call_soon_threadsafe(loop.stop)

    thread = threading.Thread(target=forker)
    loop.call_soon(thread.start)
    loop.run_forever()
    thread.join(TIMEOUT_S)
    assert len(said) == 1


# -- programs ------------------------------------------------------------------------

ECHO_PROGRAM = """
import asyncio, multiprocessing, os, sys, warnings
import ringloop

warnings.simplefilter("error")
warnings.filterwarnings("ignore", category=DeprecationWarning, message=".*fork")

async def echo(reader, writer):
    while data := await reader.read(1000):
        writer.write(data)
    writer.close()

async def ask(streams):
    reader, writer = streams
    writer.write(b"ping")
    assert await reader.readexactly(4) == b"ping"

async def finish(server, streams):
    streams[1].close()
    await streams[1].wait_closed()
    server.close()
    while len(asyncio.all_tasks()) > 1:  # the other end's handler
        await asyncio.sleep(0.001)

async def child_main():
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    streams = await asyncio.open_connection(*server.sockets[0].getsockname())
    await ask(streams)
    await finish(server, streams)
    return os.getpid()

async def parent_main(act):
    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    streams = await asyncio.open_connection(*server.sockets[0].getsockname())
    await ask(streams)
    await act(lambda: ask(streams))
    await ask(streams)
    await finish(server, streams)
    print("parent done")
"""


def run_program(driver: str, body: str, path: Any) -> subprocess.CompletedProcess[str]:
    script = path / "program.py"
    script.write_text(ECHO_PROGRAM + textwrap.dedent(body))
    return subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, "RINGLOOP_DRIVER": driver},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )


def test_a_child_that_exits_with_all_finalizers_does_not_disturb_the_parent(
    driver: str, tmp_path: Any
) -> None:
    done = run_program(
        driver,
        """
        loop = ringloop.new_event_loop()
        asyncio.set_event_loop(loop)
        server = loop.run_until_complete(asyncio.start_server(echo, "127.0.0.1", 0))
        address = server.sockets[0].getsockname()
        streams = loop.run_until_complete(asyncio.open_connection(*address))
        for _ in range(3):
            loop.run_until_complete(ask(streams))
            pid = os.fork()
            if pid == 0:
                warnings.simplefilter("ignore", ResourceWarning)  # it closes nothing
                sys.exit(7)
            loop.run_until_complete(ask(streams))
            _, status = os.waitpid(pid, 0)
            assert os.waitstatus_to_exitcode(status) == 7, status
            loop.run_until_complete(ask(streams))
        loop.run_until_complete(finish(server, streams))
        loop.close()
        print("parent done")
        """,
        tmp_path,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "parent done\n", "")


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing_children_run_loops_of_their_own(
    driver: str, tmp_path: Any, method: str
) -> None:
    done = run_program(
        driver,
        f"""
        def work(pipe):
            pipe.send(ringloop.run(child_main()))
            pipe.close()

        async def act(check):
            context = multiprocessing.get_context("{method}")
            ours, theirs = context.Pipe()
            processes = [context.Process(target=work, args=(theirs,)) for _ in range(2)]
            for process in processes:
                process.start()
                await check()
            loop = asyncio.get_running_loop()
            pids = [await loop.run_in_executor(None, ours.recv) for _ in processes]
            for process in processes:
                await loop.run_in_executor(None, process.join)
                assert process.exitcode == 0, process.exitcode
            assert sorted(pids) == sorted(p.pid for p in processes)

        if __name__ == "__main__":
            ringloop.run(parent_main(act))
        """,
        tmp_path,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "parent done\n", "")
