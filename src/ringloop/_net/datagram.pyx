"""The transport of datagram sockets (UDP and Unix), on any driver.

Receiving: the driver watches for readiness; `dispatch` takes up to a batch of
datagrams with one recvmmsg, copies them out, and tells of each. The buffers are one
piece of memory for the whole process, since no Python code runs between the system
call and the copies: an idle endpoint costs no buffer, and a busy one touches only the
pages that its datagrams reach. What is left in the socket is reported again, after
the other sinks had their turn.

Sending: `sendto` sends, so that an error is told of while the caller knows what it is
about, and code that blocks afterwards has sent what it meant to. (Leaving all to one
sendmmsg at the end of the iteration saved 2 % of the CPU of an echo server, 64
datagrams of 64 bytes in flight.) Only what a full socket does not take is queued, and
nothing overtakes it. A datagram that the kernel refuses is told of and dropped; the
others go on.

The fd belongs to `sock`, and is closed when connection_lost() was called: the
operations on it are only waits for readiness, which `cancel_now` ends at once.
"""
cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.contextvars cimport PyContext_CopyCurrent, PyContext_Enter, PyContext_Exit
from cpython.object cimport PyObject
from libc.stdint cimport uint64_t
from libc.string cimport memcpy

import asyncio
import logging
import os
import warnings
from asyncio import constants, trsock
from asyncio.futures import _set_result_unless_cancelled
from collections import deque

from ringloop._core.handles cimport TimerHandle
from ringloop._core.loop cimport CoreLoop
from ringloop._driver.base cimport OP_WATCH, Completion, Driver
from ringloop._net.flow cimport FlowControl, without_dict
from ringloop._net.peers cimport Peer, peer_of_name, peer_of_raw
from ringloop._sys.errno cimport EAGAIN, ECANCELED, EINTR, errno
from ringloop._sys.posix cimport (
    AF_INET, AF_INET6, AF_UNIX, MSG_DONTWAIT, MSG_NOSIGNAL, POLLIN, POLLOUT, iovec, mmsghdr,
    recvmmsg, send, sendto, sockaddr, sockaddr_storage, socklen_t,
)

cdef object logger = logging.getLogger("asyncio")

# Between two tries where nothing tells of room.
cdef double RETRY_S = 0.001

cdef enum:
    BATCH = 32              # datagrams a recvmmsg, and a turn
    LONG_BATCH = 8          # of long ones
    SHORT_MAX = 65536       # no datagram over IP is longer
    LONG_MAX = 262144       # Unix ones are: asyncio's limit
    # Not a multiple of the page: the first lines of all buffers would share one set of
    # the processor's caches.
    SHORT_STRIDE = SHORT_MAX + 192
    HEADER = 8              # what a datagram counts for in the queue besides its bytes

cdef char _memory[BATCH * SHORT_STRIDE]  # in it, the long ones: 8 * 262144 is less
cdef mmsghdr _short[BATCH]
cdef mmsghdr _long[LONG_BATCH]
cdef iovec _short_iov[BATCH]
cdef iovec _long_iov[LONG_BATCH]
cdef sockaddr_storage _senders[BATCH]


cdef void _lay_out(mmsghdr *msgs, iovec *iov, int count, size_t stride, size_t size) noexcept:
    cdef int i
    for i in range(count):
        iov[i].iov_base = _memory + i * stride
        iov[i].iov_len = size
        msgs[i].msg_hdr.msg_iov = &iov[i]
        msgs[i].msg_hdr.msg_iovlen = 1
        msgs[i].msg_hdr.msg_name = &_senders[i]
        msgs[i].msg_hdr.msg_namelen = sizeof(sockaddr_storage)


_lay_out(_short, _short_iov, BATCH, SHORT_STRIDE, SHORT_MAX)
_lay_out(_long, _long_iov, LONG_BATCH, LONG_MAX, LONG_MAX)


class _Transport(asyncio.Transport, asyncio.DatagramTransport):
    """What isinstance() finds; the standard library's is both, too."""


cdef object _as_asyncio = _Transport


@cython.final
cdef class DatagramTransport(FlowControl):
    """An asyncio.DatagramTransport over a datagram socket, connected or not."""

    cdef Driver driver
    cdef object sock
    cdef readonly int _sock_fd
    cdef int family
    cdef bint connected        # the kernel knows where everything goes
    cdef object address        # what create_datagram_endpoint() connected to, or None
    cdef object context        # every callback of the protocol runs in it
    cdef dict extra
    cdef object __weakref__
    cdef dict __dict__         # attributes can be set, as on asyncio's

    cdef bint started          # connection_made() was called, so reading may begin
    cdef bint closing
    cdef int conn_lost         # connection_lost() is scheduled; counts sends after it
    cdef bint lost             # connection_lost() was called

    cdef uint64_t watch_token
    cdef bint watch_stopping   # its cancel was sent
    cdef bint readable
    cdef bint paused
    cdef list rx               # received...
    cdef list rx_names         # ...from whom...
    cdef Py_ssize_t rx_told    # ...and how many of them are told

    cdef object tx             # a deque of what is not sent: (data, Peer or None)
    cdef uint64_t poll_token   # waits for room in the socket...
    cdef TimerHandle retry     # ...or for a time, where nothing tells of that

    def __cinit__(self):
        without_dict(self)
        self._sock_fd = -1
        self.rx = []
        self.rx_names = []
        self.tx = deque()

    @property
    def __class__(self):
        # No C type can inherit from a class with slots; see ARCHITECTURE.md.
        return _as_asyncio

    cdef int init(self, CoreLoop loop, object sock, object protocol, object address,
                  object extra) except -1:
        self.loop = loop
        self.driver = loop.driver
        self.sock = sock
        self._sock_fd = sock.fileno()
        self.family = sock.family
        self.protocol = protocol
        self.address = address
        self.context = PyContext_CopyCurrent()
        self.extra = dict(extra) if extra else {}
        self.extra["socket"] = trsock.TransportSocket(sock)
        self.extra["sockname"] = _name_or_none(sock.getsockname)
        if "peername" not in self.extra:
            self.extra["peername"] = _name_or_none(sock.getpeername)
        self.connected = self.extra["peername"] is not None
        loop.claim_fd(self._sock_fd, <PyObject *>self)
        return 0

    def __del__(self):
        # Only a loop that was closed lets go of a transport with a live operation.
        if self._sock_fd >= 0:
            text = f"unclosed transport {self!r}"
            self.close_fd()
            warnings.warn(text, ResourceWarning, source=self)  # last: it may raise

    def __repr__(self):
        info = ["DatagramTransport"]
        if self._sock_fd < 0:
            info.append("closed")
        else:
            if self.closing:
                info.append("closing")
            info.append(f"fd={self._sock_fd}")
            info.append(f"read={'polling' if self.watch_token and not self.paused else 'idle'}")
            info.append(f"write=<{'polling' if self.is_full() else 'idle'}, "
                        f"bufsize={self.wsize}>")
        return f"<{' '.join(info)}>"

    # -- life ------------------------------------------------------------------------

    def _connection_made(self):
        if self.protocol is None:
            return
        try:
            self.protocol.connection_made(self)
        finally:
            self.started = True
            self.watch()

    def close(self):
        """Stop receiving, send what is queued, then call connection_lost(None)."""
        if self.closing:
            return
        self.closing = True
        self.stop_watch()
        if not self.tx:
            self.conn_lost += 1
            self.loop.schedule(self._call_connection_lost, (None,), self.context)

    def abort(self):
        """Drop what is queued and call connection_lost(None) soon."""
        self.force_close(None)

    def is_closing(self):
        return self.closing

    cdef int fatal_error(self, object exc, str message) except -1:
        if isinstance(exc, OSError):
            if self.loop.get_debug():
                logger.debug("%r: %s", self, message, exc_info=exc)
        else:
            self.loop.call_exception_handler({
                "message": message, "exception": exc, "transport": self,
                "protocol": self.protocol,
            })
        return self.force_close(exc)

    cdef int force_close(self, object exc) except -1:
        if self.conn_lost:
            return 0
        self.closing = True
        self.conn_lost += 1
        self.drop_queue()
        self.stop_watch()
        self.loop.schedule(self._call_connection_lost, (exc,), self.context)
        return 0

    def _call_connection_lost(self, exc):
        self.lose(exc)

    cdef int lose(self, object exc) except -1:
        if self.lost:
            return 0
        self.lost = True
        try:
            self.protocol.connection_lost(exc)
        finally:
            self.protocol = None
            self.rx = self.rx_names = []
            self.drop_queue()
            self.close_fd()
        return 0

    cdef int close_fd(self) except -1:
        cdef int fd = self._sock_fd
        self._sock_fd = -1
        self.loop.unclaim_fd(fd, <PyObject *>self)
        try:
            if self.watch_token:
                self.driver.cancel_now(self.watch_token)
            if self.poll_token:
                self.driver.cancel_now(self.poll_token)
        finally:
            self.driver.release_fd(fd)
            self.sock.close()
        return 0

    # -- what asyncio asks of a transport --------------------------------------------

    def get_extra_info(self, name, default=None):
        """'socket', 'sockname', 'peername' (None unless connected)."""
        return self.extra.get(name, default)

    @property
    def _sock(self):
        return None if self._sock_fd < 0 else self.sock

    def set_protocol(self, protocol):
        self.protocol = protocol

    def get_protocol(self):
        return self.protocol

    # -- receiving -------------------------------------------------------------------

    def is_reading(self):
        return not self.closing and not self.paused

    def pause_reading(self):
        """Deliver nothing more until resume_reading(); the kernel's buffer may overflow."""
        if self.closing or self.paused:
            return
        self.paused = True
        self.stop_watch()

    def resume_reading(self):
        if self.closing or not self.paused:
            return
        self.paused = False
        if self.started:
            self.driver.to_dispatch(self)

    cdef int watch(self) except -1:
        if self.started and self.watch_token == 0 and not self.paused and not self.closing:
            self.watch_token = self.driver.watch_start(self, self._sock_fd, POLLIN)
        return 0

    cdef int stop_watch(self) except -1:
        if self.watch_token and not self.watch_stopping:
            self.watch_stopping = True
            self.driver.cancel(self.watch_token)
        return 0

    cdef void completed(self, Completion *c) noexcept:
        if c.kind == OP_WATCH:
            if not c.more:
                self.watch_token = 0
                self.watch_stopping = False
            # An error is found by the receive that follows.
            self.readable = self.readable or c.res != -ECANCELED
            self.driver.to_dispatch(self)
        else:
            self.poll_token = 0
            self.driver.to_dispatch(self)

    cdef int dispatch(self) except -1:
        if self.lost:
            return 0
        PyContext_Enter(self.context)
        try:
            self.tell()
        except (SystemExit, KeyboardInterrupt):
            # It leaves the loop; what is not told yet is told when the loop runs again.
            self.driver.to_dispatch(self)
            raise
        except BaseException as exc:
            self.callback_failed(exc)
        finally:
            PyContext_Exit(self.context)
        return 0

    cdef int callback_failed(self, object exc) except -1:
        """An exception in one callback; the transport lives on, as in asyncio."""
        if isinstance(exc, (SystemExit, KeyboardInterrupt)):
            raise exc
        self.loop.call_exception_handler({
            "message": f"Exception in a callback of {self!r}", "exception": exc,
            "transport": self, "protocol": self.protocol,
        })
        return 0

    cdef int tell(self) except -1:
        """All that the protocol has to hear."""
        if self.rx_told == len(self.rx) and self.readable and self.can_read():
            self.receive()
        if self.rx_told < len(self.rx):
            self.deliver()
        if self.tx and not self.is_full():
            self.send_queue()
        if self.conn_lost:
            return 0
        self.watch()
        if self.protocol_paused and self.wsize <= self.low:
            self.resume_protocol()
        if self.closing and not self.tx and not self.conn_lost:
            self.conn_lost += 1
            self.lose(None)
        return 0

    cdef bint can_read(self) noexcept:
        return self.started and not self.paused and not self.closing

    cdef int receive(self) except -1:
        """Take a batch out of the socket."""
        cdef mmsghdr *msgs = _short
        cdef int i, n, limit = BATCH
        cdef sockaddr_storage senders[BATCH]
        cdef socklen_t lengths[BATCH]
        cdef list data = []
        cdef list names = []
        self.readable = False
        if self.family == AF_UNIX:
            msgs = _long
            limit = LONG_BATCH
        elif self.family != AF_INET and self.family != AF_INET6:
            return self.receive_one()
        n = recvmmsg(self._sock_fd, msgs, limit, MSG_DONTWAIT, NULL)
        if n < 0:
            if errno != EAGAIN and errno != EINTR:
                self.error_received(OSError(errno, os.strerror(errno)))
            return 0
        # First everything out of the shared memory. What follows may collect garbage, so
        # run Python code and let another thread's loop in.
        memcpy(senders, _senders, n * sizeof(sockaddr_storage))
        for i in range(n):
            lengths[i] = msgs[i].msg_hdr.msg_namelen
            msgs[i].msg_hdr.msg_namelen = sizeof(sockaddr_storage)
            data.append(PyBytes_FromStringAndSize(
                <char *>msgs[i].msg_hdr.msg_iov.iov_base, msgs[i].msg_len))
        for i in range(n):
            names.append(peer_of_raw(<sockaddr *>&senders[i], lengths[i]).name)
        self.rx = data
        self.rx_names = names
        self.rx_told = 0
        return 0

    cdef int receive_one(self) except -1:
        """The same for families whose addresses only the socket module knows."""
        try:
            data, name = self.sock.recvfrom(LONG_MAX)
            self.rx.append(data)
            self.rx_names.append(name)
        except (BlockingIOError, InterruptedError):
            pass
        except OSError as exc:
            self.error_received(exc)
        return 0

    cdef int deliver(self) except -1:
        """Tell of what was received, until a callback closes or pauses."""
        cdef Py_ssize_t i
        while self.rx_told < len(self.rx) and self.can_read():
            i = self.rx_told
            self.rx_told += 1
            try:
                self.protocol.datagram_received(self.rx[i], self.rx_names[i])
            except BaseException as exc:
                self.callback_failed(exc)
        if self.rx_told == len(self.rx):
            self.rx.clear()
            self.rx_names.clear()
            self.rx_told = 0
        return 0

    cdef int error_received(self, object exc) except -1:
        try:
            self.protocol.error_received(exc)
        except BaseException as failure:
            self.callback_failed(failure)
        return 0

    # -- sending ---------------------------------------------------------------------

    def sendto(self, data, addr=None):
        """Send a datagram, or queue it while the socket is full.

        `addr` may be left out on a connected socket. Errors of the system go to the
        protocol's error_received(). ValueError: another address than that which the
        endpoint is connected to. TypeError: `data` is no bytes, bytearray or memoryview.
        """
        cdef Peer peer = None
        if type(data) is not bytes:
            if not isinstance(data, (bytes, bytearray, memoryview)):
                raise TypeError("data argument must be a bytes-like object, "
                                f"not {type(data).__name__!r}")
            data = bytes(data)
        if self.address and addr is not None and addr != self.address:
            raise ValueError(f"Invalid address: must be None or {self.address}")
        if self.conn_lost:
            if self.conn_lost >= constants.LOG_THRESHOLD_FOR_CONNLOST_WRITES:
                logger.warning("socket.send() raised exception.")
            self.conn_lost += 1
            return
        if not self.connected:
            peer = peer_of_name(addr, self.family)
        if not self.tx:
            if self.send_one(data, peer):
                return
            self.wait_for_room()
        self.tx.append((data, peer))
        self.wsize += PyBytes_GET_SIZE(<bytes>data) + HEADER
        if self.wsize > self.high and not self.protocol_paused:
            self.pause_protocol()

    cdef bint send_one(self, bytes data, Peer peer) except -1:
        """Send, or tell of the error; False: the socket is full."""
        cdef ssize_t r
        if peer is None:
            r = send(self._sock_fd, PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data),
                     MSG_DONTWAIT | MSG_NOSIGNAL)
        elif peer.n:
            r = sendto(self._sock_fd, PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data),
                       MSG_DONTWAIT | MSG_NOSIGNAL, <sockaddr *>&peer.raw, peer.n)
        else:
            return self.send_by_name(data, peer.name)
        if r >= 0:
            return True
        if errno == EAGAIN or errno == EINTR:
            return False
        self.protocol.error_received(OSError(errno, os.strerror(errno)))
        return True

    cdef bint send_by_name(self, bytes data, object name) except -1:
        """The same through the socket module, which may resolve the name."""
        try:
            self.sock.sendto(data, name)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as exc:
            self.protocol.error_received(exc)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self.fatal_error(exc, "Fatal write error on datagram transport")
        return True

    cdef bint is_full(self) noexcept:
        return self.poll_token != 0 or self.retry is not None

    cdef int wait_for_room(self) except -1:
        if self.family == AF_UNIX and not self.connected:
            # It is the receiver that is full, and of that the kernel tells only a
            # connected socket: this one would be reported as writable for ever.
            self.retry = self.loop.add_timer(
                self.loop.clock() + RETRY_S, self._retry, self.context)
        else:
            self.poll_token = self.driver.poll(self, self._sock_fd, POLLOUT)
        return 0

    def _retry(self):
        self.retry = None
        self.driver.to_dispatch(self)

    cdef int send_queue(self) except -1:
        """Send from the front until nothing is left or the socket is full again."""
        while self.tx and not self.conn_lost and not self.is_full():
            # Off the queue first: a callback that is told of an error may send, too.
            data, peer = self.tx.popleft()
            self.wsize -= PyBytes_GET_SIZE(<bytes>data) + HEADER
            try:
                if self.send_one(data, peer):
                    continue
            except BaseException as exc:
                self.callback_failed(exc)
                continue
            self.tx.appendleft((data, peer))
            self.wsize += PyBytes_GET_SIZE(<bytes>data) + HEADER
            self.wait_for_room()
        return 0

    cdef int drop_queue(self) except -1:
        self.tx.clear()
        self.wsize = 0
        if self.retry is not None:
            self.retry.cancel()
            self.retry = None
        return 0


def _name_or_none(ask):
    try:
        return ask()
    except OSError:
        return None


def make_datagram_transport(CoreLoop loop not None, sock, protocol, address=None, waiter=None,
                            extra=None):
    """The transport of a datagram socket, as `_make_datagram_transport` gives it."""
    cdef DatagramTransport t = DatagramTransport.__new__(DatagramTransport)
    t.init(loop, sock, protocol, address, extra)
    loop.schedule(t._connection_made, (), t.context)
    if waiter is not None:
        # Only wake up the waiter when connection_made() has been called.
        loop.schedule(_set_result_unless_cancelled, (waiter, None), None)
    return t
