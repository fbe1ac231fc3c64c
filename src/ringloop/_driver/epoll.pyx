"""The epoll driver: completions made out of readiness.

Serves every Linux where io_uring is missing, blocked (containers) or too old. What
epoll is told about each fd is in `readiness.pyx`.

* **A send is tried when it is flushed**; its completion is only posted and
  reported at the next collect, which `run()` does *before* it waits: no second
  epoll_wait for a send that simply worked.
* **One receive a readiness**, into a scratch buffer that only ever holds one
  fd's bytes: the sink copies them during completed(). Level-triggering brings
  the rest, and no connection starves the others.
* The eventfd is edge-triggered, so nobody has to read it.
* EINTR comes without a signal, too: a ring that this thread used and closed may
  have its last work interrupt the wait. run() returns early then, which is allowed.
* epoll waits in whole milliseconds: rounded up, else a timer 0.4 ms away would
  spin.
"""
from ringloop._sys.errno cimport EAGAIN, ECONNABORTED, EINTR, errno
from libc.math cimport ceil
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset

from ringloop._driver.base cimport (
    OP_ACCEPT, OP_NONE, OP_RECV, OP_SEND, OP_SENDV, Sink, os_error,
)
from ringloop._driver.readiness cimport MAX_EVENTS, ReadinessDriver
from ringloop._sys cimport posix
from ringloop._sys.posix cimport (
    EPOLL_CTL_ADD, EPOLLET, EPOLLIN, EPOLLOUT, MSG_DONTWAIT, MSG_NOSIGNAL, SOCK_CLOEXEC,
    SOCK_NONBLOCK, accept4, epoll_ctl, epoll_event, epoll_wait, iovec, msghdr,
)

cdef enum:
    SCRATCH_SIZE = 262144  # virtual: only the pages that data reaches are ever touched
    MAX_ACCEPTS = 128      # a connection flood must not starve the connections


cdef class EpollDriver(ReadinessDriver):
    def __cinit__(self):
        cdef epoll_event ev
        self.name = "epoll"
        self.open_wake_fd()
        self.scratch = <char *>malloc(SCRATCH_SIZE)
        if self.scratch == NULL:
            raise MemoryError
        self.open_epoll()
        memset(&ev, 0, sizeof(ev))
        ev.events = EPOLLIN | EPOLLET
        ev.data.fd = -1
        if epoll_ctl(self.epfd, EPOLL_CTL_ADD, self.wake_fd, &ev) < 0:
            raise os_error(errno, "epoll_ctl")

    def __dealloc__(self):
        free(self.scratch)

    # -- operations ------------------------------------------------------------------

    cdef uint64_t recv_start(self, Sink sink, int fd) except 0:
        cdef uint64_t token = self.new_slot(sink, OP_RECV, fd, None)
        self.slot_of(token).mask = EPOLLIN
        self.arm(token)
        return token

    cdef ssize_t do_recv(self, int fd, char *p, size_t n) noexcept:
        """recv(2), giving -errno."""
        cdef ssize_t r = posix.recv(fd, p, n, MSG_DONTWAIT)
        return r if r >= 0 else -errno

    cdef ssize_t do_send(self, Slot *s) noexcept:
        """Try a slot's send: bytes sent, or -errno.

        The GIL stays held here and in do_recv: neither can block, and with a busy
        thread about, each release may cost a whole switch interval to undo.
        """
        cdef ssize_t r
        if s.aux != NULL:
            r = posix.sendmsg(s.fd, <msghdr *>s.aux, MSG_NOSIGNAL | MSG_DONTWAIT)
        else:
            r = posix.send(s.fd, s.ptr, s.n, MSG_NOSIGNAL | MSG_DONTWAIT)
        return r if r >= 0 else -errno

    cdef uint64_t send(self, Sink sink, int fd, object keep, const char *p, size_t n,
                       bint poll_first) except 0:
        cdef uint64_t token = self.new_slot(sink, OP_SEND, fd, keep)
        cdef Slot *s = self.slot_of(token)
        s.ptr = <char *>p
        s.n = min(n, <size_t>0x7ffff000)
        return self.try_send(token, poll_first)

    cdef uint64_t sendv(self, Sink sink, int fd, object keep, const iovec *iov, int niov,
                        bint poll_first) except 0:
        return self.try_send(self.new_sendv_slot(sink, fd, keep, iov, niov), poll_first)

    cdef uint64_t try_send(self, uint64_t token, bint poll_first) except 0:
        cdef Slot *s = self.slot_of(token)
        cdef ssize_t r = -EAGAIN
        s.mask = EPOLLOUT
        if not poll_first:
            r = self.do_send(s)
        if r == -EAGAIN or r == -EINTR:
            self.arm(token)
        else:
            self.post(token, <int>r)
        return token

    cdef uint64_t accept_start(self, Sink sink, int fd) except 0:
        cdef uint64_t token = self.new_slot(sink, OP_ACCEPT, fd, None)
        self.slot_of(token).mask = EPOLLIN
        self.arm(token)
        return token

    # -- running ---------------------------------------------------------------------

    cdef int run(self, double timeout) except -1:
        cdef epoll_event events[MAX_EVENTS]
        cdef int n, timeout_ms
        # From here on a waker must write: flushing may run somebody's destructor, and
        # that may let another thread in after the loop looked at its queue.
        self.sleeping = timeout != 0
        if self.flush_queue.n:
            self.flush_sinks()
        if self.nposted:
            self.collect_posted()
        if self.dispatch_queue.n or self.flush_queue.n or self.nposted:
            timeout = 0
        if timeout < 0:
            timeout_ms = -1
        else:
            timeout_ms = <int>ceil(timeout * 1e3)
        with nogil:
            n = epoll_wait(self.epfd, events, MAX_EVENTS, timeout_ms)
        self.sleeping = False
        if n < 0:
            if errno == EINTR:
                return 0
            raise os_error(errno, "epoll_wait")
        self.take_events(events, n)
        return 0

    cdef void finish(self, uint64_t token, int res) noexcept:
        """A last completion: off the list, out of epoll, told."""
        cdef Slot *s = self.slot_of(token)
        cdef int fd = s.fd
        self.unlink(s, <uint32_t>token)
        try:
            self.update(fd, False)
        except OSError:
            pass  # closed under our hands; the operation itself says what happened
        self.complete(token, res, False, NULL)

    cdef void ready_io(self, uint64_t token, int fd) noexcept:
        cdef Slot *s = self.slot_of(token)
        cdef ssize_t r
        if s.kind == OP_RECV:
            self.ready_recv(token, fd)
        elif s.kind == OP_SEND or s.kind == OP_SENDV:
            r = self.do_send(s)
            if r != -EAGAIN and r != -EINTR:
                self.finish(token, <int>r)
        elif s.kind == OP_ACCEPT:
            self.ready_accept(token, fd)

    cdef void ready_recv(self, uint64_t token, int fd) noexcept:
        cdef ssize_t r = self.do_recv(fd, self.scratch, SCRATCH_SIZE)
        if r > 0:
            self.complete(token, <int>r, True, self.scratch)
        elif r != -EAGAIN and r != -EINTR:
            self.finish(token, <int>r)

    cdef void ready_accept(self, uint64_t token, int fd) noexcept:
        cdef int conn, _i
        cdef Slot *s
        for _i in range(MAX_ACCEPTS):
            s = self.slot_of(token)
            if s == NULL or not s.armed:
                return
            conn = accept4(fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK)
            if conn >= 0:
                self.complete(token, conn, True, NULL)
            elif errno == EAGAIN:
                return
            elif errno != EINTR and errno != ECONNABORTED:
                self.finish(token, -errno)
                return

    # -- the end ---------------------------------------------------------------------

    cdef int drain(self) except -1:
        cdef uint32_t i
        self.run(0)
        self.run(0)  # what waited for the end of a send in flight
        for i in range(1, self.nslots):
            if self.slots[i].kind != OP_NONE:
                self.cancel((<uint64_t>self.slots[i].gen << 32) | i)
        self.collect_posted()
        return 0

    cdef int close(self) except -1:
        if self.closed:
            return 0
        if self.live or self.flush_queue.n:
            self.drain()
        self.closed = True
        self.drop_slots()
        self.close_epoll()
        self.close_wake_fd()
        return 0

    cdef void abandon(self) noexcept:
        # No epoll_ctl from here on: the epoll instance is the parent's, too.
        self.closed = self.abandoned = True
        self.close_epoll()
        self.close_wake_fd()
