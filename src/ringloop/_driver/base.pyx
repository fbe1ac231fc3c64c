"""The driver contract: operations in, completions out.

A driver starts operations on file descriptors and reports their completions.
The shape is io_uring's; epoll emulates it. Whoever starts an operation is a
`Sink`. The rules that make this safe:

* **A token names an operation**: slot index in the low half, generation in the
  high half. Never an address, so a late completion cannot hit a stranger.
* **A slot owns** its sink, its `keep` (the Python object whose memory the kernel
  reads) and its `aux` (message header) from the start to the operation's *last*
  completion, whether cancelled or not.
* **Every operation gets exactly one last completion** (`more` is False), also
  when it is cancelled; `cancel` only asks for it to come sooner. Only after it
  may the fd be closed: an operation in flight holds the kernel's file, so an
  early close sends no FIN and a reused number would get another's data.
* **Two phases.** `run()` collects: it calls `Sink.completed`, which must not
  fail nor run anybody's Python code; a sink that has something to tell puts
  itself in the dispatch queue. Later the loop calls `Sink.dispatch` for each:
  user callbacks run there and may do anything. Nothing completes inside a call
  that starts or cancels an operation.
* **Writes leave together.** A sink with data to send puts itself in the flush
  queue; `run()` first calls `Sink.flush` for each, so that the sends go out
  with the system call that waits anyway.
* Receiving ends at EOF or an error; until then a driver re-arms by itself
  whatever the kernel lets go (no buffers left, a full completion queue, a loop
  that moved to another thread). Sinks see none of that.
"""
from cpython.ref cimport Py_INCREF, Py_DECREF, Py_XDECREF, Py_XINCREF
from ringloop._sys.errno cimport errno
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy, memmove, memset

import os

from ringloop._sys.posix cimport (
    EFD_CLOEXEC, EFD_NONBLOCK, close as close_fd, eventfd, msghdr, write,
)


FORKED = ("this event loop was created before a fork and belongs to the parent process: "
          "create a new one in the child")


cdef class Sink:
    """Whoever starts operations and takes their completions."""

    cdef void completed(self, Completion *c) noexcept:
        """Phase one: note the result. Runs no user code."""

    cdef int dispatch(self) except -1:
        """Phase two: tell the user. May raise SystemExit or KeyboardInterrupt."""
        return 0

    cdef void flush(self) noexcept:
        """Start the sends that `to_flush` announced."""


cdef object os_error(int number, str what):
    """An OSError with the system's words and the call or thing that they are about."""
    return OSError(number, os.strerror(number), what)


cdef int _reserve(SinkQueue *q, Py_ssize_t n) except -1:
    cdef PyObject **items
    cdef Py_ssize_t cap
    if n <= q.cap:
        return 0
    cap = max(n, q.cap * 2, 64)
    items = <PyObject **>realloc(q.items, cap * sizeof(PyObject *))
    if items == NULL:
        raise MemoryError
    q.items = items
    q.cap = cap
    return 0


cdef int _append(SinkQueue *q, Sink sink) except -1:
    _reserve(q, q.n + 1)
    Py_INCREF(sink)
    q.items[q.n] = <PyObject *>sink
    q.n += 1
    return 0


cdef void _clear(SinkQueue *q) noexcept:
    cdef PyObject *p
    while q.head < q.n:
        p = q.items[q.head]
        q.head += 1
        Py_DECREF(<object>p)
    free(q.items)
    memset(q, 0, sizeof(SinkQueue))


cdef class Driver:
    def __cinit__(self):
        self.name = "base"
        # Nothing here may fail: a driver whose own __cinit__ was never reached would
        # take its zeroed fields for file descriptors.
        self.wake_fd = -1

    def __dealloc__(self):
        # Drivers close what they opened; this is what is common.
        self.drop_slots()
        free(self.slots)
        free(self.posted)
        self.close_wake_fd()

    def features(self) -> dict:
        """What this driver found in the kernel, for `backend_info()`."""
        return {}

    # -- operations: drivers override all of these -------------------------------

    cdef uint64_t recv_start(self, Sink sink, int fd) except 0:
        """Receive until EOF, error or cancel; one completion per piece of data."""
        raise NotImplementedError

    cdef uint64_t send(self, Sink sink, int fd, object keep, const char *p, size_t n,
                       bint poll_first) except 0:
        """One send; may be short. At most one per fd: completion is not ordered."""
        raise NotImplementedError

    cdef uint64_t sendv(self, Sink sink, int fd, object keep, const iovec *iov, int niov,
                        bint poll_first) except 0:
        """The same from several buffers; `iov` itself is copied."""
        raise NotImplementedError

    cdef uint64_t accept_start(self, Sink sink, int fd) except 0:
        """Accept until error or cancel; each completion's `res` is a new fd."""
        raise NotImplementedError

    cdef uint64_t poll(self, Sink sink, int fd, uint32_t mask) except 0:
        """Wait once until `fd` is ready; `res` is the events. Spurious ones happen."""
        raise NotImplementedError

    cdef uint64_t watch_start(self, Sink sink, int fd, uint32_t mask) except 0:
        """Report readiness, level-triggered, at most once a run(), until cancelled."""
        raise NotImplementedError

    cdef uint64_t file_op(self, Sink sink, const FileOp *op, object keep) except 0:
        """One operation on a file; `op` is copied, `keep` owns what it points to.

        `res` is the system call's result or -errno. A cancelled one may have been done
        all the same, and says so. Only where `has_file_ops`: epoll knows no such thing.
        """
        raise NotImplementedError

    cdef int cancel(self, uint64_t token) except -1:
        """Ask for the last completion now. A token that is over is ignored."""
        raise NotImplementedError

    cdef int cancel_now(self, uint64_t token) except -1:
        """The same, and when it returns the kernel holds the file no more.

        Its completions are still only reported by the next run(). For listening
        sockets: `Server.close()` must free the port before it returns.
        """
        raise NotImplementedError

    cdef void release_fd(self, int fd) noexcept:
        """`fd`, which has no live operation, is about to be closed."""

    # -- life ------------------------------------------------------------------------

    cdef int attach(self) except -1:
        """The calling thread will call run() from now on."""
        return 0

    cdef int run(self, double timeout) except -1:
        """Flush, submit, wait up to `timeout` seconds (negative: for ever), collect."""
        raise NotImplementedError

    cdef int submit(self) except -1:
        """Hand over what is queued, without waiting nor collecting."""
        self.flush_sinks()
        return 0

    cdef int drain(self) except -1:
        """Send what was written, cancel everything and collect the last completions.

        Bounded in time. Part of close().
        """
        raise NotImplementedError

    cdef int close(self) except -1:
        raise NotImplementedError

    cdef void abandon(self) noexcept:
        """In a forked child: close our fds and touch nothing that is shared."""

    cdef void wake(self) noexcept:
        """Make run() return soon. Called from any thread that holds the GIL.

        Nobody ever reads the counter: both drivers see each write as an edge.
        """
        cdef uint64_t one = 1
        if self.wake_fd >= 0:
            write(self.wake_fd, &one, 8)

    cdef int open_wake_fd(self) except -1:
        self.wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
        if self.wake_fd < 0:
            raise os_error(errno, "eventfd")
        return 0

    cdef void close_wake_fd(self) noexcept:
        if self.wake_fd >= 0:
            close_fd(self.wake_fd)
            self.wake_fd = -1

    cdef object closed_error(self):
        return RuntimeError(FORKED if self.abandoned else "Event loop is closed")

    # -- queues ----------------------------------------------------------------------

    cdef int to_dispatch(self, Sink sink) except -1:
        if not sink.in_dispatch and not self.closed:
            _append(&self.dispatch_queue, sink)
            sink.in_dispatch = True
        return 0

    cdef Sink next_dispatch(self):
        """Take the next sink from the dispatch queue, which is not empty."""
        cdef SinkQueue *q = &self.dispatch_queue
        cdef Sink sink = <Sink>q.items[q.head]
        Py_DECREF(sink)  # the queue's reference; `sink` holds its own
        q.head += 1
        sink.in_dispatch = False
        return sink

    cdef void end_dispatch(self) noexcept:
        """Give back the places of the sinks that were taken.

        Those that are left were added meanwhile: each is moved once.
        """
        cdef SinkQueue *q = &self.dispatch_queue
        q.n -= q.head
        if q.n:
            memmove(q.items, q.items + q.head, q.n * sizeof(PyObject *))
        q.head = 0

    cdef int to_flush(self, Sink sink) except -1:
        if not sink.in_flush and not self.closed:
            _append(&self.flush_queue, sink)
            sink.in_flush = True
        return 0

    cdef int flush_sinks(self) except -1:
        cdef SinkQueue *q = &self.flush_queue
        cdef Sink sink
        while q.head < q.n:
            sink = <Sink>q.items[q.head]
            Py_DECREF(sink)
            q.head += 1
            sink.in_flush = False
            sink.flush()
        q.head = q.n = 0
        return 0

    # -- slots -----------------------------------------------------------------------

    cdef uint64_t new_slot(self, Sink sink, int kind, int fd, object keep) except 0:
        cdef uint32_t i, n
        cdef Slot *s
        if self.closed:
            raise self.closed_error()
        if self.free_head == 0:
            n = max(64, self.nslots * 2)
            s = <Slot *>realloc(self.slots, n * sizeof(Slot))
            if s == NULL:
                raise MemoryError
            self.slots = s
            memset(s + self.nslots, 0, (n - self.nslots) * sizeof(Slot))
            # Slot 0 is never given out: index 0 ends lists and token 0 means none.
            i = n - 1
            while i >= max(self.nslots, 1):
                s[i].gen = 1
                s[i].next = self.free_head
                self.free_head = i
                i -= 1
            self.nslots = n
            # completed() must be able to enqueue its sink without failing
            _reserve(&self.dispatch_queue, n)
        i = self.free_head
        s = &self.slots[i]
        self.free_head = s.next
        self.live += 1
        s.kind = kind
        s.fd = fd
        s.next = 0
        s.mask = 0
        s.heard = 0
        s.cancelled = s.armed = s.poll_first = False
        s.aux = NULL
        s.ptr = NULL
        s.n = 0
        Py_INCREF(sink)
        s.sink = <PyObject *>sink
        if keep is None:
            s.keep = NULL
        else:
            Py_INCREF(keep)
            s.keep = <PyObject *>keep
        return (<uint64_t>s.gen << 32) | i

    cdef Slot *slot_of(self, uint64_t token) noexcept:
        """The live slot of a token, or NULL: the operation is over."""
        cdef uint32_t i = <uint32_t>token
        if i == 0 or i >= self.nslots or self.closed:
            return NULL
        if self.slots[i].gen != <uint32_t>(token >> 32) or self.slots[i].kind == OP_NONE:
            return NULL
        return &self.slots[i]

    cdef void complete(self, uint64_t token, int res, bint more, const char *data) noexcept:
        """Report a completion to the slot's sink; the last one frees the slot."""
        cdef Slot *s = self.slot_of(token)
        cdef Completion c
        cdef PyObject *sink
        cdef PyObject *keep
        if s == NULL:
            return
        c.token = token
        c.kind = s.kind
        c.res = res
        c.more = more
        c.data = data
        sink = s.sink
        if more:
            (<Sink>sink).completed(&c)
            return
        # Free the slot first: completed() may start the next operation. What it
        # owned lives on in these locals until completed() has returned.
        keep = s.keep
        self.free_slot(token)
        (<Sink>sink).completed(&c)
        Py_XDECREF(keep)
        Py_DECREF(<object>sink)

    cdef void free_slot(self, uint64_t token) noexcept:
        """Make a slot reusable; its sink and keep are the caller's now."""
        cdef Slot *s = &self.slots[<uint32_t>token]
        free(s.aux)
        s.aux = NULL
        s.kind = OP_NONE
        s.sink = s.keep = NULL
        s.gen += 1
        if s.gen == 0:
            s.gen = 1
        s.next = self.free_head
        self.free_head = <uint32_t>token
        self.live -= 1

    cdef uint64_t new_sendv_slot(self, Sink sink, int fd, object keep, const iovec *iov,
                                 int niov) except 0:
        """new_slot for a send from several buffers: in aux a msghdr, followed by the iovecs."""
        cdef uint64_t token = self.new_slot(sink, OP_SENDV, fd, keep)
        cdef msghdr *m = <msghdr *>malloc(sizeof(msghdr) + niov * sizeof(iovec))
        if m == NULL:
            self.discard(token)
            raise MemoryError
        memset(m, 0, sizeof(msghdr))
        m.msg_iov = <iovec *>(m + 1)
        m.msg_iovlen = niov
        memcpy(m.msg_iov, iov, niov * sizeof(iovec))
        self.slots[<uint32_t>token].aux = m
        return token

    cdef uint64_t new_file_slot(self, Sink sink, const FileOp *op, object keep) except 0:
        """new_slot for a file operation, with a copy of `op` in aux."""
        cdef uint64_t token = self.new_slot(sink, OP_FILE, op.fd, keep)
        cdef FileOp *copy = <FileOp *>malloc(sizeof(FileOp))
        if copy == NULL:
            self.discard(token)
            raise MemoryError
        copy[0] = op[0]
        self.slots[<uint32_t>token].aux = copy
        return token

    cdef void leak_file(self, Slot *s) noexcept:
        """Let what a file operation reads or writes live for ever.

        It was given up by a ring that is closed, but a worker may yet do it. It must
        not be done again either, as it might be done twice.
        """
        if s.kind == OP_FILE:
            Py_XINCREF(s.keep)

    cdef void discard(self, uint64_t token) noexcept:
        """Undo new_slot for an operation that could not be started: no completion."""
        cdef Slot *s = self.slot_of(token)
        cdef PyObject *sink = s.sink
        cdef PyObject *keep = s.keep
        self.free_slot(token)
        Py_XDECREF(keep)
        Py_DECREF(<object>sink)

    cdef void drop_slots(self) noexcept:
        """Free every slot without a word to its sink: the loop is closed."""
        cdef uint32_t i
        cdef Slot *s
        cdef PyObject *sink
        cdef PyObject *keep
        for i in range(1, self.nslots):
            s = &self.slots[i]
            if s.kind != OP_NONE:
                sink = s.sink
                keep = s.keep
                free(s.aux)
                self.leak_file(s)
                memset(s, 0, sizeof(Slot))
                Py_XDECREF(keep)
                Py_XDECREF(sink)
        self.live = 0
        # Sinks refer to the driver: what is queued would keep both for ever.
        _clear(&self.dispatch_queue)
        _clear(&self.flush_queue)

    cdef int post(self, uint64_t token, int res) except -1:
        """Queue a completion that no kernel will send, for the next collect."""
        cdef Posted *p
        cdef Py_ssize_t cap
        if self.nposted == self.posted_cap:
            cap = max(64, self.posted_cap * 2)
            p = <Posted *>realloc(self.posted, cap * sizeof(Posted))
            if p == NULL:
                raise MemoryError
            self.posted = p
            self.posted_cap = cap
        self.posted[self.nposted].token = token
        self.posted[self.nposted].res = res
        self.nposted += 1
        return 0

    cdef void collect_posted(self) noexcept:
        """Report what was posted, always as last completions."""
        cdef Py_ssize_t i = 0
        while i < self.nposted:  # completed() may post more
            self.complete(self.posted[i].token, self.posted[i].res, False, NULL)
            i += 1
        self.nposted = 0
