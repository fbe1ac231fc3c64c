"""A TCP proxy between a client and its server that can lose the server, as networks do.

Blocking sockets and a thread for each connection, so that no loop but the client's has a part.
"""

from __future__ import annotations

import contextlib
import select
import socket
import struct
import threading

from services.ports import free_port

PIECE = 65536
WAIT_S = 10


class Proxy:
    """Forwards connections to `address`. `port` is ours, on 127.0.0.1. A context manager."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._address = address
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._open: set[socket.socket] = set()
        self._listening: socket.socket | None = None
        self._held = False
        self._asked = threading.Event()
        self.port = free_port()

    def __enter__(self) -> Proxy:
        self.restore()
        return self

    def __exit__(self, *exc: object) -> None:
        self.cut()
        # Nothing is accepted any more; what was accepted last sees that nobody listens.
        for thread in self._threads:
            thread.join(WAIT_S)
            assert not thread.is_alive(), "the proxy did not end"

    def hold(self) -> None:
        """From now on requests reach the server, and its answers do not come back."""
        with self._lock:
            self._asked.clear()
            self._held = True

    def wait_held(self) -> None:
        """Wait for a request since `hold()`."""
        assert self._asked.wait(WAIT_S), "nobody asked"

    def cut(self) -> None:
        """Reset all connections and refuse new ones."""
        with self._lock:
            self._held = False
            listening, self._listening = self._listening, None
            if listening is not None:
                with contextlib.suppress(OSError):
                    listening.shutdown(socket.SHUT_RDWR)  # ends accept()
                listening.close()
            for sock in self._open:
                reset_by_close(sock)

    def restore(self) -> None:
        """Accept connections again, on the same port."""
        listening = socket.create_server(("127.0.0.1", self.port), backlog=512)
        with self._lock:
            self._listening = listening
        self._start(self._accept, listening)

    def _start(self, target: object, sock: socket.socket) -> None:
        thread = threading.Thread(target=target, args=(sock,))  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self, listening: socket.socket) -> None:
        while True:
            try:
                sock, _ = listening.accept()
            except OSError:
                return
            self._start(self._serve, sock)

    @contextlib.contextmanager
    def _opened(self, sock: socket.socket):  # type: ignore[no-untyped-def]
        """The socket as one that `cut()` resets; closed afterwards."""
        with self._lock:
            self._open.add(sock)
            if self._listening is None:
                reset_by_close(sock)
        try:
            yield sock
        finally:
            with self._lock:
                self._open.discard(sock)
                sock.close()

    def _serve(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError), contextlib.ExitStack() as stack:
            stack.enter_context(self._opened(client))
            server = socket.create_connection(self._address)
            stack.enter_context(self._opened(server))
            self._forward(client, server)

    def _forward(self, client: socket.socket, server: socket.socket) -> None:
        while True:
            # While answers are held only the end of the connection matters, which cut() brings.
            sources = [client] if self._held else [client, server]
            readable = select.select(sources, [], [])[0]
            if client in readable:
                piece = client.recv(PIECE)
                server.sendall(piece)
                if self._held:
                    self._asked.set()
                if not piece:
                    return
            if server in readable and not self._held:
                piece = server.recv(PIECE)
                client.sendall(piece)
                if not piece:
                    return


def reset_by_close(sock: socket.socket) -> None:
    """End what its thread waits for; its close() then sends RST rather than FIN."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.shutdown(socket.SHUT_RD)
