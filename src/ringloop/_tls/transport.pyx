"""A TLS transport over any stream transport.

`TLSTransport` is one object with two faces: the protocol of the transport below
(`lower`), and the transport of the protocol above. It holds no buffer while nothing
is on its way. What is to be sent belongs to its outgoing half (`outgoing.pyx`).

The states are those of `asyncio.sslproto`, and so is what the protocol above is told:

    INIT -> HANDSHAKE -> OPEN -> FLUSHING -> SHUTDOWN -> LOST

* FLUSHING: close() was called, or the peer closed; `backlog` still has to leave.
* SHUTDOWN: our close_notify is out, the peer's has to come. Data that comes instead is
  not waited for: the connection is closed as a plain one would be.
* An EOF without close_notify closes the connection without an error. That is
  `asyncio.sslproto`'s way, and peers that do so are many.
"""
cimport cython
from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_GET_SIZE

import asyncio
import logging
import ssl
import warnings
from asyncio import constants, sslproto

from ringloop._tls.choose import new_engine
from ringloop._net.flow cimport without_dict
from ringloop._tls.outgoing cimport FLUSHING, HANDSHAKE, LOST, OPEN, SHUTDOWN, TLSWriteHalf

cdef object logger = logging.getLogger("asyncio")
# Programs look for "ssl" in the name of the class, and CPython's tests do.
cdef object _Transport = sslproto._SSLProtocolTransport
cdef object _BufferedProtocol = asyncio.BufferedProtocol
cdef tuple _AGAIN = (ssl.SSLWantReadError, ssl.SSLSyscallError)

cdef double positive(object seconds, double default, str name) except -1:
    if seconds is None:
        return default
    if seconds <= 0:
        raise ValueError(f"{name} should be a positive number, got {seconds}")
    return seconds


@cython.final
cdef class TLSTransport(TLSWriteHalf):
    """An asyncio.Transport that speaks TLS through the transport whose protocol it is."""

    _start_tls_compatible = True
    _sendfile_compatible = constants._SendfileMode.FALLBACK

    cdef object waiter
    cdef dict extra
    cdef object __weakref__
    cdef dict __dict__              # attributes can be set, as on asyncio's

    cdef bint closed                # close() or abort() was called, or the peer closed
    cdef bint told_made             # connection_made() was called
    cdef bint told_eof
    cdef bint buffered
    cdef bint eof                   # the transport below has received EOF
    cdef object error               # what connection_lost() is to be told
    cdef double handshake_timeout, shutdown_timeout
    cdef object timer               # of the handshake, later of the shutdown

    cdef bint reading_paused        # by the protocol above
    cdef bint lower_reading_paused
    cdef Py_ssize_t read_high, read_low

    def __cinit__(self):
        without_dict(self)
        self.closed = True          # until there is something to close

    def __init__(self, loop, protocol, sslcontext, waiter, bint server_side=False,
                 server_hostname=None, bint call_connection_made=True,
                 ssl_handshake_timeout=None, ssl_shutdown_timeout=None):
        self.handshake_timeout = positive(
            ssl_handshake_timeout, constants.SSL_HANDSHAKE_TIMEOUT, "ssl_handshake_timeout")
        self.shutdown_timeout = positive(
            ssl_shutdown_timeout, constants.SSL_SHUTDOWN_TIMEOUT, "ssl_shutdown_timeout")
        if not sslcontext:
            sslcontext = sslproto._create_transport_context(server_side, server_hostname)
        self.loop = loop
        self.waiter = waiter
        self.extra = {"sslcontext": sslcontext}
        self.set_read_limits(None, None)
        self.set_protocol(protocol)
        self.told_made = not call_connection_made
        self.engine = new_engine(sslcontext, server_side,
                                 None if server_side else server_hostname or None)
        self.closed = False

    @property
    def __class__(self):
        # asyncio.Transport has a slot of its own, which no C type can inherit.
        return _Transport

    def __repr__(self):
        state = ("new", "handshake", "open", "flushing", "shutdown", "closed")[<int>self.state]
        return f"<TLSTransport {state} over {self.lower!r}>"

    def __del__(self):
        if not self.closed:
            self.closed = True
            warnings.warn(f"unclosed transport {self!r}", ResourceWarning, source=self)

    @property
    def _ssl_protocol(self):
        return self

    @property
    def _sslcontext(self):
        return self.extra["sslcontext"]

    # -- the protocol of the transport below -----------------------------------------

    def _take_over(self, transport):
        """Become the protocol of a transport that has told one of its full buffer, maybe."""
        self.lower_paused = getattr(transport, "_protocol_paused", False)
        self.protocol_paused = self.lower_paused and transport.get_protocol() is self.protocol
        transport.set_protocol(self)

    def connection_made(self, transport):
        self.lower = transport
        if self.closed:
            self.force_close(None)
            return
        self.state = HANDSHAKE
        self.timer = self.loop.call_later(self.handshake_timeout, self._handshake_timed_out)
        self.handshake()

    def data_received(self, data):
        if self.failed:
            return
        self.engine.feed(data if type(data) is bytes else bytes(data))
        self.proceed()

    def eof_received(self):
        """True: the transport below stays open until we close it."""
        if self.failed:
            return True
        self.eof = True
        if self.state == HANDSHAKE:
            self.handshake_failed(ConnectionResetError("EOF during the TLS handshake"))
        elif self.state == OPEN:
            # What was received and not read goes first, however long that takes.
            self.state = FLUSHING
            self.flush()
        else:
            self.proceed()
        return True

    def connection_lost(self, exc):
        if self.error is not None:
            exc = self.error
            self.error = None
        self.state = LOST
        self.closed = True
        self.backlog.clear()
        self.backlog_off = self.backlog_size = 0
        self.cancel_timer()
        protocol = self.protocol
        self.protocol = None
        if self.waiter is not None:
            self.wake_waiter(exc if exc is not None else ConnectionAbortedError(
                "the connection was closed during the TLS handshake"))
        if self.told_made:
            self.told_made = False
            protocol.connection_lost(exc)

    def pause_writing(self):
        self.lower_paused = True

    def resume_writing(self):
        self.lower_paused = False
        if self.failed or self.state == LOST:
            return
        try:
            self.write_backlog()
            if self.state == FLUSHING:
                self.flush()
        except Exception as exc:
            self.fatal_error(exc, "Fatal error on TLS transport")

    cdef int proceed(self) except -1:
        """Do what the state asks for with what was received."""
        if self.state == OPEN:
            self.read()
        elif self.state == HANDSHAKE:
            self.handshake()
        elif self.state == FLUSHING:
            self.flush()
        elif self.state == SHUTDOWN:
            self.shutdown()
        return 0

    # -- handshake -------------------------------------------------------------------

    cdef int handshake(self) except -1:
        ssl_object = self.engine.ssl_object
        try:
            ssl_object.do_handshake()
            # After an error libssl would not say any more who the peer was.
            self.extra.update(
                ssl_object=ssl_object, peercert=ssl_object.getpeercert(),
                cipher=ssl_object.cipher(), compression=ssl_object.compression())
        except _AGAIN:
            self.send()
        except Exception as exc:
            self.handshake_failed(exc)
        else:
            self.handshake_done()
        return 0

    def _handshake_timed_out(self):
        if self.state == HANDSHAKE and not self.failed:
            self.handshake_failed(ConnectionAbortedError(
                f"SSL handshake is taking longer than {self.handshake_timeout} seconds: "
                "aborting the connection"))

    cdef int handshake_failed(self, object exc) except -1:
        self.fatal_error(exc, "SSL handshake failed on verifying the certificate"
                         if isinstance(exc, ssl.CertificateError) else "SSL handshake failed")
        self.wake_waiter(exc)
        return 0

    cdef int handshake_done(self) except -1:
        self.cancel_timer()
        self.state = OPEN
        if not self.told_made:
            self.told_made = True
            self.corked += 1
            try:
                self.protocol.connection_made(self)
            finally:
                self.corked -= 1
        if self.waiter is not None and self.engine.unread():
            # Who waits gets the transport before its protocol gets data.
            self.wake_waiter(None)
            self.loop.call_soon(self._go_on)
            self.write_backlog()
        else:
            self.wake_waiter(None)
            self.proceed()
        return 0

    cdef int wake_waiter(self, object exc) except -1:
        waiter = self.waiter
        self.waiter = None
        if waiter is not None and not waiter.done():
            if exc is None:
                waiter.set_result(None)
            else:
                waiter.set_exception(exc)
        return 0

    # -- the end ---------------------------------------------------------------------

    cdef int start_shutdown(self) except -1:
        self.closed = True
        if self.state == HANDSHAKE:
            return self.force_close(None)
        if self.state == OPEN or self.state == FLUSHING:
            self.state = FLUSHING
            self.start_shutdown_timer()
            self.flush()
        return 0

    cdef int start_shutdown_timer(self) except -1:
        self.cancel_timer()
        self.timer = self.loop.call_later(self.shutdown_timeout, self._shutdown_timed_out)
        return 0

    def _shutdown_timed_out(self):
        if self.state != LOST:
            self.error = None
            self.force_close(TimeoutError("SSL shutdown timed out"))

    cdef int flush(self) except -1:
        """Go on to SHUTDOWN once everything is read and written."""
        if self.corked:
            return 0  # by whoever is at it
        self.read()
        if self.state != FLUSHING or self.failed:
            return 0
        if not self.closed:
            # The peer has ended without a close_notify.
            if self.reading_paused:
                return 0
            self.closed = True
            self.start_shutdown_timer()
            self.tell_eof()
            if self.failed:
                return 0
        if self.backlog_size or self.engine.untaken():
            return 0
        self.state = SHUTDOWN
        self.shutdown()
        return 0

    cdef int shutdown(self) except -1:
        try:
            if not self.eof:
                self.engine.ssl_object.unwrap()
        except _AGAIN:
            self.send()
            return 0
        except ssl.SSLError as exc:
            if exc.reason != "APPLICATION_DATA_AFTER_CLOSE_NOTIFY":
                return self.fatal_error(exc, "SSL shutdown failed")
        self.lower_paused = False  # there is always room for the last words
        self.send()
        self.tell_eof()
        if not self.failed:
            # The timer goes on: the peer may never take our last bytes.
            self.failed = True
            self.lower.close()
        return 0

    cdef int tell_eof(self) except -1:
        if self.told_eof or not self.told_made:
            return 0
        self.told_eof = True
        try:
            if self.protocol.eof_received() and type(self.protocol) is not TLSTransport:
                logger.warning("returning true from eof_received() has no effect when using ssl")
        except Exception as exc:
            self.fatal_error(exc, "Error calling eof_received()")
        return 0

    cdef int fatal_error(self, object exc, str message) except -1:
        cdef bytes alert
        if isinstance(exc, OSError):
            if self.loop.get_debug():
                logger.debug("%r: %s", self, message, exc_info=exc)
        elif not isinstance(exc, asyncio.CancelledError):
            self.loop.call_exception_handler({
                "message": message, "exception": exc, "transport": self,
                "protocol": self.protocol,
            })
        if self.failed or self.state == LOST:
            return 0
        if isinstance(exc, ssl.SSLError) and not self.lower_paused and not self.eof:
            alert = self.engine.take()
            if alert:
                # The peer should hear why; it has as long for that as for a shutdown.
                self.failed = self.closed = True
                self.error = exc
                self.start_shutdown_timer()
                self.lower.write(alert)
                self.lower.close()
                return 0
        return self.force_close(exc)

    cdef int force_close(self, object exc) except -1:
        cdef bytes data
        if self.state == OPEN and not self.failed and not self.lower_paused:
            # What was written inside data_received(): asyncio's has sent it by now.
            data = self.engine.take()
            if data:
                self.lower.write(data)
        self.closed = self.failed = True
        self.cancel_timer()
        if self.lower is None or self.state == LOST:
            return 0
        if hasattr(self.lower, "_force_close"):
            self.lower._force_close(exc)
        else:
            self.error = exc
            self.lower.abort()
        return 0

    cdef int cancel_timer(self) except -1:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None
        return 0

    def close(self):
        """Send what is buffered and a close_notify, wait for the peer's, then close."""
        if not self.closed:
            self.start_shutdown()

    def abort(self):
        """Drop what is buffered and close at once, without a word to the peer."""
        self._force_close(None)

    def _force_close(self, exc):
        if self.state == LOST:
            return
        self.error = None
        self.force_close(exc)

    def is_closing(self):
        return self.closed

    # -- what is received ------------------------------------------------------------

    cdef int read(self) except -1:
        """Tell the protocol what can be decrypted, then send what it wrote meanwhile."""
        cdef bint was_open = self.state == OPEN
        self.corked += 1
        try:
            self.tell()
        except Exception as exc:
            self.fatal_error(exc, "Fatal error on TLS transport")
        finally:
            self.corked -= 1
        if self.failed or self.state == LOST:
            return 0
        if self.backlog_size:
            self.write_backlog()
        else:
            self.send()
        self.control_lower_reading()
        if was_open and self.state == FLUSHING:
            self.flush()
        return 0

    cdef int tell(self) except -1:
        cdef bytes data
        while ((self.state == OPEN or self.state == FLUSHING) and not self.failed
                and not self.engine.idle()):
            if self.closed:
                # Nobody wants it, but the peer's close_notify may be in it.
                data = self.engine.read()
                if data is None or not data:
                    break
                continue
            if self.reading_paused:
                break
            if self.buffered:
                if not self.tell_buffered():
                    break
                continue
            data = self.engine.read()
            if data is None:
                break
            if PyBytes_GET_SIZE(data) == 0:
                self.peer_closed()
                break
            self.protocol.data_received(data)
        return 0

    cdef int tell_buffered(self) except -1:
        """Read into the protocol's buffer; 0: no more for now."""
        cdef Py_buffer view
        cdef Py_ssize_t n, got = 0
        PyObject_GetBuffer(self.protocol.get_buffer(max(self.engine.unread(), 1)), &view,
                           PyBUF_WRITABLE)
        try:
            if view.len == 0:
                raise RuntimeError("get_buffer() returned an empty buffer")
            n = 1
            while got < view.len and n > 0:
                n = self.engine.read_into(<char *>view.buf + got, view.len - got)
                got += max(n, 0)
        except ssl.SSLError:
            if got == 0:
                raise  # else the next call does
        finally:
            PyBuffer_Release(&view)
        if got:
            self.protocol.buffer_updated(got)
        if n == 0 and not self.closed:
            self.peer_closed()
        return n > 0

    cdef int peer_closed(self) except -1:
        """Its close_notify came."""
        self.tell_eof()
        if self.state == OPEN and not self.failed:
            self.closed = True
            self.state = FLUSHING
            self.start_shutdown_timer()
        return 0

    def _go_on(self):
        if not self.failed:
            self.proceed()

    cdef int control_lower_reading(self) except -1:
        cdef Py_ssize_t n
        cdef bint enough, room
        if not self.reading_paused and not self.lower_reading_paused:
            return 0
        if type(self.lower) is TLSTransport:
            # It must not come to its peer's close_notify: it would close under us.
            enough = self.reading_paused and not self.engine.idle()
            room = not enough
        else:
            n = self.engine.unread()
            enough = n > self.read_high
            room = n <= self.read_low
        if enough and not self.lower_reading_paused and not self.closed:
            self.lower_reading_paused = True
            self.lower.pause_reading()
        elif self.lower_reading_paused and (room or self.closed):
            self.lower_reading_paused = False
            self.lower.resume_reading()
        return 0

    def is_reading(self):
        return not self.reading_paused

    def pause_reading(self):
        self.reading_paused = True

    def resume_reading(self):
        if self.reading_paused:
            self.reading_paused = False
            self.loop.call_soon(self._go_on)

    def get_read_buffer_size(self):
        """Bytes that were received and not decrypted yet."""
        return self.engine.unread()

    def get_read_buffer_limits(self):
        return (self.read_low, self.read_high)

    def set_read_buffer_limits(self, high=None, low=None):
        """How much may be received while the protocol above does not read."""
        self.set_read_limits(high, low)
        self.control_lower_reading()

    cdef int set_read_limits(self, object high, object low) except -1:
        self.read_high, self.read_low = sslproto.add_flowcontrol_defaults(
            high, low, constants.FLOW_CONTROL_HIGH_WATER_SSL_READ)
        return 0

    # -- the rest of a transport -----------------------------------------------------

    def get_extra_info(self, name, default=None):
        """'ssl_object', 'sslcontext', 'peercert', 'cipher', 'compression', or from below."""
        if name in self.extra:
            return self.extra[name]
        if self.lower is not None:
            return self.lower.get_extra_info(name, default)
        return default

    def set_protocol(self, protocol):
        self.protocol = protocol
        self.buffered = isinstance(protocol, _BufferedProtocol)

    def get_protocol(self):
        return self.protocol
