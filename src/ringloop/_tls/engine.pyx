"""TLS without I/O: ciphertext in, plaintext out, and the other way.

An engine has one connection's `ssl.SSLObject`, made by the caller's own context, so
that all of its settings and callbacks hold. It is fed what was received, gives out
what is to be sent, and does neither by itself. The handshake and the shutdown go
through `ssl_object` on every engine; what differs is the road of the data.

`MemoryEngine` is the one that works everywhere: `ssl.MemoryBIO` on both sides.
"""
from cpython.bytes cimport PyBytes_GET_SIZE
from cpython.memoryview cimport PyMemoryView_FromMemory

import ssl

cdef extern from "Python.h":
    int PyBUF_READ
    int PyBUF_WRITE

cdef object _WantRead = ssl.SSLWantReadError
cdef object _SSLObject = ssl.SSLObject

cdef enum:
    READ_MAX = 262144           # plaintext of one read(): a bound, not an allocation
    RECORD_MAX = 16384          # plaintext of a record


cdef class Engine:
    """What a TLS transport asks of an engine.

    Each is made of an SSL object and the two memory BIOs that this was made with.
    """

    cdef int feed(self, bytes data) except -1:
        """Take received ciphertext, which is kept by reference or copied."""
        raise NotImplementedError

    cdef bytes read(self):
        """All plaintext there is, up to READ_MAX or so.

        None: more ciphertext is needed. Empty: the peer's close_notify. Data comes
        before the ssl.SSLError that followed it, which every later call raises, one of
        read_into() and write(), too.
        """
        raise NotImplementedError

    cdef Py_ssize_t read_into(self, char *p, Py_ssize_t n) except -2:
        """The same into `n` bytes of memory: how many there were, 0 or -1 for None."""
        raise NotImplementedError

    cdef Py_ssize_t write(self, const char *p, Py_ssize_t n) except -2:
        """Encrypt; how many bytes of plaintext were taken.

        -1: none, as the peer has to say something first. Then the same bytes must be
        given again, wherever they lie.
        """
        raise NotImplementedError

    cdef bytes take(self):
        """The ciphertext that is to be sent; empty if there is none."""
        raise NotImplementedError

    cdef bint idle(self) except -1:
        """Whether read() has nothing to give before more is fed."""
        raise NotImplementedError

    cdef Py_ssize_t unread(self) except -1:
        """Bytes of ciphertext that were fed and not used yet."""
        raise NotImplementedError

    cdef Py_ssize_t untaken(self) except -1:
        """Bytes of ciphertext that wait for `take`."""
        raise NotImplementedError


cdef class MemoryEngine(Engine):
    """By the `ssl` module alone."""

    def __init__(self, ssl_object, incoming, outgoing):
        self.ssl_object = ssl_object
        self.incoming = incoming
        self.outgoing = outgoing
        # Its methods only pass on; a context may have a class of its own, though.
        self.sslobj = ssl_object._sslobj if type(ssl_object) is _SSLObject else ssl_object

    cdef int feed(self, bytes data) except -1:
        self.incoming.write(data)
        return 0

    cdef bytes read(self):
        cdef list pieces = []
        cdef bytes piece
        cdef Py_ssize_t n = 0
        if self.error is not None:
            raise self.error
        while n < READ_MAX:
            try:
                piece = self.sslobj.read(RECORD_MAX)
            except _WantRead:
                break
            except ssl.SSLZeroReturnError:
                piece = b""
            except ssl.SSLError as exc:
                # libssl tells it once, but the good data goes first.
                self.error = exc
                if not pieces:
                    raise
                break
            if not piece:
                self.closed = True
                break
            n += PyBytes_GET_SIZE(piece)
            pieces.append(piece)
            if self.incoming.pending == 0 and self.sslobj.pending() == 0:
                break  # else the next read() would say so, by an exception
        if not pieces:
            return b"" if self.closed else None
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    cdef Py_ssize_t read_into(self, char *p, Py_ssize_t n) except -2:
        if self.error is not None:
            raise self.error
        try:
            return self.sslobj.read(n, PyMemoryView_FromMemory(p, n, PyBUF_WRITE))
        except _WantRead:
            return -1
        except ssl.SSLZeroReturnError:
            return 0
        except ssl.SSLError as exc:
            self.error = exc
            raise

    cdef Py_ssize_t write(self, const char *p, Py_ssize_t n) except -2:
        if self.error is not None:
            raise self.error
        try:
            return self.sslobj.write(PyMemoryView_FromMemory(<char *>p, n, PyBUF_READ))
        except _WantRead:
            return -1

    cdef bytes take(self):
        return self.outgoing.read()

    cdef bint idle(self) except -1:
        return (self.error is None and not self.closed and self.incoming.pending == 0
                and self.sslobj.pending() == 0)

    cdef Py_ssize_t unread(self) except -1:
        return self.incoming.pending

    cdef Py_ssize_t untaken(self) except -1:
        return self.outgoing.pending
