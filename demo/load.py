"""Load for the echo service: every message differs from the others, every byte is compared."""

import random

import closed_loop
from closed_loop import LoadError

MESSAGE_BYTES = 1024

# Messages are cut from random bytes, each at another place than the one before it. So a message
# that comes back on a wrong connection, or a second time, is not the one that is expected.
_POOL = random.Random(1).randbytes(64 * 1024)
_PLACES = len(_POOL) - MESSAGE_BYTES
_STEP = 1031  # A prime: all places are used before one comes again.


class Echo:
    """One connection to the echo service."""

    place = 0  # Of the message sent last, on any connection.

    def __init__(self, number: int) -> None:
        self.number = number
        self.expected = b""
        self.received = b""

    def start(self) -> bytes:
        """Return the next message."""
        Echo.place = place = (Echo.place + _STEP) % _PLACES
        self.expected = _POOL[place : place + MESSAGE_BYTES]
        return self.expected

    def receive(self, data: bytes) -> bytes | None:
        """Compare; return the next message when this one is back."""
        if data == self.expected:  # All at once, as nearly always.
            return self.start()
        if not data:
            raise LoadError(f"connection {self.number}: the server closed it")
        self.received += data
        if not self.expected.startswith(self.received):
            raise LoadError(f"connection {self.number}: the bytes that came are not those sent")
        if len(self.received) < MESSAGE_BYTES:
            return None
        self.received = b""
        return self.start()


if __name__ == "__main__":
    closed_loop.main(Echo)
