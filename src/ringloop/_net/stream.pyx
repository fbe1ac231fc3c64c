"""The transport of stream sockets (TCP and Unix), on any driver.

Who owns what:

* The fd belongs to `sock` where there is one, else to the transport. It is closed
  in `close_fd` only, after connection_lost() was called and the kernel was made to let
  go of it (`cancel_now`).
* What is to be sent belongs to the outgoing half (`writing.pyx`).
* Bytes received and not delivered belong to `rx0` and `rx`.

`completed` only notes; `dispatch` runs every callback of the protocol, in the
transport's context. Data goes before the error or EOF that followed it.

Receiving has two modes. Many small messages: a lasting receive on the driver's
shared buffers, all pieces of a batch joined into one data_received(). A flood
("bulk"): watch for readiness, and receive in `dispatch`, straight into the bytes
that data_received() gets or the buffer that a BufferedProtocol offers. There is no
copy, an idle connection pins no buffer, and what is received is handled while it is
in the cache. (What the ring's own large receives cost: ARCHITECTURE.md, departure b.)
"""
cimport cython
from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.contextvars cimport PyContext_CopyCurrent, PyContext_Enter, PyContext_Exit
from cpython.object cimport PyObject
from cpython.ref cimport Py_INCREF
from ringloop._sys.bytes cimport shortened
from ringloop._sys.errno cimport EAGAIN, ECANCELED, EINTR, errno
from libc.string cimport memcpy

import asyncio
import logging
import os
import socket
import warnings
from asyncio import constants, trsock
from asyncio.futures import _set_result_unless_cancelled
from inspect import signature

from ringloop._core.loop cimport CoreLoop
from ringloop._driver.base cimport OP_RECV, OP_WATCH, Completion
from ringloop._net.address cimport name_of, unpack
from ringloop._net.flow cimport without_dict
from ringloop._net.writing cimport WriteHalf, set_nodelay
from ringloop._sys.posix cimport MSG_DONTWAIT, POLLIN, SOCK_STREAM, recv, sockaddr
from ringloop._sys.posix cimport close as sys_close

cdef object logger = logging.getLogger("asyncio")
cdef object _Transport = asyncio.transports._FlowControlMixin
cdef object _BufferedProtocol = asyncio.BufferedProtocol

# Server._attach and _detach take the transport since 3.13.
cdef bint _SERVER_KNOWS_CLIENTS = len(
    signature(asyncio.base_events.Server._attach).parameters) == 2

cdef enum:
    BULK_MIN = 16384        # a delivery of this size speaks for bulk mode...
    BULK_AFTER = 4          # ...and so many in a row switch to it
    BULK_LEAVE = 8          # so many smaller ones in a row switch back
    BULK_FIRST = 65536      # bytes of a receive in bulk mode, at first...
    BULK_MAX = 262144       # ...and once a receive has filled that
    BULK_READS = 4          # receives in a row before the other connections


@cython.final
cdef class StreamTransport(WriteHalf):
    """An asyncio.Transport over a connected stream socket."""

    _start_tls_compatible = True
    _sendfile_compatible = constants._SendfileMode.TRY_NATIVE

    @property
    def __class__(self):
        # asyncio.Transport has a slot of its own, which no C type can inherit.
        return _Transport

    cdef int init(self, CoreLoop loop, object sock, int fd, int family, object protocol,
                  object server, object context, dict extra) except -1:
        without_dict(self)
        self.loop = loop
        self.driver = loop.driver
        self.sock = sock
        self._sock_fd = fd
        self.family = family
        self.server = server
        self.context = context
        self.extra = extra
        self.peer = name_of(fd, True)
        self.set_protocol(protocol)
        loop.claim_fd(fd, <PyObject *>self)
        if server is not None:
            if _SERVER_KNOWS_CLIENTS:
                server._attach(self)
            else:
                server._attach()
        return 0

    def __del__(self):
        # Only a loop that was closed lets go of a transport with a live operation.
        if self._sock_fd >= 0:
            text = f"unclosed transport {self!r}"
            self.close_fd()
            self.leave_server()
            warnings.warn(text, ResourceWarning, source=self)  # last: it may raise

    def __repr__(self):
        info = ["StreamTransport"]
        if self._sock_fd < 0:
            info.append("closed")
        else:
            if self.closing:
                info.append("closing")
            info.append(f"fd={self._sock_fd}")
            info.append(f"read={'polling' if self.recv_token and not self.paused else 'idle'}")
            info.append(f"write=<{'polling' if self.send_token else 'idle'}, "
                        f"bufsize={self.wsize}>")
        return f"<{' '.join(info)}>"

    # -- life ------------------------------------------------------------------------

    def _connection_made(self):
        self.made()

    cdef int made(self) except -1:
        """Tell the protocol, in our context; start to read whatever it raises."""
        if self.protocol is None:
            return 0
        try:
            self.protocol.connection_made(self)
        finally:
            self.started = True
            if not self.paused and not self.closing:
                self.start_recv()
        return 0

    def close(self):
        """Stop reading, send what is buffered, then call connection_lost(None)."""
        if self.closing:
            return
        self.closing = True
        self.stop_recv()
        if self.wsize == 0:
            self.conn_lost += 1
            self.loop.schedule(self._call_connection_lost, (None,), self.context)

    def abort(self):
        """Drop what the socket does not take at once; call connection_lost(None) soon."""
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

    def _fatal_error(self, exc, message="Fatal error on transport"):
        self.fatal_error(exc, message)

    def _force_close(self, exc):
        self.force_close(exc)

    cdef int force_close(self, object exc) except -1:
        if self.conn_lost:
            return 0
        self.send_early()  # asyncio's write() has sent by now
        self.closing = True
        self.conn_lost += 1
        self.drop_unsent()
        self.stop_recv()
        self.loop.schedule(self._call_connection_lost, (exc,), self.context)
        return 0

    def _call_connection_lost(self, exc):
        self.lose(exc)

    cdef int lose(self, object exc) except -1:
        """The end for the protocol, and for the fd."""
        if self.lost:
            return 0
        self.lost = True
        self.tell_sendfile(exc)
        protocol = self.protocol
        try:
            protocol.connection_lost(exc)
        finally:
            self.protocol = None
            self.rx0 = self.rx = None
            self.rx_n = 0
            self.close_fd()
            self.leave_server()
        return 0

    def leave_server(self):
        server = self.server
        if server is not None:
            self.server = None
            if _SERVER_KNOWS_CLIENTS:
                server._detach(self)
            else:
                server._detach()

    cdef int close_fd(self) except -1:
        cdef int fd = self._sock_fd
        if fd < 0:
            return 0
        self.own = name_of(fd, False)
        self._sock_fd = -1
        self.loop.unclaim_fd(fd, <PyObject *>self)
        try:
            # The peer must not wait for a completion that is on its way. (A shutdown() would
            # do, but end the connection for whoever has a copy of the fd, too.)
            if self.recv_token:
                self.driver.cancel_now(self.recv_token)
            if self.send_token:
                self.driver.cancel_now(self.send_token)
        finally:
            self.driver.release_fd(fd)
            if self.sock is not None:
                self.sock.close()
            else:
                sys_close(fd)
        return 0

    # -- what asyncio asks of a transport --------------------------------------------

    def get_extra_info(self, name, default=None):
        """'socket', 'sockname', 'peername', or what a layer above has put there."""
        if self.extra is None:
            self.extra = {}
        if name not in self.extra:
            if name == "socket":
                if self.sock is None:
                    self.sock = self._socket()
                self.extra[name] = trsock.TransportSocket(self.sock)
            elif name == "sockname":
                self.extra[name] = self._address(
                    self.own if self._sock_fd < 0 else name_of(self._sock_fd, False))
            elif name == "peername":
                self.extra[name] = self._address(self.peer)
        return self.extra.get(name, default)

    def _socket(self):
        if self._sock_fd >= 0:
            # From now on the socket object owns the fd.
            return socket.socket(self.family, SOCK_STREAM, 0, self._sock_fd)
        with socket.socket(self.family, SOCK_STREAM) as closed:
            return closed

    def _address(self, raw):
        cdef bytes b = raw
        if b is None:
            return None
        return unpack(<const sockaddr *>PyBytes_AS_STRING(b), <unsigned int>len(b))

    @property
    def _sock(self):
        if self._sock_fd < 0:
            return None
        self.get_extra_info("socket")
        return self.sock

    @property
    def _protocol_paused(self):
        return self.protocol_paused

    def set_protocol(self, protocol):
        self.protocol = protocol
        self.buffered = isinstance(protocol, _BufferedProtocol)

    def get_protocol(self):
        return self.protocol

    # -- receiving -------------------------------------------------------------------

    def is_reading(self):
        return not self.closing and not self.paused

    def pause_reading(self):
        """Deliver nothing more until resume_reading().

        The receive is cancelled only when something arrives meanwhile, which is kept:
        a short pause costs nothing, a long one no more than what was on its way.
        """
        if self.closing or self.paused:
            return
        self.paused = True
        if self.loop._debug:
            logger.debug("%r pauses reading", self)

    def resume_reading(self):
        if self.closing or not self.paused:
            return
        self.paused = False
        if self.started:
            self.driver.to_dispatch(self)
        if self.loop._debug:
            logger.debug("%r resumes reading", self)

    cdef int start_recv(self) except -1:
        if self.recv_token or self.rx_ended:
            return 0
        if self.bulk:
            self.recv_token = self.driver.watch_start(self, self._sock_fd, POLLIN)
        else:
            self.recv_token = self.driver.recv_start(self, self._sock_fd)
        return 0

    cdef int stop_recv(self) except -1:
        if self.recv_token and not self.recv_stopping:
            self.recv_stopping = True
            self.driver.cancel(self.recv_token)
        return 0

    cdef void completed(self, Completion *c) noexcept:
        if c.kind == OP_RECV:
            self.on_recv(c)
        elif c.kind == OP_WATCH:
            if not c.more:
                self.recv_token = 0
                self.recv_stopping = False
            elif self.paused:
                self.stop_recv()  # level-triggered: it would tell of the same bytes for ever
            # An error is found by the receive that follows.
            self.readable = self.readable or c.res != -ECANCELED
            self.driver.to_dispatch(self)
        else:
            self.on_send(c)

    cdef void on_recv(self, Completion *c) noexcept:
        cdef bint stopped = False
        cdef bytes piece
        if not c.more:
            self.recv_token = 0
            stopped = self.recv_stopping
            self.recv_stopping = False
        if not self.conn_lost and not self.closing:
            if c.res > 0:
                try:
                    piece = PyBytes_FromStringAndSize(c.data, c.res)
                    if self.rx0 is None:
                        self.rx0 = piece
                    elif self.rx is None:
                        self.rx = [piece]
                    else:
                        self.rx.append(piece)
                    self.rx_n += c.res
                    if self.paused:
                        self.stop_recv()
                except BaseException:  # no memory: the stream has a hole now
                    self.rx_error = 12  # ENOMEM
            elif c.res == 0:
                self.rx_eof = self.rx_ended = True
            elif not (stopped and c.res == -ECANCELED):
                self.rx_error = -c.res
                self.rx_ended = True
        if not self.in_dispatch:
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
            self.loop.call_exception_handler({
                "message": f"Exception in a callback of {self!r}", "exception": exc,
                "transport": self, "protocol": self.protocol,
            })
        finally:
            PyContext_Exit(self.context)
        return 0

    cdef int tell(self) except -1:
        """All that the protocol has to hear, in the order in which it happened."""
        if self.started and not self.paused and not self.closing:
            if self.rx_n:
                self.deliver()
            if self.readable and not (self.rx_ended or self.rx_n or self.paused or self.closing):
                self.read_bulk()
            if (self.rx_eof and not self.rx_n and not self.paused and not self.closing
                    and not self.tx_error):
                # (After a failed send the kernel gives the error once, then EOF.)
                self.rx_eof = False
                self.deliver_eof()
            if self.rx_error and not self.rx_n and not self.paused and not self.conn_lost:
                self.fatal_error(OSError(self.rx_error, os.strerror(self.rx_error)),
                                 "Fatal read error on socket transport")
        if self.conn_lost:
            return 0
        if self.tx_error:
            self.fatal_error(OSError(self.tx_error, os.strerror(self.tx_error)),
                             "Fatal write error on socket transport")
            return 0
        if self.protocol_paused and self.wsize <= self.low:
            self.resume_protocol()
        if self.wsize == 0 and not self.conn_lost:
            self.all_sent()
        if self.file_waiter is not None and self.wsize == 0 and self.send_token == 0:
            self.tell_sendfile(None)
        if self.started and self.recv_token == 0 and not self.paused and not self.closing:
            self.start_recv()
        return 0

    cdef int deliver(self) except -1:
        """Tell of what came through the shared buffers."""
        cdef bytes data
        if not self.bulk:  # else these are the last ones of the mode before
            self.bulk_score = self.bulk_score + 1 if self.rx_n >= BULK_MIN else 0
            if self.bulk_score >= BULK_AFTER:
                self.bulk = True
                self.bulk_score = BULK_LEAVE
                self.bulk_size = BULK_FIRST
                self.stop_recv()
        data = self.take_received()
        if self.buffered:
            return self.deliver_buffered(PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data))
        return self.received(data)

    cdef bytes take_received(self):
        cdef bytes data = self.rx0
        if self.rx is not None:
            self.rx.insert(0, data)
            data = b"".join(self.rx)
            self.rx = None
        self.rx0 = None
        self.rx_n = 0
        return data

    cdef int received(self, bytes data) except -1:
        try:
            self.protocol.data_received(data)
        except BaseException as exc:
            self.receive_failed(exc, "data_received()")
        return 0

    cdef int receive_failed(self, object exc, str what) except -1:
        if isinstance(exc, (SystemExit, KeyboardInterrupt)):
            raise exc
        return self.fatal_error(exc, f"Fatal error: protocol.{what} call failed.")

    cdef int read_bulk(self) except -1:
        """The socket is readable: receive and tell, but leave time for the others."""
        cdef Py_ssize_t n
        cdef int _i
        self.readable = False
        for _i in range(BULK_READS):
            n = self.read_bulk_once()
            if n >= BULK_MIN:
                self.bulk_score = BULK_LEAVE
            elif n:
                self.bulk_score -= 1
                if self.bulk_score <= 0:
                    self.bulk = False
                    self.bulk_score = 0
                    self.stop_recv()
            if n < self.bulk_size or self.paused or self.closing:
                break
            self.bulk_size = BULK_MAX
        if self.paused or self.rx_ended:
            self.stop_recv()
        return 0

    cdef Py_ssize_t read_bulk_once(self) except -1:
        """One receive in place, told at once: the number of bytes, 0 if there were none."""
        cdef bytes data = None
        cdef PyObject *p
        cdef ssize_t n
        cdef Py_buffer view
        cdef int err
        cdef object protocol = self.protocol  # get_buffer() may set another
        cdef bint buffered = self.buffered
        if buffered:
            if not self.offered_buffer(&view, -1):
                return 0
            n = recv(self._sock_fd, view.buf, view.len, MSG_DONTWAIT)
            err = errno
            PyBuffer_Release(&view)
        else:
            data = PyBytes_FromStringAndSize(NULL, self.bulk_size)
            n = recv(self._sock_fd, PyBytes_AS_STRING(data), self.bulk_size, MSG_DONTWAIT)
            err = errno
        if n > 0:
            if buffered:
                self.buffer_updated(protocol, n)
                return n
            if n * 4 < self.bulk_size:
                data = PyBytes_FromStringAndSize(PyBytes_AS_STRING(data), n)
            elif n < self.bulk_size:
                p = <PyObject *>data
                Py_INCREF(data)
                data = None
                data = shortened(p, n)
            self.received(data)
            return n
        if n == 0:
            self.rx_eof = self.rx_ended = True
        elif err != EAGAIN and err != EINTR:
            self.rx_error = err
            self.rx_ended = True
        return 0

    cdef int deliver_buffered(self, const char *p, Py_ssize_t n) except -1:
        """Copy what was received into the buffers that a BufferedProtocol offers."""
        cdef Py_buffer view
        cdef Py_ssize_t k
        cdef object protocol
        while n and not self.closing:
            if self.paused or not self.buffered:
                # Not to be told now, or not in this way: keep it for later.
                self.rx0 = PyBytes_FromStringAndSize(p, n)
                self.rx_n = n
                if not self.paused:
                    self.driver.to_dispatch(self)
                break
            protocol = self.protocol  # get_buffer() may set another
            if not self.offered_buffer(&view, n):
                break
            k = min(n, view.len)
            memcpy(view.buf, p, k)
            PyBuffer_Release(&view)
            p += k
            n -= k
            self.buffer_updated(protocol, k)
        return 0

    cdef int offered_buffer(self, Py_buffer *view, Py_ssize_t hint) except -1:
        """The protocol's buffer; 0 when that failed and the connection is closed."""
        try:
            PyObject_GetBuffer(self.protocol.get_buffer(hint), view, PyBUF_WRITABLE)
            if view.len == 0:
                PyBuffer_Release(view)
                raise RuntimeError("get_buffer() returned an empty buffer")
        except BaseException as exc:
            self.receive_failed(exc, "get_buffer()")
            return 0
        return 1

    cdef int buffer_updated(self, object protocol, Py_ssize_t n) except -1:
        """Tell whoever offered the buffer."""
        try:
            protocol.buffer_updated(n)
        except BaseException as exc:
            self.receive_failed(exc, "buffer_updated()")
        return 0

    cdef int deliver_eof(self) except -1:
        if self.loop._debug:
            logger.debug("%r received EOF", self)
        try:
            keep_open = self.protocol.eof_received()
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            return self.fatal_error(exc, "Fatal error: protocol.eof_received() call failed.")
        if not keep_open:
            self.close()
        return 0


cdef StreamTransport new_transport(CoreLoop loop, object sock, int fd, int family,
                                   object protocol, object server, object context,
                                   dict extra):
    cdef StreamTransport t = StreamTransport.__new__(StreamTransport)
    t.init(loop, sock, fd, family, protocol, server, context, extra)
    return t


def make_transport(CoreLoop loop not None, sock, protocol, waiter=None, extra=None, server=None):
    """The transport of a connected socket object, as `_make_socket_transport` gives it."""
    cdef StreamTransport t
    set_nodelay(sock.fileno(), sock.family)
    t = new_transport(loop, sock, sock.fileno(), sock.family, protocol, server,
                      PyContext_CopyCurrent(), dict(extra) if extra else None)
    loop.schedule(t._connection_made, (), t.context)
    if waiter is not None:
        # Only wake up the waiter when connection_made() has been called.
        loop.schedule(_set_result_unless_cancelled, (waiter, None), None)
    return t
