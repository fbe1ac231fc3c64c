"""What streams carry: bytes that say whose they are and where they belong.

A pattern is a pseudo-random sequence that its key alone determines. A lost, repeated,
moved or foreign byte makes the rest of a stream differ from its pattern.
"""

from __future__ import annotations

import random

BLOCK = 16384  # bytes
SHOWN = 16  # bytes of a difference that the message shows, and looks for elsewhere
SEARCHED = 4 << 20  # bytes of the pattern in which misplaced bytes are looked for


class Corrupted(Exception):  # noqa: N818 - it is said of the stream
    """A stream is not what was sent."""


class Pattern:
    def __init__(self, key: int) -> None:
        self.key = key
        self._number = -1
        self._block = b""

    def piece(self, at: int, size: int) -> bytes:
        """`size` bytes from offset `at` on."""
        pieces = []
        while size > 0:
            number, offset = divmod(at, BLOCK)
            if number != self._number:
                self._number = number
                self._block = random.Random(self.key << 32 | number).randbytes(BLOCK)
            part = self._block[offset : offset + size]
            pieces.append(part)
            at += len(part)
            size -= len(part)
        return b"".join(pieces)

    def check(self, at: int, data: bytes) -> None:
        """Raise Corrupted unless `data` is what belongs at offset `at`."""
        wanted = self.piece(at, len(data))
        if data == wanted:
            return
        first = next(i for i in range(len(data)) if data[i] != wanted[i])
        found = bytes(data[first : first + SHOWN])
        elsewhere = self.piece(0, SEARCHED).find(found) if len(found) == SHOWN else -1
        raise Corrupted(
            f"stream {self.key}, {len(data)} bytes received at {at}: wrong from {at + first} on, "
            f"{found.hex()} for {wanted[first : first + SHOWN].hex()}"
            + (f"; these bytes belong at {elsewhere}" if elsewhere >= 0 else "")
        )
