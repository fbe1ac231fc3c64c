"""The outgoing half of a TLS transport: what waits to be sent, and flow control.

Plaintext that cannot leave yet waits in `backlog`, not encrypted: what the transport
below has no room for is not made in the first place. What is written inside
data_received() leaves when that returns, in one piece.
"""
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE

import logging
from asyncio import constants, sslproto
from collections import deque

cdef object logger = logging.getLogger("asyncio")

cdef enum:
    PIECE_MAX = 65536       # plaintext that is encrypted before the transport below gets it
    RECORD_MAX = 16384      # small pieces of the backlog are joined up to this


cdef class TLSWriteHalf:
    """write() and its kin, for a transport that adds the rest."""

    def __cinit__(self):
        self.backlog = deque()
        self.set_write_limits(None, None)

    cdef int fatal_error(self, object exc, str message) except -1:
        """Report and close: the transport's part."""
        raise NotImplementedError

    def write(self, data):
        """Encrypt and send `data`; what the transport below has no room for waits.

        bytes are kept by reference, other buffers are copied before write() returns.
        """
        if type(data) is not bytes:
            if not isinstance(data, (bytes, bytearray, memoryview)):
                raise TypeError("data: expecting a bytes-like instance, "
                                f"got {type(data).__name__}")
            data = bytes(data)
        if data:
            self.write_bytes(<bytes>data)

    def writelines(self, list_of_data):
        """Write every buffer of a list, as one."""
        self.write(b"".join(list_of_data))

    cdef int write_bytes(self, bytes data) except -1:
        cdef Py_ssize_t n = PyBytes_GET_SIZE(data)
        if (self.state != OPEN and self.state != HANDSHAKE) or self.failed:
            if self.writes_lost >= constants.LOG_THRESHOLD_FOR_CONNLOST_WRITES:
                logger.warning("SSL connection is closed")
            self.writes_lost += 1
            return 0
        if (self.state == OPEN and self.backlog_size == 0 and not self.lower_paused
                and n <= PIECE_MAX):
            try:
                if self.engine.write(PyBytes_AS_STRING(data), n) == n:
                    if not self.corked or self.engine.untaken() >= PIECE_MAX:
                        self.send()
                    return 0
            except Exception as exc:
                return self.fatal_error(exc, "Fatal error on TLS transport")
        self.backlog.append(data)
        self.backlog_size += n
        if self.state == OPEN:
            self.write_backlog()
        else:
            self.control_protocol_writing()
        return 0

    def _test__append_write_backlog(self, data):
        # CPython's own tests of TLS call it by this name.
        self.backlog.append(bytes(data))
        self.backlog_size += len(data)

    cdef bytes next_piece(self):
        """The first of the backlog, small ones joined: each write makes a record."""
        cdef bytes piece = self.backlog[0]
        cdef Py_ssize_t n = PyBytes_GET_SIZE(piece) - self.backlog_off
        cdef list pieces
        if n >= RECORD_MAX // 2 or len(self.backlog) == 1:
            return piece
        pieces = [piece[self.backlog_off:]]
        self.backlog.popleft()
        while self.backlog and n + len(self.backlog[0]) <= RECORD_MAX:
            piece = self.backlog.popleft()
            n += PyBytes_GET_SIZE(piece)
            pieces.append(piece)
        piece = b"".join(pieces)
        self.backlog.appendleft(piece)
        self.backlog_off = 0
        return piece

    cdef int write_backlog(self) except -1:
        cdef bytes piece
        cdef Py_ssize_t n
        try:
            while (self.backlog_size and not self.lower_paused and not self.failed
                    and self.state != HANDSHAKE):
                piece = self.next_piece()
                n = self.engine.write(
                    PyBytes_AS_STRING(piece) + self.backlog_off,
                    min(PyBytes_GET_SIZE(piece) - self.backlog_off, PIECE_MAX))
                if n < 0:
                    break
                self.backlog_off += n
                self.backlog_size -= n
                if self.backlog_off == PyBytes_GET_SIZE(piece):
                    self.backlog.popleft()
                    self.backlog_off = 0
                if self.engine.untaken() >= PIECE_MAX:
                    self.send()
        except Exception as exc:
            return self.fatal_error(exc, "Fatal error on TLS transport")
        if not self.failed:
            self.send()
            self.control_protocol_writing()
        return 0

    cdef int send(self) except -1:
        """Hand the transport below what libssl has made."""
        cdef bytes data
        if not self.lower_paused and self.state != LOST:
            data = self.engine.take()
            if PyBytes_GET_SIZE(data):
                self.lower.write(data)
            # What the protocol was paused for may have been this alone.
            if self.protocol_paused and self.state == OPEN:
                self.control_protocol_writing()
        return 0

    def write_eof(self):
        raise NotImplementedError

    def can_write_eof(self):
        return False

    # -- flow control ----------------------------------------------------------------

    @property
    def _loop(self):
        # asyncio's fallback of sendfile() makes futures of it.
        return self.loop

    def get_write_buffer_size(self):
        """Bytes that the transport below was not given yet."""
        return self.backlog_size + self.engine.untaken()

    def get_write_buffer_limits(self):
        return (self.low, self.high)

    def set_write_buffer_limits(self, high=None, low=None):
        self.set_write_limits(high, low)
        self.control_protocol_writing()

    cdef int set_write_limits(self, object high, object low) except -1:
        self.high, self.low = sslproto.add_flowcontrol_defaults(
            high, low, constants.FLOW_CONTROL_HIGH_WATER_SSL_WRITE)
        return 0

    @property
    def _protocol_paused(self):
        return self.protocol_paused

    cdef int control_protocol_writing(self) except -1:
        cdef Py_ssize_t size = self.backlog_size + self.engine.untaken()
        if size > self.high and not self.protocol_paused:
            self.protocol_paused = True
            self.tell_flow("pause_writing")
        elif size <= self.low and self.protocol_paused:
            self.protocol_paused = False
            self.tell_flow("resume_writing")
        return 0

    cdef int tell_flow(self, str what) except -1:
        try:
            getattr(self.protocol, what)()
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self.loop.call_exception_handler({
                "message": f"protocol.{what}() failed", "exception": exc,
                "transport": self, "protocol": self.protocol,
            })
        return 0
