"""Who waits for which fd, and what epoll is told about it.

The common part of both drivers: `epoll` does everything so, `uring` the one-off polls
and the watches, by an epoll instance that the ring polls.

* **Level-triggered and lasting** for fds that the loop owns (transports,
  listeners, watches): no epoll_ctl per event, and what one read leaves behind is
  reported again. Such an fd is deregistered before it is closed
  (`release_fd`): a dup of it, in a forked child say, would keep it registered
  for ever, reporting events for a number that is somebody else's by then.
* **EPOLLONESHOT for one-off polls**, whose fds belong to the user, who closes
  them when it suits. Each poll is one epoll_ctl that asks the kernel what is
  registered, so a reused number is noticed: MOD says ENOENT, ADD says EEXIST.
  Trusting our own table here would lose a wake-up for ever.
* EPOLLERR and EPOLLHUP come whether asked for or not and wake every operation of
  the fd; each then learns from its own system call what happened.
"""
from ringloop._sys.errno cimport ECANCELED, EEXIST, ENOENT, errno
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memset

from ringloop._driver.base cimport OP_POLL, OP_WATCH, Sink, os_error
from ringloop._sys.posix cimport (
    EPOLL_CLOEXEC, EPOLL_CTL_ADD, EPOLL_CTL_DEL, EPOLL_CTL_MOD, EPOLLERR, EPOLLHUP,
    EPOLLONESHOT, epoll_create1, epoll_ctl,
)
from ringloop._sys.posix cimport close as close_fd


cdef class ReadinessDriver(Driver):
    def __cinit__(self):
        self.epfd = -1

    def __dealloc__(self):
        self.close_epoll()
        free(self.fds)

    cdef int open_epoll(self) except -1:
        self.epfd = epoll_create1(EPOLL_CLOEXEC)
        if self.epfd < 0:
            raise os_error(errno, "epoll_create1")
        return 0

    cdef void close_epoll(self) noexcept:
        if self.epfd >= 0:
            close_fd(self.epfd)
            self.epfd = -1

    # -- registration ----------------------------------------------------------------

    cdef FdEntry *entry(self, int fd) except NULL:
        cdef int n
        cdef FdEntry *p
        if fd < 0:
            raise ValueError(f"Invalid file descriptor: {fd}")
        if fd >= self.nfds:
            n = max(64, self.nfds * 2, fd + 1)
            p = <FdEntry *>realloc(self.fds, n * sizeof(FdEntry))
            if p == NULL:
                raise MemoryError
            self.fds = p
            memset(p + self.nfds, 0, (n - self.nfds) * sizeof(FdEntry))
            self.nfds = n
        return &self.fds[fd]

    cdef int arm(self, uint64_t token) except -1:
        """List a slot under its fd and tell epoll."""
        cdef Slot *s = self.slot_of(token)
        cdef FdEntry *e
        try:
            e = self.entry(s.fd)
            s.next = e.head
            e.head = <uint32_t>token
            s.armed = True
            self.update(s.fd, True)
        except BaseException:
            if s.armed:
                self.unlink(s, <uint32_t>token)
            self.discard(token)
            raise
        return 0

    cdef void unlink(self, Slot *s, uint32_t index) noexcept:
        cdef uint32_t *p = &self.fds[s.fd].head
        while p[0] != index:
            p = &self.slots[p[0]].next
        p[0] = s.next
        s.next = 0
        s.armed = False

    cdef int update(self, int fd, bint fresh) except -1:
        """Make epoll's registration of `fd` what its operations want.

        `fresh`: ask epoll even if nothing seems to change. The file that we registered
        may have been closed by its user, and the number be another's by now.
        """
        cdef FdEntry *e = &self.fds[fd]
        cdef uint32_t want = 0
        cdef bint lasting = False
        cdef uint32_t i = e.head
        cdef int op, r
        cdef epoll_event ev
        while i:
            want |= self.slots[i].mask
            lasting = lasting or self.slots[i].kind != OP_POLL
            i = self.slots[i].next
        if want == 0 and e.registered & EPOLLONESHOT:
            return 0  # fires at most once more, and then finds nobody
        if want and not lasting:
            want |= EPOLLONESHOT
        elif want == e.registered and not fresh:
            return 0
        memset(&ev, 0, sizeof(ev))
        ev.events = want
        ev.data.fd = fd
        op = EPOLL_CTL_DEL if want == 0 else EPOLL_CTL_MOD if e.registered else EPOLL_CTL_ADD
        r = epoll_ctl(self.epfd, op, fd, &ev)
        if r < 0 and op == EPOLL_CTL_MOD and errno == ENOENT:
            r = epoll_ctl(self.epfd, EPOLL_CTL_ADD, fd, &ev)
        elif r < 0 and op == EPOLL_CTL_ADD and errno == EEXIST:
            r = epoll_ctl(self.epfd, EPOLL_CTL_MOD, fd, &ev)
        e.registered = want
        if r < 0 and op != EPOLL_CTL_DEL:  # DEL: closed already is as good
            e.registered = 0
            raise os_error(errno, "file descriptor %d" % fd)
        return 0

    cdef void release_fd(self, int fd) noexcept:
        cdef epoll_event ev
        if 0 <= fd < self.nfds and self.fds[fd].registered and not self.closed:
            memset(&ev, 0, sizeof(ev))
            epoll_ctl(self.epfd, EPOLL_CTL_DEL, fd, &ev)
            self.fds[fd].registered = 0

    # -- operations ------------------------------------------------------------------

    cdef uint64_t poll(self, Sink sink, int fd, uint32_t mask) except 0:
        cdef uint64_t token = self.new_slot(sink, OP_POLL, fd, None)
        self.slot_of(token).mask = mask
        self.arm(token)
        return token

    cdef uint64_t watch_start(self, Sink sink, int fd, uint32_t mask) except 0:
        cdef uint64_t token = self.new_slot(sink, OP_WATCH, fd, None)
        self.slot_of(token).mask = mask
        self.arm(token)
        return token

    cdef int cancel(self, uint64_t token) except -1:
        cdef Slot *s = self.slot_of(token)
        cdef int fd
        if s == NULL or s.cancelled:
            return 0
        s.cancelled = True
        if s.armed:
            fd = s.fd
            self.unlink(s, <uint32_t>token)
            self.post(token, -ECANCELED)
            try:
                self.update(fd, False)
            except OSError:
                pass  # closed by its user: the others on this fd wait for nothing now
        # else it is over, and its completion is posted
        return 0

    cdef int cancel_now(self, uint64_t token) except -1:
        return self.cancel(token)  # epoll never holds the file

    # -- events ----------------------------------------------------------------------

    cdef void take_events(self, epoll_event *events, int n) noexcept:
        cdef int i
        for i in range(n):
            if events[i].data.fd >= 0:
                self.ready(events[i].data.fd, events[i].events)

    cdef void ready_io(self, uint64_t token, int fd) noexcept:
        """Try the operation of another kind that waited for this."""

    cdef void ready(self, int fd, uint32_t events) noexcept:
        cdef uint32_t i
        cdef Slot *s
        cdef uint64_t token
        cdef uint64_t todo[64]
        cdef int ntodo = 0
        cdef int k
        cdef bint oneshot_left = False
        if fd >= self.nfds:
            return
        # Collect tokens first: completing one may start or cancel others.
        i = self.fds[fd].head
        while i and ntodo < 64:
            s = &self.slots[i]
            if events & (s.mask | EPOLLERR | EPOLLHUP):
                todo[ntodo] = (<uint64_t>s.gen << 32) | i
                ntodo += 1
            else:
                oneshot_left = True
            i = s.next
        if self.fds[fd].registered & EPOLLONESHOT:
            if ntodo == 0:
                return
            oneshot_left = oneshot_left or i != 0
        for k in range(ntodo):
            token = todo[k]
            s = self.slot_of(token)
            if s == NULL or not s.armed:
                continue
            if s.kind == OP_POLL:
                # update() would arm epoll again for every poll that is left
                self.unlink(s, <uint32_t>token)
                self.complete(token, <int>events, False, NULL)
            elif s.kind == OP_WATCH:
                self.complete(token, <int>events, True, NULL)
            else:
                self.ready_io(token, fd)
        if oneshot_left:
            try:
                self.update(fd, False)
            except OSError:
                pass
