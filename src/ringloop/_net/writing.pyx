"""The outgoing half of a stream transport: what waits to be sent.

Bytes being sent belong to `out` and to the slot of the send; what waits behind them
to `w0` and `wq`. Never more than one send is in flight: the kernel does not keep two
in order.

Small writes leave together at the end of the iteration (`flush`), with the system
call that waits anyway. Much is sent by write() itself: while it is in the cache, and
before the protocol would be told to pause for a peer that is not slow at all.

While loop.sendfile() has the socket (`sending_file`), write() is refused. Its wait for
room in the socket is `send_token`'s operation, so that the fd stays open under it.
"""
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.string cimport memset

import logging
import os
from asyncio import constants

from ringloop._core.loop cimport new_future
from ringloop._driver.base cimport OP_POLL, Completion
from ringloop._net.flow cimport FlowControl
from ringloop._sys.errno cimport EAGAIN, EINTR, ENOMEM, errno
from ringloop._sys.posix cimport (
    AF_INET, AF_INET6, IPPROTO_TCP, MSG_DONTWAIT, MSG_NOSIGNAL, POLLOUT, SHUT_WR, TCP_NODELAY,
    iovec, msghdr, sendmsg, setsockopt, shutdown,
)

cdef object logger = logging.getLogger("asyncio")

cdef enum:
    JOIN_MAX = 16384        # pieces of less together are copied into one send
    SEND_NOW_MIN = 16384    # so much is sent by write() itself
    IOV_MAX = 64            # pieces a send


cdef void set_nodelay(int fd, int family) noexcept:
    """Let TCP send what it gets at once. Nothing happens where there is no such option.

    asyncio does so only for sockets that were made with their protocol spelt out. Those of
    `socket.create_server()`, and what they accept, are not: two sends in a row without an
    answer between them would take the 40 ms of a delayed acknowledgement.
    """
    cdef int on = 1
    if family == AF_INET or family == AF_INET6:
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on))


cdef class WriteHalf(FlowControl):
    """write() and its kin, for a transport that adds the rest."""

    def __cinit__(self):
        self._sock_fd = -1

    cdef int lose(self, object exc) except -1:
        """Call connection_lost() and let go of the fd: the transport's part."""
        raise NotImplementedError

    # -- sending ---------------------------------------------------------------------

    def write(self, data):
        """Queue `data`; it leaves at the end of this iteration.

        bytes are kept by reference, other buffers are copied before write() returns.
        """
        cdef bytes b
        if type(data) is bytes:
            b = data
        elif isinstance(data, (bytes, bytearray, memoryview)):
            b = bytes(data)
        else:
            raise TypeError("data argument must be a bytes-like object, "
                            f"not {type(data).__name__!r}")
        if self.eof or self.sending_file:
            self.refuse("write")
        if PyBytes_GET_SIZE(b) and self.queue(b):
            self.after_queue()

    def writelines(self, list_of_data):
        """Queue every buffer of a list; they leave together."""
        cdef bint queued = False
        if self.eof or self.sending_file:
            self.refuse("writelines")
        pieces = [bytes(memoryview(data)) if type(data) is not bytes else data
                  for data in list_of_data]
        for piece in pieces:
            if piece:
                queued = self.queue(piece) or queued
        if queued:
            self.after_queue()

    cdef int refuse(self, str method) except -1:
        if self.eof:
            raise RuntimeError(f"Cannot call {method}() after write_eof()")
        raise RuntimeError(f"unable to {method}; sendfile is in progress")

    cdef int queue(self, bytes data) except -1:
        """Append to what waits; 0: the connection is gone."""
        if self.conn_lost:
            if self.conn_lost >= constants.LOG_THRESHOLD_FOR_CONNLOST_WRITES:
                logger.warning("socket.send() raised exception.")
            self.conn_lost += 1
            return 0
        if self.w0 is None:
            self.w0 = data
        elif self.wq is None:
            self.wq = [data]
        else:
            self.wq.append(data)
        self.wsize += PyBytes_GET_SIZE(data)
        return 1

    cdef int after_queue(self) except -1:
        if self.send_token == 0:
            if ((self.wsize >= SEND_NOW_MIN or self.wsize > self.high)
                    and not self.send_blocked and not self.tx_error):
                self.send_now()
                self.after_send()
            if self.wsize and not self.in_flush:
                self.driver.to_flush(self)
        if self.wsize > self.high and not self.protocol_paused:
            self.pause_protocol()
        return 0

    cdef void flush(self) noexcept:
        if self.send_token == 0 and self.wsize and not self.conn_lost and not self.tx_error:
            try:
                self.start_send()
            except BaseException as exc:
                self.tx_error = exc.errno if isinstance(exc, OSError) else ENOMEM
                self.driver.to_dispatch(self)

    cdef int gather(self, iovec *iov) except -1:
        """Fill `iov` with what is to be sent next; `out` becomes a list."""
        cdef int n = 0
        cdef bytes b
        cdef list pieces
        if self.out is None:
            self.out_i = self.out_off = 0
            pieces = []
        elif type(self.out) is list:
            pieces = self.out
            if self.out_i * 2 > len(pieces):  # not each time: what is left moves to the front
                del pieces[:self.out_i]
                self.out_i = 0
        else:
            pieces = [self.out]
        if self.w0 is not None:
            pieces.append(self.w0)
            if self.wq is not None:
                pieces.extend(self.wq)
            self.w0 = self.wq = None
        self.out = pieces
        while n < IOV_MAX and self.out_i + n < len(pieces):
            b = pieces[self.out_i + n]
            iov[n].iov_base = PyBytes_AS_STRING(b)
            iov[n].iov_len = PyBytes_GET_SIZE(b)
            n += 1
        iov[0].iov_base = <char *>iov[0].iov_base + self.out_off
        iov[0].iov_len -= self.out_off
        return n

    cdef int start_send(self) except -1:
        cdef iovec iov[IOV_MAX]
        cdef int i, n
        cdef bytes b
        if self.out is None:
            if self.wq is None:
                self.out = self.w0
                self.w0 = None
                self.out_i = self.out_off = 0
            elif self.wsize <= JOIN_MAX:
                self.wq.insert(0, self.w0)
                self.out = b"".join(self.wq)
                self.w0 = self.wq = None
                self.out_i = self.out_off = 0
        if type(self.out) is bytes:
            b = self.out
            self.asked = PyBytes_GET_SIZE(b) - self.out_off
            self.send_token = self.driver.send(
                self, self._sock_fd, b, PyBytes_AS_STRING(b) + self.out_off,
                self.asked, self.send_blocked)
        else:
            n = self.gather(iov)
            self.asked = 0
            for i in range(n):
                self.asked += iov[i].iov_len
            # The slot keeps a copy of the list: ours may grow before the completion.
            self.send_token = self.driver.sendv(
                self, self._sock_fd, tuple(self.out[self.out_i:self.out_i + n]), iov, n,
                self.send_blocked)
        return 0

    cdef int send_now(self) except -1:
        """Send without the driver; only while no send is in flight."""
        cdef iovec iov[IOV_MAX]
        cdef msghdr m
        cdef ssize_t r
        while self.wsize:
            memset(&m, 0, sizeof(m))
            m.msg_iov = iov
            m.msg_iovlen = self.gather(iov)
            r = sendmsg(self._sock_fd, &m, MSG_DONTWAIT | MSG_NOSIGNAL)
            if r >= 0:
                self.consume(r)
            elif errno == EAGAIN:
                self.send_blocked = True
                break
            elif errno != EINTR:
                self.tx_error = errno
                self.driver.to_dispatch(self)
                break
        return 0

    cdef int send_early(self) except -1:
        """Send what waits for the end of the iteration, for somebody who looks at it now."""
        if (self.wsize and self.send_token == 0 and not self.send_blocked
                and not self.conn_lost and not self.tx_error):
            self.send_now()
            self.after_send()
        return 0

    def get_write_buffer_size(self):
        """Bytes that the socket has not taken. What it was not offered yet, it is now."""
        self.send_early()
        return self.wsize

    cdef void consume(self, Py_ssize_t n) noexcept:
        """`n` bytes of `out` were sent."""
        cdef bytes b
        cdef Py_ssize_t left
        self.wsize -= n
        if type(self.out) is bytes:
            self.out_off += n
            if self.out_off == PyBytes_GET_SIZE(<bytes>self.out):
                self.out = None
            return
        while n:
            b = (<list>self.out)[self.out_i]
            left = PyBytes_GET_SIZE(b) - self.out_off
            if n < left:
                self.out_off += n
                return
            n -= left
            (<list>self.out)[self.out_i] = None  # the list may go on for as long as we live
            self.out_off = 0
            self.out_i += 1
        if self.out_i == len(<list>self.out):
            self.out = None

    cdef void on_send(self, Completion *c) noexcept:
        self.send_token = 0
        if self.conn_lost:
            self.driver.to_dispatch(self)  # the fd may be closed now
            return
        if c.kind == OP_POLL:
            # What is wrong, if anything, is found by the sendfile() or send that follows.
            self.awaits_room = False
            self.driver.to_dispatch(self)
            if self.wsize:
                self.driver.to_flush(self)
            return
        if c.res < 0:
            self.tx_error = -c.res
            self.driver.to_dispatch(self)
            return
        self.consume(c.res)
        # Short only because the socket was full: then wait before the next try.
        self.send_blocked = c.res < self.asked
        if self.wsize:
            self.driver.to_flush(self)
        self.after_send()

    cdef int after_send(self) except? -1:
        """Let `dispatch` do what becomes due when little or nothing is left to send."""
        if (self.protocol_paused and self.wsize <= self.low) or (
                self.wsize == 0 and (self.closing or self.eof or self.sending_file)):
            self.driver.to_dispatch(self)
        return 0

    cdef int drop_unsent(self) except -1:
        """Forget all of it; what the kernel has is the slot's until it completes."""
        self.out = self.w0 = self.wq = None
        self.wsize = 0
        if self.send_token:
            self.driver.cancel(self.send_token)
        return 0

    cdef int all_sent(self) except -1:
        if self.closing:
            self.conn_lost += 1
            return self.lose(None)
        return self.send_eof()

    cdef int send_eof(self) except -1:
        if self.eof and not self.eof_sent:
            self.eof_sent = True
            shutdown(self._sock_fd, SHUT_WR)
        return 0

    def write_eof(self):
        """Close the sending side once what is buffered is sent."""
        if self.closing or self.eof:
            return
        self.eof = True
        if self.wsize == 0:
            self.send_eof()

    def can_write_eof(self):
        return True

    # -- sendfile --------------------------------------------------------------------

    def _begin_sendfile(self):
        """Refuse to write from now on; what was written may still wait to be sent."""
        if self.eof or self.sending_file:
            self.refuse("sendfile")
        self.sending_file = True

    def _end_sendfile(self):
        self.sending_file = False
        self.file_waiter = None
        if self.awaits_room:
            self.driver.cancel(self.send_token)

    async def _unsent(self):
        """Wait until what was written before has been sent."""
        while self.wsize or self.send_token:
            await self.new_file_waiter()

    def _room(self):
        """A future that resolves when the socket takes bytes again."""
        waiter = self.new_file_waiter()
        self.send_token = self.driver.poll(self, self._sock_fd, POLLOUT)
        self.awaits_room = True
        return waiter

    def _send_file(self, fd, offset, n):
        """os.sendfile() to the socket."""
        if self.conn_lost:
            raise ConnectionError("the transport was closed while it sent a file")
        return os.sendfile(self._sock_fd, fd, offset, n)

    cdef object new_file_waiter(self):
        if self.conn_lost:
            raise ConnectionError("the transport was closed while it sent a file")
        self.file_waiter = new_future(self.loop)
        return self.file_waiter

    cdef int tell_sendfile(self, object exc) except -1:
        """The wait is over, or the connection is (`exc`, or None for an orderly end)."""
        waiter = self.file_waiter
        self.file_waiter = None
        if waiter is None or waiter.done():
            return 0
        if self.conn_lost:
            waiter.set_exception(
                exc or ConnectionError("the transport was closed while it sent a file"))
        else:
            waiter.set_result(None)
        return 0
