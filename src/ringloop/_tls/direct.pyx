"""The engine that calls libssl itself, on the SSL of the caller's own SSL object.

The SSL object is made by the `ssl` module, which also makes the handshake and the
shutdown on it. Only its two memory BIOs are replaced by one of ours, which reads from
the `bytes` that was received and writes to the `bytes` that will be sent; and the data
is read and written by libssl directly: no exception for "no more", no buffer larger
than what there is.

The GIL is held all the time: a record takes microseconds, and the callbacks of the
`ssl` module (SNI, session tickets) need it. Only the handshake, in the `ssl` module,
lets go of it while our BIO is called; so that touches no Python object.

Errors are the `ssl` module's own. libssl leaves them in the thread's error queue, and an
SSL that has failed neither reads nor touches the queue any more: the `ssl` module,
asked to read, raises what it finds there.
"""
cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.object cimport PyObject
from libc.stdlib cimport free, realloc
from libc.string cimport memcpy

import ssl

from ringloop._sys.bytes cimport shortened
from ringloop._tls.engine cimport Engine
from ringloop._tls.openssl cimport BIO, BIO_METHOD, SSL, lib, ssl_of, why_not_direct

cdef extern from "Python.h":
    # Without Cython's own references: it resizes what has a single one.
    PyObject *new_bytes "PyBytes_FromStringAndSize"(const char *p, Py_ssize_t n) except NULL
    char *bytes_start "PyBytes_AS_STRING"(PyObject *p)
    void Py_XDECREF(PyObject *p)

cdef enum:
    RECORD_MAX = 16384          # plaintext of a record
    READ_MAX = 262144           # plaintext of one read(): a bound, not an allocation
    RECORD_ADDS = 128           # more than any cipher adds to a record

    # OpenSSL 3
    SSL_ERROR_WANT_READ = 2
    SSL_ERROR_WANT_WRITE = 3
    SSL_ERROR_ZERO_RETURN = 6
    SSL_CTRL_MODE = 33
    SSL_MODE_RELEASE_BUFFERS = 0x10
    SSL_OP_NO_RENEGOTIATION = 0x40000000
    BIO_TYPE_SOURCE_SINK = 0x0400
    BIO_CTRL_PENDING = 10
    BIO_CTRL_FLUSH = 11
    BIO_CTRL_WPENDING = 13
    BIO_FLAGS_RWS = 0x07
    BIO_FLAGS_SHOULD_RETRY = 0x08
    BIO_FLAGS_READ = 0x01


cdef inline void forget_errors() noexcept nogil:
    """Empty the thread's error queue, as SSL_get_error asks for.

    ERR_clear_error goes through all its places, whether or not there is anything.
    """
    if lib.ERR_peek_error():
        lib.ERR_clear_error()


cdef struct Flow:
    # what was received: in `received`
    const char *p
    size_t left
    # what is to be sent: in `sending`, of `cap` bytes...
    char *out
    size_t n
    size_t cap
    # ...and, when that is full or was not made, in memory that needs no GIL
    char *spill
    size_t spill_n
    size_t spill_cap


cdef int bio_read(BIO *bio, char *to, int n) noexcept nogil:
    cdef Flow *f = <Flow *>lib.BIO_get_data(bio)
    lib.BIO_clear_flags(bio, BIO_FLAGS_RWS | BIO_FLAGS_SHOULD_RETRY)
    if f == NULL or n <= 0:
        return 0
    if f.left == 0:
        lib.BIO_set_flags(bio, BIO_FLAGS_READ | BIO_FLAGS_SHOULD_RETRY)
        return -1
    if <size_t>n > f.left:
        n = <int>f.left
    memcpy(to, f.p, n)
    f.p += n
    f.left -= n
    return n


cdef int bio_write(BIO *bio, const char *data, int n) noexcept nogil:
    cdef Flow *f = <Flow *>lib.BIO_get_data(bio)
    cdef char *p
    cdef size_t cap
    lib.BIO_clear_flags(bio, BIO_FLAGS_RWS | BIO_FLAGS_SHOULD_RETRY)
    if f == NULL or n <= 0:
        return -1
    if f.spill_n == 0 and f.n + n <= f.cap:
        memcpy(f.out + f.n, data, n)
        f.n += n
        return n
    if f.spill_n + n > f.spill_cap:
        cap = (f.spill_n + n) * 2
        p = <char *>realloc(f.spill, cap)
        if p == NULL:
            return -1
        f.spill = p
        f.spill_cap = cap
    memcpy(f.spill + f.spill_n, data, n)
    f.spill_n += n
    return n


cdef long bio_ctrl(BIO *bio, int command, long number, void *p) noexcept nogil:
    cdef Flow *f = <Flow *>lib.BIO_get_data(bio)
    if command == BIO_CTRL_FLUSH:
        return 1
    if f != NULL and command == BIO_CTRL_PENDING:
        return <long>f.left
    if f != NULL and command == BIO_CTRL_WPENDING:
        return <long>(f.n + f.spill_n)
    return 0


cdef BIO_METHOD *_method = NULL


cdef BIO_METHOD *bio_method() except NULL:
    """Ours; made once."""
    global _method
    cdef BIO_METHOD *m
    if _method == NULL:
        m = lib.BIO_meth_new(lib.BIO_get_new_index() | BIO_TYPE_SOURCE_SINK, b"ringloop")
        if m == NULL:
            raise MemoryError
        lib.BIO_meth_set_read(m, bio_read)
        lib.BIO_meth_set_write(m, bio_write)
        lib.BIO_meth_set_ctrl(m, bio_ctrl)
        _method = m
    return _method


@cython.final
@cython.no_gc_clear  # `flow` points into `received`
cdef class DirectEngine(Engine):
    """By libssl itself; RuntimeError where `why_not_direct()` says why that cannot be."""

    cdef SSL *ssl                   # `ssl_object` owns it
    cdef BIO *bio                   # one reference is ours, two are the SSL's
    cdef object sslobj              # the C object in `ssl_object`
    cdef Flow flow
    cdef bytes received
    cdef PyObject *sending          # bytes; owned, or NULL
    cdef object error
    cdef bint closed

    def __init__(self, ssl_object, incoming, outgoing, bint server_side):
        cdef SSL *s
        cdef BIO *bio
        reason = why_not_direct()
        if reason is not None:
            raise RuntimeError(f"libssl cannot be called directly: {reason}")
        s = ssl_of(ssl_object, incoming, outgoing)
        if s == NULL:
            raise TypeError(f"{ssl_object!r} is no SSLObject of the ssl module")
        bio = lib.BIO_new(bio_method())
        if bio == NULL:
            raise MemoryError
        self.ssl_object = ssl_object
        self.sslobj = ssl_object._sslobj
        self.ssl = s
        self.bio = bio
        lib.BIO_set_init(bio, 1)
        lib.BIO_set_data(bio, &self.flow)
        lib.BIO_up_ref(bio)  # SSL_set_bio takes one for both
        lib.SSL_set_bio(s, bio, bio)
        # 34 KiB of an idle connection.
        lib.SSL_ctrl(s, SSL_CTRL_MODE, SSL_MODE_RELEASE_BUFFERS, NULL)
        if server_side:
            lib.SSL_set_options(s, SSL_OP_NO_RENEGOTIATION)

    def __dealloc__(self):
        if self.bio != NULL:
            # The SSL object may outlive us.
            lib.BIO_set_data(self.bio, NULL)
            lib.BIO_free(self.bio)
        free(self.flow.spill)
        Py_XDECREF(self.sending)

    cdef int feed(self, bytes data) except -1:
        if self.flow.left:
            data = self.flow.p[:self.flow.left] + data
        self.received = data
        self.flow.p = PyBytes_AS_STRING(data)
        self.flow.left = PyBytes_GET_SIZE(data)
        return 0

    cdef Py_ssize_t read_some(self, char *p, Py_ssize_t n) except -2:
        """SSL_read; 0: close_notify, -1: no more for now."""
        cdef int r, why
        forget_errors()
        r = lib.SSL_read(self.ssl, p, <int>min(n, READ_MAX))
        if self.flow.left == 0:
            self.received = None  # maybe 256 KiB, for as long as the connection is idle
        if r > 0:
            return r
        why = lib.SSL_get_error(self.ssl, r)
        if why == SSL_ERROR_WANT_READ or why == SSL_ERROR_WANT_WRITE:
            return -1
        if why == SSL_ERROR_ZERO_RETURN:
            self.closed = True
            return 0
        self.error = self.what_failed()
        raise self.error

    cdef object what_failed(self):
        """The ssl module's exception for what is in libssl's error queue."""
        try:
            self.sslobj.read(1)
        except ssl.SSLError as exc:
            if not isinstance(exc, (ssl.SSLWantReadError, ssl.SSLWantWriteError)):
                return exc
        lib.ERR_clear_error()
        return ssl.SSLError(ssl.SSL_ERROR_SSL, "TLS failed, and libssl does not say why")

    cdef bytes read(self):
        cdef char record[RECORD_MAX]
        cdef PyObject *data
        cdef Py_ssize_t size, n, got = 0
        if self.error is not None:
            raise self.error
        if self.closed:
            return b""
        if self.flow.left <= RECORD_MAX:
            # One record, most likely: what it holds is known only afterwards.
            n = self.read_some(record, RECORD_MAX)
            if n < 0:
                return None
            return PyBytes_FromStringAndSize(record, n)
        # What is inside cannot be more than what is outside.
        size = min(<Py_ssize_t>self.flow.left, READ_MAX)
        data = new_bytes(NULL, size)
        try:
            while got < size and not self.idle():
                n = self.read_some(bytes_start(data) + got, size - got)
                if n <= 0:
                    break
                got += n
        except ssl.SSLError:
            # The good data goes first; the next read() raises it.
            if got == 0:
                Py_XDECREF(data)
                raise
        if got == 0:
            Py_XDECREF(data)
            return b"" if self.closed else None
        return shortened(data, got)

    cdef Py_ssize_t read_into(self, char *p, Py_ssize_t n) except -2:
        if self.error is not None:
            raise self.error
        if self.closed:
            return 0
        return self.read_some(p, n)

    cdef Py_ssize_t write(self, const char *p, Py_ssize_t n) except -2:
        cdef int r, why
        if self.error is not None:
            raise self.error
        self.make_room(n + (n // RECORD_MAX + 1) * RECORD_ADDS)
        forget_errors()
        r = lib.SSL_write(self.ssl, p, <int>n)
        if r > 0:
            return r
        why = lib.SSL_get_error(self.ssl, r)
        if why == SSL_ERROR_WANT_READ or why == SSL_ERROR_WANT_WRITE:
            return -1
        self.error = self.what_failed()
        raise self.error

    cdef int make_room(self, size_t n) except -1:
        """See that `n` bytes fit into `sending`."""
        cdef PyObject *larger
        if self.flow.spill_n or self.flow.n + n <= self.flow.cap:
            return 0
        if self.flow.n:
            n = 2 * (self.flow.n + n)
        larger = new_bytes(NULL, n)
        if self.flow.n:
            memcpy(bytes_start(larger), self.flow.out, self.flow.n)
        Py_XDECREF(self.sending)
        self.sending = larger
        self.flow.out = bytes_start(larger)
        self.flow.cap = n
        return 0

    cdef bytes take(self):
        cdef bytes data = None
        cdef PyObject *sending = self.sending
        cdef Py_ssize_t n = self.flow.n
        if n:
            self.sending = NULL
            self.flow.out = NULL
            self.flow.n = self.flow.cap = 0
            data = shortened(sending, n)
        if self.flow.spill_n:
            spilt = self.flow.spill[:self.flow.spill_n]
            data = spilt if data is None else data + spilt
            free(self.flow.spill)
            self.flow.spill = NULL
            self.flow.spill_n = self.flow.spill_cap = 0
        return data if data is not None else b""

    cdef bint idle(self) except -1:
        return (self.flow.left == 0 and self.error is None and not self.closed
                and lib.SSL_pending(self.ssl) == 0)

    cdef Py_ssize_t unread(self) except -1:
        return self.flow.left

    cdef Py_ssize_t untaken(self) except -1:
        return self.flow.n + self.flow.spill_n
