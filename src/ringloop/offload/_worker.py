"""What runs where the work is: in a thread, in another process, in another interpreter.

Standard library only: a subinterpreter loads this file by itself, since compiled modules
like ringloop's cannot be imported there.
"""

from __future__ import annotations

import os
import pickle
import select
import struct
import threading
import traceback
from contextvars import ContextVar
from typing import Any, Protocol

HEADER = struct.Struct("!BQ")  # what a message is, and the length of its body
CALL, CANCEL = 0, 1  # to the worker
READY, RESULT, ERROR, PROGRESS = 0, 1, 2, 3  # from it


class Work(Protocol):
    """The call that is being worked on."""

    def report(self, value: Any) -> None: ...
    def cancelled(self) -> bool: ...


current: ContextVar[Work | None] = ContextVar("ringloop_offload_work", default=None)


def report(value: Any) -> None:
    """Tell the caller how far the work is: `value` goes to its `progress`.

    To be called by the function that was handed to `to_thread()` and its like; anywhere
    else, and where the caller asked for no progress, it does nothing. Raises what pickle
    raises for a value that cannot go to another process.
    """
    work = current.get()
    if work is not None:
        work.report(value)


def cancelled() -> bool:
    """Whether the caller was cancelled, so that the work may end early.

    For threads and interpreters, which cannot be stopped from outside. False where
    nothing was offloaded, and in processes: they are killed.
    """
    work = current.get()
    return work is not None and work.cancelled()


# -- in another process or interpreter -----------------------------------------------


class Stream:
    """A worker's end of the socket to its caller."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.lock = threading.Lock()  # the work may report from threads of its own

    def send(self, kind: int, body: bytes = b"") -> None:
        with self.lock:
            # One write for what is small, no copy of what is large.
            head = HEADER.pack(kind, len(body))
            for piece in (head + body,) if len(body) < 65536 else (head, body):
                rest = memoryview(piece)
                while rest:
                    rest = rest[os.write(self.fd, rest) :]

    def receive(self) -> tuple[int, bytes | bytearray] | None:
        """The next message; None at the end of the stream."""
        head = self._read(HEADER.size)
        if head is None:
            return None
        kind, length = HEADER.unpack(head)
        body = self._read(length)
        return None if body is None else (kind, body)

    def _read(self, length: int) -> bytes | bytearray | None:
        first = os.read(self.fd, length) if length else b""
        if len(first) == length:
            return first
        whole = bytearray(length)
        whole[: len(first)] = first
        rest = memoryview(whole)[len(first) :]
        while rest and first:
            got = os.readv(self.fd, [rest])
            if not got:
                return None
            rest = rest[got:]
        return whole if first else None

    def has_news(self) -> bool:
        poll = select.poll()
        poll.register(self.fd, select.POLLIN)
        return bool(poll.poll(0))


class RemoteWork:
    """A call whose caller is at the other end of a stream."""

    def __init__(self, stream: Stream, wants_progress: bool) -> None:
        self.stream = stream
        self.wants_progress = wants_progress

    def report(self, value: Any) -> None:
        if self.wants_progress:
            self.stream.send(PROGRESS, pickle.dumps(value, pickle.HIGHEST_PROTOCOL))

    def cancelled(self) -> bool:
        # During a call nothing comes but its cancellation, or the end of the caller.
        return self.stream.has_news()


def serve(fd: int) -> None:
    """Answer calls until the caller hangs up."""
    stream = Stream(fd)
    stream.send(READY)
    while (message := stream.receive()) is not None:
        kind, body = message
        if kind == CALL:
            stream.send(*_answer(stream, body))
        # else a cancellation that came too late
        del message, body


def _answer(stream: Stream, call: bytes | bytearray) -> tuple[int, bytes]:
    try:
        try:
            wants_progress, function, args = pickle.loads(call)
        except Exception as error:
            error.add_note(
                "The worker could not load the function or an argument: what they are made "
                "of must be importable there, from a module and not from an interactive session."
            )
            raise
        work = RemoteWork(stream, wants_progress)
        reset = current.set(work)
        try:
            result = function(*args)
        finally:
            current.reset(reset)
            work.wants_progress = False  # a thread that the function left behind
        try:
            return RESULT, pickle.dumps(result, pickle.HIGHEST_PROTOCOL)
        except Exception as error:
            raise pickle.PicklingError(
                f"the result, a {type(result).__name__}, cannot be pickled ({error}): "
                "return plain data"
            ) from error
    except BaseException as error:
        return ERROR, _pickled_error(error)


def _pickled_error(error: BaseException) -> bytes:
    frames = error.__traceback__ and error.__traceback__.tb_next  # without _answer() itself
    text = "".join(traceback.format_exception(type(error), error, frames))
    try:
        pickled = pickle.dumps(error, pickle.HIGHEST_PROTOCOL)
        pickle.loads(pickled)  # exceptions with arguments of their own often fail here
    except Exception:
        pickled = None
    summary = traceback.format_exception_only(error)[-1].strip()
    return pickle.dumps((pickled, summary, text), pickle.HIGHEST_PROTOCOL)
