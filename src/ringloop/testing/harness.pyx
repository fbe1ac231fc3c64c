"""A driver's contract within reach of Python: start operations, run, look at completions."""
from libc.stdint cimport uint64_t

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE

from ringloop._driver.base cimport Completion, Driver, Sink
from ringloop._sys.files cimport FileOp
from ringloop._sys.posix cimport iovec


cdef class RecordingSink(Sink):
    """Notes every completion as (token, kind, res, more, data)."""

    cdef readonly list completions
    cdef Driver driver
    cdef readonly int dispatched
    cdef readonly int flushed
    cdef object on_dispatch
    cdef object on_flush

    def __init__(self, Driver driver not None, on_dispatch=None, on_flush=None):
        self.driver = driver
        self.completions = []
        self.on_dispatch = on_dispatch
        self.on_flush = on_flush

    cdef void completed(self, Completion *c) noexcept:
        data = c.data[:c.res] if c.data != NULL and c.res > 0 else None
        self.completions.append((c.token, c.kind, c.res, bool(c.more), data))
        self.driver.to_dispatch(self)

    cdef int dispatch(self) except -1:
        self.dispatched += 1
        if self.on_dispatch is not None:
            self.on_dispatch()
        return 0

    cdef void flush(self) noexcept:
        self.flushed += 1
        if self.on_flush is not None:
            self.on_flush()


cdef class Harness:
    """The operations of a driver, for tests of the contract in `_driver/base.pyx`."""

    cdef readonly Driver driver

    def __init__(self, Driver driver not None):
        self.driver = driver

    def attach(self):
        self.driver.attach()

    def run(self, double timeout):
        self.driver.run(timeout)

    def dispatch(self):
        """Dispatch what is queued; the number of sinks."""
        cdef Sink sink
        cdef Py_ssize_t n = self.driver.dispatch_queue.n - self.driver.dispatch_queue.head
        for _ in range(n):
            sink = self.driver.next_dispatch()
            sink.dispatch()
        self.driver.end_dispatch()
        return n

    def submit(self):
        self.driver.submit()

    def close(self):
        self.driver.close()

    def wake(self):
        self.driver.wake()

    @property
    def live(self):
        return self.driver.live

    @property
    def dispatch_capacity(self):
        """How many sinks the dispatch queue has room for now."""
        return self.driver.dispatch_queue.cap

    @property
    def sleeping(self):
        return bool(self.driver.sleeping)

    def recv_start(self, Sink sink, int fd):
        return self.driver.recv_start(sink, fd)

    def send(self, Sink sink, int fd, bytes data, bint poll_first=False):
        return self.driver.send(sink, fd, data, PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data),
                                poll_first)

    def sendv(self, Sink sink, int fd, tuple pieces, bint poll_first=False):
        cdef iovec iov[64]
        cdef int n = 0
        cdef bytes piece
        for piece in pieces[:64]:
            iov[n].iov_base = PyBytes_AS_STRING(piece)
            iov[n].iov_len = PyBytes_GET_SIZE(piece)
            n += 1
        return self.driver.sendv(sink, fd, pieces, iov, n, poll_first)

    def accept_start(self, Sink sink, int fd):
        return self.driver.accept_start(sink, fd)

    def poll(self, Sink sink, int fd, unsigned mask):
        return self.driver.poll(sink, fd, mask)

    def watch_start(self, Sink sink, int fd, unsigned mask):
        return self.driver.watch_start(sink, fd, mask)

    def file_op(self, Sink sink, int opcode, int fd, keep, offset=0, flags=0):
        """`keep`: bytes to write, a bytearray to read into, a path, or None."""
        cdef FileOp op
        cdef char *p = NULL
        if keep is not None:
            p = keep
        op.opcode = opcode
        op.fd = fd
        op.addr = <uint64_t>p
        op.off = offset
        op.len = len(keep) if keep is not None and not flags else 0
        op.flags = flags
        return self.driver.file_op(sink, &op, keep)

    def cancel(self, uint64_t token):
        self.driver.cancel(token)

    def cancel_now(self, uint64_t token):
        self.driver.cancel_now(token)

    def release_fd(self, int fd):
        self.driver.release_fd(fd)

    def to_flush(self, Sink sink):
        self.driver.to_flush(sink)

    def to_dispatch(self, Sink sink):
        self.driver.to_dispatch(sink)
