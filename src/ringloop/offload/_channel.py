"""The caller's end of the stream to a worker: one call at a time."""

from __future__ import annotations

import asyncio
import contextvars
import pickle
from typing import TYPE_CHECKING, Any, cast

from ringloop.offload import _worker

if TYPE_CHECKING:
    from collections.abc import Callable

Answer = tuple[int, bytes]  # RESULT or ERROR, and its body


class RemoteTraceback(Exception):  # noqa: N818 - no error, but where one happened
    """The traceback of an exception where it was raised, as text: its `__cause__` here."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f'\n"""\n{self.text}"""'


class RemoteError(RuntimeError):
    """An exception that could not come over itself: its type and message in words."""


class Channel(asyncio.Protocol):
    """Sends calls to a worker, and takes its answers and reports."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.transport: asyncio.Transport | None = None
        self.received = bytearray()
        # The outcome of the call that is under way; None if the worker hung up instead.
        self.answer: asyncio.Future[Answer | None] | None = self.loop.create_future()
        self.progress: Callable[[Any], object] | None = None
        self.context: contextvars.Context | None = None
        self.is_lost = False

    def call(
        self, call: bytes, progress: Callable[[Any], object] | None
    ) -> asyncio.Future[Answer | None]:
        """Send a call; its answer to come."""
        answer = self.answer = self.loop.create_future()
        if self.is_lost or self.transport is None:
            answer.set_result(None)
        else:
            self.progress = progress
            self.context = contextvars.copy_context() if progress is not None else None
            self.transport.writelines((_worker.HEADER.pack(_worker.CALL, len(call)), call))
        return answer

    def cancel(self) -> None:
        """Tell the worker that nobody wants the answer any more."""
        if self.transport is not None:
            self.transport.write(_worker.HEADER.pack(_worker.CANCEL, 0))

    def hang_up(self) -> None:
        """End the stream: an idle worker ends by that."""
        if self.transport is not None:
            self.transport.abort()

    def drain_and_end(self) -> None:
        """For a worker that is dead: take what it sent, and then the end of the stream.

        Which might not come by itself, as children of the worker may have its socket.
        """
        if self.transport is not None and not self.is_lost:
            socket = self.transport.get_extra_info("socket")
            try:
                socket.shutdown(2)  # SHUT_RDWR
            except OSError:
                pass  # both ends are closed

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self.received += data
        size = _worker.HEADER.size
        while len(self.received) >= size:
            kind, length = _worker.HEADER.unpack_from(self.received)
            if len(self.received) < size + length:
                return
            body = bytes(memoryview(self.received)[size : size + length])
            del self.received[: size + length]
            if kind == _worker.PROGRESS:
                self._report(body)
            else:
                self._finish((kind, body))

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_lost = True
        self._finish(None)

    def _report(self, body: bytes) -> None:
        if self.progress is not None:
            # Before the answer, which also takes its turn; errors go to the loop's handler.
            self.loop.call_soon(_load_and_call, self.progress, body, context=self.context)

    def _finish(self, answer: Answer | None) -> None:
        self.progress = self.context = None
        if self.answer is not None and not self.answer.done():
            self.answer.set_result(answer)


def _load_and_call(progress: Callable[[Any], object], body: bytes) -> None:
    progress(pickle.loads(body))


def pack(
    function: Callable[..., Any], args: tuple[Any, ...], wants_progress: bool, where: str
) -> bytes:
    """A call as bytes; pickle.PicklingError with one sentence if that cannot be."""
    try:
        return pickle.dumps((wants_progress, function, args), pickle.HIGHEST_PROTOCOL)
    except Exception as error:
        what, hint = "the call", "pass plain data"
        try:
            pickle.dumps(function)
        except Exception:
            name = getattr(function, "__qualname__", repr(function))
            what, hint = name, "move it to the top level of a module"
        else:
            for number, arg in enumerate(args, 1):
                try:
                    pickle.dumps(arg)
                except Exception:
                    what = f"argument {number}, a {type(arg).__name__},"
                    break
        raise pickle.PicklingError(
            f"{what} cannot be pickled, which takes it to {where}: {hint} ({error})"
        ) from error


def unpack(answer: Answer) -> Any:
    """The result that a worker sent; raises the exception that it sent instead."""
    kind, body = answer
    if kind == _worker.RESULT:
        return pickle.loads(body)
    pickled, summary, text = pickle.loads(body)
    error: BaseException | None = None
    if pickled is not None:
        try:
            error = pickle.loads(pickled)
        except Exception:
            pass  # known there, but not here
    try:
        if error is None:
            error = RemoteError(summary)
        raise error from RemoteTraceback(text)
    finally:
        del error
