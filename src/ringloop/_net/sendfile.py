"""loop.sendfile() and loop.sock_sendfile() by sendfile(2).

Checks of the arguments and the fallbacks (read, then write) are those of
asyncio.BaseEventLoop; TLS transports always use them.

sendfile(2) blocks while the file comes from the disk, whatever the socket's flags say,
and the whole loop with it. Hence one call sends a bounded piece of the file, and only
if the page cache has its first and last byte; else a thread reads the piece first. In
the middle of a large file the kernel's read-ahead is faster than most peers, so that
the thread is needed rarely. A page that is dropped in between still blocks; that is
one disk access, not a file of them.
"""

from __future__ import annotations

import asyncio
import errno
import io
import os
import select
from asyncio import SendfileNotAvailableError
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable

    from ringloop._net.stream import StreamTransport

# Bytes a call: what a page cache gives in some ten microseconds.
CHUNK = 262144


def _in_memory(fd: int, offset: int, size: int) -> bool:
    """Whether the page cache has the ends of this piece; True if nobody can tell."""
    if not hasattr(os, "RWF_NOWAIT"):
        return True
    try:
        for at in (offset, offset + size - 1):
            os.preadv(fd, [bytearray(1)], at, os.RWF_NOWAIT)
    except BlockingIOError:
        return False
    except OSError:
        pass  # not on this file system, or no regular file: sendfile() will say so
    return True


class SendfileMethods:
    """What BaseEventLoop's sendfile() and sock_sendfile() call first."""

    _check_sendfile_params: Callable[..., None]
    _ensure_fd_no_transport: Callable[[Any], None]
    _wait_for_fd: Callable[[socket.socket, int], Awaitable[None]]

    async def _sock_sendfile_native(
        self, sock: socket.socket, file: BinaryIO, offset: int, count: int | None
    ) -> int:
        self._ensure_fd_no_transport(sock)

        # The socket is asked for its fd anew each time: it may be closed by now.
        def send(fd: int, offset: int, n: int) -> int:
            return os.sendfile(sock.fileno(), fd, offset, n)

        def room() -> Awaitable[None]:
            return self._wait_for_fd(sock, select.POLLOUT)

        return await self._send_file(send, room, file, offset, count)

    async def _sendfile_native(
        self, transport: StreamTransport, file: BinaryIO, offset: int, count: int | None
    ) -> int:
        sock = transport.get_extra_info("socket")
        self._check_sendfile_params(sock, file, offset, count)
        # As in asyncio. A protocol that answers what it receives could not: write() raises.
        resume = transport.is_reading()
        transport._begin_sendfile()
        try:
            transport.pause_reading()
            await transport._unsent()
            return await self._send_file(transport._send_file, transport._room, file, offset, count)
        finally:
            transport._end_sendfile()
            if resume:
                transport.resume_reading()

    async def _sendfile_fallback(
        self, transport: Any, file: BinaryIO, offset: int, count: int | None
    ) -> int:
        if offset:
            file.seek(offset)  # fails before anything has changed
        try:
            sent: int = await super()._sendfile_fallback(transport, file, offset, count)  # type: ignore[misc]
        finally:
            # asyncio's own protocol was told, and the user's would be resumed all the same.
            if transport._protocol_paused and not transport.is_closing():
                transport.get_protocol().pause_writing()
        return sent

    async def _send_file(
        self,
        send: Callable[[int, int, int], int],
        room: Callable[[], Awaitable[None]],
        file: BinaryIO,
        offset: int,
        count: int | None,
    ) -> int:
        """Send until `count` bytes or the end of the file; gives the number sent.

        The file's position is then behind the last byte sent, also after an error.
        """
        start = warm = offset
        try:
            file.fileno()
        except (AttributeError, io.UnsupportedOperation) as exc:
            raise SendfileNotAvailableError("not a regular file") from exc
        try:
            while count is None or offset < start + count:
                if offset == warm:
                    size = CHUNK if count is None else min(CHUNK, start + count - offset)
                    if not _in_memory(file.fileno(), offset, size):
                        # Should the file be closed meanwhile, this reads another's: no harm.
                        loop = asyncio.get_running_loop()
                        await loop.run_in_executor(None, os.pread, file.fileno(), size, offset)
                    warm += size
                try:
                    # The file is asked for its fd anew each time, too.
                    sent = send(file.fileno(), offset, warm - offset)
                except BlockingIOError:
                    await room()
                    continue
                if sent == 0:
                    break  # the end of the file
                offset += sent
                if offset == warm:
                    await asyncio.sleep(0)  # it is the others' turn
        except ConnectionError:
            raise
        except OSError as exc:
            if exc.errno == errno.ENOTCONN:
                raise ConnectionError(errno.ENOTCONN, os.strerror(errno.ENOTCONN)) from exc
            if offset == start:
                # Most likely this file or socket is not made for it.
                raise SendfileNotAvailableError("os.sendfile call failed") from exc
            raise
        finally:
            if offset > start and hasattr(file, "seek"):
                file.seek(offset)
        return offset - start
