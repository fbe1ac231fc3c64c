"""A load client: each connection sends its next request when the answer to the last is complete.

It is plain sockets and epoll, one process and one thread, so that it needs little CPU beside the
server that is measured. Where it is the limit all the same, `Window.client_busy` says so.
"""

import json
import select
import socket
import sys
import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Protocol

WARM_UP_S = 0.2
STALL_S = 5.0  # No answer on any connection for so long means that the server hangs.
RECEIVE_BYTES = 16 * 1024
NS_PER_S = 1_000_000_000


class LoadError(Exception):
    """The server gave a wrong answer, or none."""


class Conversation(Protocol):
    """What one connection says, and what it expects to hear."""

    def start(self) -> bytes:
        """Return the first request."""

    def receive(self, data: bytes) -> bytes | None:
        """Take received bytes; return the next request if they complete the answer, else None.

        Raises LoadError if the answer is wrong.
        """


@dataclass(frozen=True)
class Window:
    """What one window measured."""

    connections: int
    requests_per_s: float
    p50_us: float
    p99_us: float
    server_cpu_us: float  # Per request; user and kernel time of all the server's threads.
    client_busy: float  # Share of the window in which this process ran: 1.0 is all of it.
    answers: int  # All that were checked, also before and after the window.


def process_cpu_ns(pid: int) -> int:
    """CPU time of all threads of a process, also of those that have ended.

    It is what /proc/PID/stat counts in ticks of 10 ms, in nanoseconds: Linux makes the id of a
    process's CPU clock from its pid. See clock_getcpuclockid(3), which Python does not have.
    """
    return time.clock_gettime_ns((~pid << 3) | 2)


class _Connection:
    __slots__ = ("conversation", "receive", "recv", "send", "sent_at_ns", "socket")

    def __init__(self, address: tuple[str, int], conversation: Conversation) -> None:
        self.socket = socket.create_connection(address, timeout=STALL_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.conversation = conversation
        # Bound once, not once a request.
        self.recv, self.send, self.receive = (
            self.socket.recv,
            self.socket.send,
            conversation.receive,
        )
        self.sent_at_ns = 0


class _Load:
    """Open connections, each with one request under way."""

    def __init__(self, address: tuple[str, int], conversations: Sequence[Conversation]) -> None:
        self.epoll = select.epoll()
        self.connections: dict[int, _Connection] = {}
        for conversation in conversations:
            connection = _Connection(address, conversation)
            self.connections[connection.socket.fileno()] = connection
            self.epoll.register(connection.socket, select.EPOLLIN)
        for connection in self.connections.values():
            connection.sent_at_ns = time.perf_counter_ns()
            connection.send(connection.conversation.start())

    def ready(self) -> list[tuple[int, int]]:
        events = self.epoll.poll(STALL_S)
        if not events:
            raise LoadError(f"the server sent nothing for {STALL_S:.0f} s")
        return events

    def pump(self, duration_s: float) -> "array[int]":
        """Keep every connection busy for so long; return the latency of each answer."""
        clock, connections = time.perf_counter_ns, self.connections
        latencies_ns = array("Q")
        now = clock()
        end = now + int(duration_s * NS_PER_S)
        while now < end:
            for fd, _ in self.ready():
                connection = connections[fd]
                request = connection.receive(connection.recv(RECEIVE_BYTES))
                if request is None:
                    continue
                now = clock()
                latencies_ns.append(now - connection.sent_at_ns)
                connection.sent_at_ns = now
                # Never short: the answer to the last request has come, so the buffer is empty.
                connection.send(request)
        return latencies_ns

    def finish(self) -> int:
        """Take the answers to the requests under way, close, and return how many they were."""
        waiting = set(self.connections)
        while waiting:
            for fd, _ in self.ready():
                connection = self.connections[fd]
                if connection.receive(connection.recv(RECEIVE_BYTES)) is not None:
                    waiting.remove(fd)
        for connection in self.connections.values():
            connection.socket.close()
        self.epoll.close()
        return len(self.connections)


def _percentile_us(sorted_ns: Sequence[int], percent: int) -> float:
    return sorted_ns[min(len(sorted_ns) - 1, len(sorted_ns) * percent // 100)] / 1000


def measure(
    address: tuple[str, int],
    server_pid: int,
    conversations: Sequence[Conversation],
    window_s: float,
) -> Window:
    """Load a server for one window, after a warm-up, and check all of its answers."""
    load = _Load(address, conversations)
    warm_up = load.pump(WARM_UP_S)

    server_cpu_ns, client_cpu_ns = process_cpu_ns(server_pid), time.process_time_ns()
    started_ns = time.perf_counter_ns()
    latencies_ns = load.pump(window_s)
    elapsed_ns = time.perf_counter_ns() - started_ns
    client_cpu_ns = time.process_time_ns() - client_cpu_ns
    server_cpu_ns = process_cpu_ns(server_pid) - server_cpu_ns

    requests = len(latencies_ns)
    if not requests:
        raise LoadError(f"no answer was complete within {window_s} s")
    in_order = sorted(latencies_ns)
    return Window(
        connections=len(conversations),
        requests_per_s=requests * NS_PER_S / elapsed_ns,
        p50_us=_percentile_us(in_order, 50),
        p99_us=_percentile_us(in_order, 99),
        server_cpu_us=server_cpu_ns / requests / 1000,
        client_busy=client_cpu_ns / elapsed_ns,
        answers=len(warm_up) + requests + load.finish(),
    )


def main(conversation: Callable[[int], Conversation]) -> None:
    """Run a load client: PORT SERVER_PID CONNECTIONS WINDOW_S; print the window as JSON.

    `conversation` makes one from the connection's number.
    """
    port, server_pid, connections, window_s = sys.argv[1:]
    try:
        window = measure(
            ("127.0.0.1", int(port)),
            int(server_pid),
            [conversation(number) for number in range(int(connections))],
            float(window_s),
        )
    except (LoadError, OSError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    print(json.dumps(asdict(window)))
