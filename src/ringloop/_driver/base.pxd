"""The driver contract. See base.pyx for the rules."""
from cpython.object cimport PyObject
from libc.stdint cimport uint8_t, uint32_t, uint64_t

from ringloop._sys.files cimport FileOp
from ringloop._sys.posix cimport iovec


cpdef enum OpKind:
    OP_NONE = 0
    OP_WAKE
    OP_RECV
    OP_SEND
    OP_SENDV
    OP_ACCEPT
    OP_POLL
    OP_WATCH
    OP_EPOLL
    OP_FILE


ctypedef struct Completion:
    uint64_t token
    int kind
    int res            # >= 0, or -errno
    bint more          # False: the operation's last completion
    const char *data   # RECV: `res` bytes, valid during completed() only


ctypedef struct Slot:
    PyObject *sink     # owned
    PyObject *keep     # owned, or NULL: what the kernel reads from
    void *aux          # malloc'd, or NULL: msghdr with iovecs, or a FileOp
    char *ptr
    size_t n
    uint32_t gen
    uint32_t next      # free list; on epoll also the list of a fd's operations
    uint32_t mask
    int fd
    uint8_t kind
    uint8_t heard      # of a receive, on uring: 2 data since the last check, 1 before
    bint cancelled
    bint armed         # known to the kernel (uring) or listed under its fd (epoll)
    bint poll_first    # nothing is there now: wait before the first try


cdef class Sink:
    cdef bint in_dispatch
    cdef bint in_flush
    cdef void completed(self, Completion *c) noexcept
    cdef int dispatch(self) except -1
    cdef void flush(self) noexcept


ctypedef struct SinkQueue:
    PyObject **items   # owned references
    Py_ssize_t head
    Py_ssize_t n
    Py_ssize_t cap


ctypedef struct Posted:
    uint64_t token
    int res


cdef class Driver:
    cdef readonly str name
    cdef readonly bint closed
    cdef readonly bint has_file_ops
    cdef readonly bint abandoned  # closed by abandon()
    cdef Slot *slots
    cdef uint32_t nslots
    cdef uint32_t free_head
    cdef readonly Py_ssize_t live
    cdef SinkQueue dispatch_queue
    cdef SinkQueue flush_queue
    cdef Posted *posted
    cdef Py_ssize_t nposted, posted_cap
    cdef int wake_fd
    cdef bint sleeping

    # operations; each gives the token to cancel by
    cdef uint64_t recv_start(self, Sink sink, int fd) except 0
    cdef uint64_t send(self, Sink sink, int fd, object keep, const char *p, size_t n,
                       bint poll_first) except 0
    cdef uint64_t sendv(self, Sink sink, int fd, object keep, const iovec *iov, int niov,
                        bint poll_first) except 0
    cdef uint64_t accept_start(self, Sink sink, int fd) except 0
    cdef uint64_t poll(self, Sink sink, int fd, uint32_t mask) except 0
    cdef uint64_t watch_start(self, Sink sink, int fd, uint32_t mask) except 0
    cdef uint64_t file_op(self, Sink sink, const FileOp *op, object keep) except 0
    cdef int cancel(self, uint64_t token) except -1
    cdef int cancel_now(self, uint64_t token) except -1
    cdef void release_fd(self, int fd) noexcept

    # life
    cdef int attach(self) except -1
    cdef int run(self, double timeout) except -1
    cdef int submit(self) except -1
    cdef int drain(self) except -1
    cdef int close(self) except -1
    cdef void abandon(self) noexcept
    cdef void wake(self) noexcept
    cdef int open_wake_fd(self) except -1
    cdef void close_wake_fd(self) noexcept
    cdef object closed_error(self)

    # for sinks and the loop
    cdef int to_dispatch(self, Sink sink) except -1
    cdef int to_flush(self, Sink sink) except -1
    cdef Sink next_dispatch(self)
    cdef void end_dispatch(self) noexcept

    # for drivers
    cdef uint64_t new_slot(self, Sink sink, int kind, int fd, object keep) except 0
    cdef Slot *slot_of(self, uint64_t token) noexcept
    cdef void complete(self, uint64_t token, int res, bint more, const char *data) noexcept
    cdef void free_slot(self, uint64_t token) noexcept
    cdef uint64_t new_sendv_slot(self, Sink sink, int fd, object keep, const iovec *iov,
                                 int niov) except 0
    cdef uint64_t new_file_slot(self, Sink sink, const FileOp *op, object keep) except 0
    cdef void leak_file(self, Slot *s) noexcept
    cdef void discard(self, uint64_t token) noexcept
    cdef int post(self, uint64_t token, int res) except -1
    cdef void collect_posted(self) noexcept
    cdef int flush_sinks(self) except -1
    cdef void drop_slots(self) noexcept


cdef object os_error(int number, str what)
