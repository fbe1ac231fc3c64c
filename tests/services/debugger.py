"""A client of the Debug Adapter Protocol, as an editor has one, with blocking sockets."""

from __future__ import annotations

import contextlib
import itertools
import json
import socket
import time
from typing import Any


class Debugger:
    """Connects to debugpy on 127.0.0.1; waits `patience_s` for it and for each answer."""

    def __init__(self, port: int, patience_s: float) -> None:
        deadline = time.monotonic() + patience_s
        while True:
            with contextlib.suppress(ConnectionRefusedError):
                self._sock = socket.create_connection(("127.0.0.1", port), timeout=patience_s)
                break
            assert time.monotonic() < deadline, "debugpy does not listen"
            time.sleep(0.05)
        self._file = self._sock.makefile("rb")
        self._numbers = itertools.count(1)
        self._told: list[dict[str, Any]] = []
        self._thread = self._frame = 0

    def __enter__(self) -> Debugger:
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()
        self._sock.close()

    def _send(self, command: str, **arguments: Any) -> int:
        number = next(self._numbers)
        message = {"seq": number, "type": "request", "command": command, "arguments": arguments}
        body = json.dumps(message).encode()
        self._sock.sendall(b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
        return number

    def _receive(self) -> dict[str, Any]:
        length = 0
        while (line := self._file.readline()) != b"\r\n":
            assert line, "debugpy ended"
            length = int(line.split(b":")[1])
        message: dict[str, Any] = json.loads(self._file.read(length))
        return message

    def _event(self, name: str) -> dict[str, Any]:
        while True:
            for message in self._told:
                if message["event"] == name:
                    self._told.remove(message)
                    return message
            message = self._receive()
            if message["type"] == "event":
                self._told.append(message)

    def _answer(self, number: int) -> dict[str, Any]:
        while True:
            message = self._receive()
            if message["type"] == "event":
                self._told.append(message)
            elif message.get("request_seq") == number:
                assert message["success"], message
                body: dict[str, Any] = message.get("body", {})
                return body

    def start(self, path: str, line: int) -> None:
        """Attach, and let the program run to that line, again and again."""
        self._answer(self._send("initialize", adapterID="test", pathFormat="path"))
        attached = self._send("attach", justMyCode=True)
        self._event("initialized")
        place = {"source": {"path": path}, "breakpoints": [{"line": line}]}
        self._answer(self._send("setBreakpoints", **place))
        self._answer(self._send("configurationDone"))
        self._answer(attached)

    def stopped(self) -> int:
        """Wait for a breakpoint; its line."""
        self._thread = self._event("stopped")["body"]["threadId"]
        frames = self._answer(self._send("stackTrace", threadId=self._thread))["stackFrames"]
        self._frame = frames[0]["id"]
        line: int = frames[0]["line"]
        return line

    def evaluate(self, expression: str) -> str:
        """What it is where the program stopped."""
        asked = self._send("evaluate", expression=expression, frameId=self._frame, context="watch")
        result: str = self._answer(asked)["result"]
        return result

    def go_on(self) -> None:
        self._answer(self._send("continue", threadId=self._thread))

    def ended(self) -> None:
        """Wait for the end of the program."""
        self._event("terminated")
