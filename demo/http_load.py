"""Load for the HTTP API: create a note, read it, list the author's notes, and check every answer.

Each connection writes as an author of its own, so it knows what its list must contain.
"""

import json
import os
import re
from collections import deque
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any

import closed_loop
from closed_loop import LoadError

LISTED = 10  # Notes in a list, the newest first.
_LENGTH = re.compile(rb"\r\ncontent-length: *([0-9]+)", re.IGNORECASE)


@dataclass(frozen=True)
class Answer:
    """An HTTP answer with a JSON body."""

    status: int
    head: str
    body: Any


def _request(method: str, target: str, body: Any = None) -> bytes:
    content = b"" if body is None else json.dumps(body).encode()
    head = (
        f"{method} {target} HTTP/1.1\r\nHost: localhost\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


def _expect(what: str, expected: object, found: object) -> None:
    if found != expected:
        raise LoadError(f"{what}: expected {expected!r}, the server answered {found!r}")


def _write_and_read(author: str) -> Generator[bytes, Answer, None]:
    """Yield requests, take their answers."""
    newest: deque[dict[str, Any]] = deque(maxlen=LISTED)
    number = 0
    while True:
        number += 1
        text = f"Note {number} of {author}: \"naïve\" 'quotes' \\ 5 € ✓\n" + "x" * (number % 200)
        answer = yield _request("POST", "/notes", {"author": author, "text": text})
        _expect("status of a create", 201, answer.status)
        note = {"id": answer.body.get("id"), "author": author, "text": text}
        _expect("created note", note, answer.body)
        target = f"/notes/{note['id']}"
        if f"\r\nLocation: {target}\r\n" not in answer.head:
            raise LoadError(f"a created note has no 'Location: {target}' in {answer.head!r}")
        newest.appendleft(note)

        answer = yield _request("GET", target)
        _expect("status of a read", 200, answer.status)
        _expect("note read", note, answer.body)

        answer = yield _request("GET", f"/notes?author={author}")
        _expect("status of a list", 200, answer.status)
        _expect("notes listed", list(newest), answer.body)


class Client:
    """One connection to the API."""

    def __init__(self, number: int) -> None:
        # The database outlives this process, so the author's name must be new.
        self.author = f"author-{os.getpid()}-{number}"
        self.script = _write_and_read(self.author)
        self.received = b""

    def start(self) -> bytes:
        """Return the first request."""
        return next(self.script)

    def receive(self, data: bytes) -> bytes | None:
        """Check; return the next request when the answer is complete."""
        if not data:
            raise LoadError(f"{self.author}: the server closed the connection")
        self.received += data
        head, end, content = self.received.partition(b"\r\n\r\n")
        if not end:
            return None
        length = _LENGTH.search(head)
        if not head.startswith(b"HTTP/1.1 ") or length is None:
            raise LoadError(f"{self.author}: not an answer with Content-Length: {head!r}")
        missing = int(length[1]) - len(content)
        if missing > 0:
            return None
        if missing < 0:
            raise LoadError(f"{self.author}: {-missing} bytes more than Content-Length")
        self.received = b""
        try:
            body = json.loads(content)
        except ValueError:
            raise LoadError(f"{self.author}: not JSON: {head + end + content!r}") from None
        return self.script.send(Answer(int(head[9:12]), head.decode("latin-1") + "\r\n", body))


if __name__ == "__main__":
    closed_loop.main(Client)
