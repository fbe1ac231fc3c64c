"""The io_uring driver.

What the kernel does that one must know (each cost somebody a bug):

* **DEFER_TASKRUN**: completions appear only inside an enter with GETEVENTS, on
  the thread that enabled the ring. A non-empty ready queue needs no enter unless
  SQ_TASKRUN says that there is work; without TASKRUN_FLAG one could not know.
* **Enter hides errors.** With something to submit it returns the count, never
  ETIME or EINTR. So: always look at the queue, and let the loop look at the
  clock and at Python's signals.
* **An operation in flight holds the file**, not the number. Closing the fd does
  not end it: no FIN is sent, and the number may be somebody else's by the time
  it completes. Hence the rule of the last completion (`base.pyx`).
* **A multishot operation may end at any time** without F_MORE: the completion
  queue overflowed (in spite of NODROP), no provided buffer was left (ENOBUFS).
  That is no error: `on_cqe` arms it again under the same token.
* **A multishot receive may miss the end.** After data it trusts the socket that there
  is no more, and drops the wake-ups that had come meanwhile; the end of a Unix stream
  (since 6.17, axboe/liburing#1549) or a reset of a TCP connection may be among them,
  and nothing comes after an end. Seen on 6.18 whenever more than 64 KiB (32 buffers, then
  the kernel pauses) and the end were there when a receive was armed. So whoever had
  data and then was silent is looked at, once (`check_receives`).
* **EAGAIN is no result**, but a send that waits for room may complete with it (seen
  on 6.18 when a socket became writable and full again many times). Armed again.
* **ECANCELED that nobody asked for** comes when the thread that owned the ring
  ended: the kernel cancels a task's requests at exit. Armed again, too. No data
  is lost: with DEFER_TASKRUN a receive runs inside our own enter only, and sends
  go without MSG_WAITALL, so that none has hidden progress.
* **A ring belongs to one thread** (SINGLE_ISSUER): enter from another is EEXIST.
  A loop that moves gets a new ring, on which everything is armed again.
* **Readiness comes from an epoll instance** that the ring polls (`readiness.pyx`): a
  poll on the ring holds the file as any operation does, and users close sockets under a
  waiting sock_recv() or without remove_reader(); epoll lets go of what is closed. It is
  level-triggered as add_reader is, and refuses regular files, which io_uring would
  report as ready for ever. The poll of the instance itself is one-shot and armed again
  after the callbacks ran, as multishot polls are edge-like. The eventfd of `wake()`
  wants edges: its multishot poll never reads the counter.
* **msghdr and iovec are consumed at submission** (SUBMIT_STABLE), the bytes they
  point to are not: those belong to the slot. After an EAGAIN of ours (thread
  change) they are needed again, so the slot keeps both.
* O_NONBLOCK does not matter here: the kernel arms its own poll and tries again.
* Multishot accept with DEFER_TASKRUN loses wake-ups on 6.6 to 6.7: one-shot there.
"""
import os
import re

from ringloop._sys.errno cimport (
    EAGAIN, EBUSY, ECANCELED, ECONNABORTED, EEXIST, EINTR, ENOBUFS, ETIME,
)
from libc.stdlib cimport free, realloc

from ringloop._driver.base cimport (
    OP_ACCEPT, OP_EPOLL, OP_FILE, OP_NONE, OP_POLL, OP_RECV, OP_SEND, OP_SENDV,
    OP_WAKE, OP_WATCH, Sink, os_error,
)
from ringloop._driver.readiness cimport MAX_EVENTS, ReadinessDriver
from ringloop._sys.files cimport FileOp
from ringloop._sys.posix cimport (
    CLOCK_MONOTONIC_COARSE, MSG_NOSIGNAL, POLLIN, POLLRDHUP, SOCK_CLOEXEC, SOCK_NONBLOCK,
    clock_gettime, epoll_event, epoll_wait, iovec, poll, pollfd, timespec,
)
from ringloop._sys.uring cimport (
    RL_ACCEPT_MULTISHOT, RL_CANCEL_ALL, RL_CANCEL_ANY, RL_CQE_BUFFER, RL_CQE_BUFFER_SHIFT,
    RL_CQE_MORE, RL_OP_ACCEPT, RL_OP_ASYNC_CANCEL,
    RL_OP_POLL_ADD, RL_OP_RECV, RL_OP_SEND, RL_OP_SENDMSG, RL_OP_SUPPORTED,
    RL_POLL_ADD_MULTI, RL_RECVSEND_POLL_FIRST, RL_RECV_MULTISHOT, RL_SETUP_NO_SQARRAY,
    RL_FEAT_NO_IOWAIT, RL_SQE_BUFFER_SELECT, Probe,
    rl_load_relaxed, rl_store_release, this_thread,
)

# 256 x 2 KiB is half of a common L2 cache, and the kernel walks through all of it in turn. 64
# buffers carry 1,000 connections, as each is copied out and given back before any callback runs.
RECV_BUFFERS = 256
RECV_BUFFER_SIZE = 2048
cdef enum:
    RECV_GROUP = 0
    FILES_TAKEN = 8    # file completions of an iteration: then the loop looks at its timers
    FILES_AT_ONCE = 3  # file operations that do not wait for the end of the callbacks
    CHECK_MAX = 256    # fds of one poll(2)

# Longest wait for the last completions when a loop is closed.
cdef double DRAIN_S = 1.0
# How long a receive that had data is silent before it is looked at: once to twice this.
cdef double CHECK_S = 0.05


def kernel_version() -> tuple:
    """The running kernel's (major, minor); (0, 0) if it does not say."""
    found = re.match(r"(\d+)\.(\d+)", os.uname().release)
    return (int(found[1]), int(found[2])) if found else (0, 0)


cdef class UringDriver(ReadinessDriver):
    def __cinit__(self, sq_entries=512, cq_entries=8192, buffers=RECV_BUFFERS,
                  buffer_size=RECV_BUFFER_SIZE):
        self.name = "uring"
        self.has_file_ops = True
        self.sizes = (sq_entries, cq_entries, buffers, buffer_size)
        self.open_wake_fd()
        self.open_epoll()
        self.files_limit = FILES_TAKEN
        self.accept_multishot = not ((6, 6) <= kernel_version() < (6, 8))
        self.ring, self.buffers = self.new_ring()
        self.wake_token = self.new_slot(Sink(), OP_WAKE, self.wake_fd, None)
        self.push(self.wake_token)
        self.epoll_token = self.new_slot(Sink(), OP_EPOLL, self.epfd, None)
        self.push(self.epoll_token)

    def __dealloc__(self):
        # The ring goes first: after that the kernel writes to no buffer of ours.
        if self.ring is not None:
            self.ring.close()
        free(self.backlog)

    def features(self) -> dict:
        cdef Probe p
        cdef uint32_t f = self.ring.features
        n = self.ring.probe(&p)
        return {
            "no_sqarray": bool(self.ring.setup_flags & RL_SETUP_NO_SQARRAY),
            "no_iowait": bool(f & RL_FEAT_NO_IOWAIT),
            "multishot_accept": bool(self.accept_multishot),
            "sq_entries": self.ring.sq_entries,
            "cq_entries": self.ring.cq_entries,
            "opcodes": sum(1 for i in range(p.ops_len if n == 0 else 0)
                           if p.ops[i].flags & RL_OP_SUPPORTED),
        }

    def missing_opcodes(self) -> list:
        """Names of the operations that this driver needs and the kernel lacks."""
        cdef Probe p
        cdef int r = self.ring.probe(&p)
        if r < 0:
            raise os_error(-r, "io_uring_register(PROBE)")
        needed = {"POLL_ADD": RL_OP_POLL_ADD, "SENDMSG": RL_OP_SENDMSG,
                  "ACCEPT": RL_OP_ACCEPT, "ASYNC_CANCEL": RL_OP_ASYNC_CANCEL,
                  "SEND": RL_OP_SEND, "RECV": RL_OP_RECV}
        return [name for name, op in needed.items()
                if op >= p.ops_len or not p.ops[op].flags & RL_OP_SUPPORTED]

    # -- the ring --------------------------------------------------------------------

    cdef tuple new_ring(self):
        """A ring and its buffers, not yet in use."""
        sq_entries, cq_entries, buffers, buffer_size = self.sizes
        cdef Ring ring = Ring(sq_entries, cq_entries)
        return ring, ring.add_buffers(RECV_GROUP, buffers, buffer_size)

    cdef int attach(self) except -1:
        cdef uint64_t me = this_thread()
        if self.thread == me:
            return 0
        if self.thread == 0:
            self.ring.enable()
            self.thread = me
            return 0
        return self.rebuild(me)

    cdef int rebuild(self, uint64_t me) except -1:
        """The loop moved to another thread: a new ring, everything armed again."""
        cdef uint32_t i
        cdef Slot *s
        cdef Ring ring
        # First what may fail: for lack of fds or of memory, and the old ring stays. It is
        # enabled here as arming may fill its queue, and only then may it be entered.
        ring, buffers = self.new_ring()
        ring.enable()
        # What the old ring completed is taken while its buffers are there. A completion
        # that arms its operation again only marks it so.
        self.save_backlog()
        self.moving = True
        for i in range(<uint32_t>self.nbacklog):
            self.on_cqe(&self.backlog[i])
        self.nbacklog = 0
        self.ring.close()
        self.ring, self.buffers = ring, buffers
        self.thread = me
        self.moving = False
        for i in range(1, self.nslots):
            s = &self.slots[i]
            if s.kind != OP_NONE and s.kind != OP_POLL and s.kind != OP_WATCH and s.armed:
                s.armed = False
                if s.cancelled or s.kind == OP_FILE:
                    self.leak_file(s)
                    self.post((<uint64_t>s.gen << 32) | i, -ECANCELED)
                else:
                    self.push((<uint64_t>s.gen << 32) | i)
        return 0

    cdef Sqe *sqe(self) except NULL:
        """The next submission entry; submits when the queue is full."""
        cdef Sqe *e
        cdef int _try
        if self.closed:
            raise self.closed_error()
        e = self.ring.next_sqe()
        if e != NULL:
            return e
        self.attach()
        for _try in range(100):
            self.enter(0, 0)
            e = self.ring.next_sqe()
            if e != NULL:
                return e
            # EBUSY or EAGAIN: completions must leave the queue before the kernel
            # takes more. They are only moved: nothing completes inside a submit.
            self.save_backlog()
        raise os_error(EBUSY, "io_uring takes no more submissions")

    cdef int push(self, uint64_t token) except -1:
        """Queue the submission of a slot's operation, for the first or another time."""
        cdef Sqe *e
        cdef FileOp *f
        cdef Slot *s = self.slot_of(token)
        if self.moving:
            s.armed = True
            return 0
        e = self.sqe()
        s.armed = True
        e.fd = s.fd
        e.user_data = token
        if s.kind == OP_RECV:
            e.opcode = RL_OP_RECV
            e.flags = RL_SQE_BUFFER_SELECT
            e.ioprio = RL_RECV_MULTISHOT
            e.buf_group = RECV_GROUP
        elif s.kind == OP_SEND:
            e.opcode = RL_OP_SEND
            e.addr = <uint64_t>s.ptr
            e.len = <uint32_t>s.n
            e.op_flags = MSG_NOSIGNAL
            e.ioprio = RL_RECVSEND_POLL_FIRST if s.poll_first else 0
        elif s.kind == OP_SENDV:
            e.opcode = RL_OP_SENDMSG
            e.addr = <uint64_t>s.aux
            e.len = 1
            e.op_flags = MSG_NOSIGNAL
            e.ioprio = RL_RECVSEND_POLL_FIRST if s.poll_first else 0
        elif s.kind == OP_FILE:
            f = <FileOp *>s.aux
            e.opcode = f.opcode
            e.addr = f.addr
            e.off = f.off
            e.len = f.len
            e.op_flags = f.flags
        elif s.kind == OP_ACCEPT:
            e.opcode = RL_OP_ACCEPT
            e.op_flags = SOCK_CLOEXEC | SOCK_NONBLOCK
            e.ioprio = RL_ACCEPT_MULTISHOT if self.accept_multishot else 0
        else:  # OP_WAKE, OP_EPOLL
            e.opcode = RL_OP_POLL_ADD
            e.op_flags = POLLIN
            if s.kind == OP_WAKE:
                e.len = RL_POLL_ADD_MULTI
        return 0

    cdef int enter(self, uint32_t wait, double timeout) except -1:
        cdef int r
        r = self.ring.enter(wait, timeout)
        if r >= 0 or r == -ETIME or r == -EINTR or r == -EBUSY or r == -EAGAIN:
            return 0
        if r == -EEXIST:
            raise RuntimeError("an io_uring event loop can only run in one thread at a time")
        raise os_error(-r, "io_uring_enter")

    # -- operations ------------------------------------------------------------------

    cdef uint64_t start(self, uint64_t token) except 0:
        try:
            self.push(token)
        except BaseException:
            self.discard(token)
            raise
        return token

    cdef uint64_t recv_start(self, Sink sink, int fd) except 0:
        return self.start(self.new_slot(sink, OP_RECV, fd, None))

    cdef uint64_t send(self, Sink sink, int fd, object keep, const char *p, size_t n,
                       bint poll_first) except 0:
        cdef uint64_t token = self.new_slot(sink, OP_SEND, fd, keep)
        cdef Slot *s = self.slot_of(token)
        s.ptr = <char *>p
        s.n = min(n, <size_t>0x7ffff000)  # the kernel's own limit of one transfer
        s.poll_first = poll_first
        return self.start(token)

    cdef uint64_t sendv(self, Sink sink, int fd, object keep, const iovec *iov, int niov,
                        bint poll_first) except 0:
        cdef uint64_t token = self.new_sendv_slot(sink, fd, keep, iov, niov)
        self.slot_of(token).poll_first = poll_first
        return self.start(token)

    cdef uint64_t accept_start(self, Sink sink, int fd) except 0:
        return self.start(self.new_slot(sink, OP_ACCEPT, fd, None))

    cdef uint64_t file_op(self, Sink sink, const FileOp *op, object keep) except 0:
        cdef uint64_t token = self.start(self.new_file_slot(sink, op, keep))
        # A disk that waits for the end of the callbacks is idle meanwhile. What fails here,
        # the enter that waits does again, and says so.
        if self.ring.unsubmitted() >= FILES_AT_ONCE and not self.moving:
            self.ring.enter(0, 0)
        return token

    cdef int cancel(self, uint64_t token) except -1:
        cdef Slot *s = self.slot_of(token)
        cdef Sqe *e
        if s == NULL or s.cancelled:
            return 0
        if s.kind == OP_POLL or s.kind == OP_WATCH:
            return ReadinessDriver.cancel(self, token)
        s.cancelled = True
        if not s.armed:
            return self.post(token, -ECANCELED)
        if self.moving:
            return 0  # rebuild() ends it
        e = self.sqe()
        e.opcode = RL_OP_ASYNC_CANCEL
        e.addr = token
        e.user_data = 0  # whether it found the operation, that one's completion says
        return 0

    cdef int cancel_now(self, uint64_t token) except -1:
        cdef int tries = 0
        cdef Slot *s = self.slot_of(token)
        if s == NULL:
            return 0
        self.cancel(token)
        if s.kind == OP_POLL or s.kind == OP_WATCH:
            return 0  # epoll holds no file
        if self.thread != this_thread():
            return 0  # not running: the ring's thread, or its end, does the rest
        # One enter cancels and runs the deferred work that drops the file. More
        # only if the queues were full.
        self.enter(0, 0)
        while self.ring.unsubmitted() and tries < 100:
            self.save_backlog()
            self.enter(0, 0)
            tries += 1
        return 0

    # -- running ---------------------------------------------------------------------

    cdef int prepare(self) except -1:
        """Queue all that waited for the end of the callbacks."""
        cdef Slot *s
        if self.flush_queue.n:
            self.flush_sinks()
        # After the callbacks: what they left unread is reported again.
        s = self.slot_of(self.epoll_token)
        if s != NULL and not s.armed:
            self.push(self.epoll_token)
        return 0

    cdef int submit(self) except -1:
        cdef int tries = 0
        self.prepare()
        if self.ring.unsubmitted():
            self.enter(0, 0)
        # The loop may go on in another thread, which can take what is in the queue, but not
        # what the queue had no room for: it would be done again there.
        while self.ring.overflowed() and tries < 100:
            self.save_backlog()
            self.enter(0, 0)
            tries += 1
        return 0

    cdef int run(self, double timeout) except -1:
        cdef bint wait
        # From here on a waker must write: flushing may run somebody's destructor, and
        # that may let another thread in after the loop looked at its queue.
        self.sleeping = timeout != 0
        self.prepare()
        if self.unchecked and (timeout < 0 or timeout > CHECK_S):
            timeout = CHECK_S
        # (The dispatch queue: a sink may have something to tell of its flush.)
        wait = (timeout != 0 and self.nposted == 0 and self.nbacklog == 0
                and self.ring.ready() == 0 and self.dispatch_queue.n == 0)
        if wait or self.ring.unsubmitted() or self.ring.needs_enter():
            self.enter(wait, timeout)
        # A disk's first answer ends the wait. What its task asks for goes with what the tasks
        # of the others do: told of one operation, a virtual disk does that and sleeps again.
        if wait and self.ring.needs_enter() and self.file_is_next():
            self.enter(0, 0)
        self.sleeping = False
        self.collect()
        if self.unchecked:
            self.check_receives()
        return 0

    cdef bint file_is_next(self) noexcept:
        cdef Slot *s = self.slot_of(self.ring.next_token())
        return s != NULL and s.kind == OP_FILE

    cdef int save_backlog(self) except -1:
        """Move the completions that wait in the queue to our own memory."""
        cdef uint32_t n = self.ring.ready()
        cdef uint32_t head = rl_load_relaxed(self.ring.cq_head)
        cdef uint32_t i
        cdef Py_ssize_t cap
        cdef Cqe *p
        if self.nbacklog + n > self.backlog_cap:
            cap = max(self.backlog_cap * 2, self.nbacklog + n)
            p = <Cqe *>realloc(self.backlog, cap * sizeof(Cqe))
            if p == NULL:
                raise MemoryError
            self.backlog = p
            self.backlog_cap = cap
        for i in range(n):
            self.backlog[self.nbacklog] = self.ring.cqes[(head + i) & self.ring.cq_mask]
            self.nbacklog += 1
        rl_store_release(self.ring.cq_head, head + n)
        return 0

    cdef int collect(self) except -1:
        cdef uint32_t head, n
        cdef Py_ssize_t i = 0
        cdef Cqe cqe
        if self.nposted:
            self.collect_posted()
        if self.nbacklog:
            while i < self.nbacklog:  # a re-arm may add to it
                cqe = self.backlog[i]
                i += 1
                self.on_cqe(&cqe)
            self.nbacklog = 0
        # Whoever waited for a file tends to begin the next operation, which costs some 20 us
        # with the workers that it wakes: 64 tasks at once made an iteration of 3 ms.
        n = self.ring.ready()
        self.files_left = self.files_limit
        while n and self.nbacklog == 0 and self.files_left:
            # The head moves on before the completion is handled: a re-arm may have
            # to submit, and that may move what is left to the backlog, before which
            # nothing newer may be handled.
            head = rl_load_relaxed(self.ring.cq_head)
            cqe = self.ring.cqes[head & self.ring.cq_mask]
            rl_store_release(self.ring.cq_head, head + 1)
            self.on_cqe(&cqe)
            n = min(n - 1, self.ring.ready())
        return 0

    cdef int on_cqe(self, Cqe *cqe) except -1:
        cdef uint64_t token = cqe.user_data
        cdef int res = cqe.res
        cdef bint more = (cqe.flags & RL_CQE_MORE) != 0
        cdef Slot *s = self.slot_of(token)
        cdef uint32_t bid
        cdef int kind
        if s == NULL:
            return 0  # a cancel's own completion: token 0
        kind = s.kind
        if not more:
            s.armed = False
        if kind == OP_RECV:
            if res > 0:
                s.heard = 2
                self.unchecked = True
                bid = cqe.flags >> RL_CQE_BUFFER_SHIFT
                if not more and not s.cancelled:
                    self.push(token)
                    more = True
                self.complete(token, res, more, self.buffers.address(bid))
                # Copied out by now.
                self.buffers.give_back(bid)
                return 0
            if cqe.flags & RL_CQE_BUFFER:
                self.buffers.give_back(cqe.flags >> RL_CQE_BUFFER_SHIFT)
            if not more and (res == -ENOBUFS or res == -ECANCELED or res == -EAGAIN):
                if not s.cancelled:
                    return self.push(token)
                res = -ECANCELED  # no sink has to know of buffers
        elif kind == OP_EPOLL:
            if not s.cancelled:
                if res >= 0:
                    self.take_ready()
                return 0
        elif kind == OP_WAKE:
            if more:
                return 0
            if not s.cancelled:
                return self.push(token)
        elif kind == OP_ACCEPT:
            if not more and not s.cancelled and (
                    res >= 0 or res == -ECANCELED or res == -ECONNABORTED or res == -EAGAIN):
                self.push(token)
                if res < 0:
                    return 0
                more = True
        elif kind == OP_FILE:
            if res == -EINTR and not s.cancelled:  # EAGAIN is a result: O_NONBLOCK
                return self.push(token)
            self.files_left -= 1
        elif (res == -ECANCELED or res == -EAGAIN) and not s.cancelled:
            s.poll_first = True
            return self.push(token)
        self.complete(token, res, more, NULL)
        return 0

    cdef int check_receives(self) except -1:
        """Arm receives again whose fd is readable though they say nothing."""
        cdef uint64_t tokens[CHECK_MAX]
        cdef pollfd fds[CHECK_MAX]
        cdef timespec ts
        cdef double now_s
        cdef uint32_t i
        cdef Slot *s
        cdef int n = 0
        clock_gettime(CLOCK_MONOTONIC_COARSE, &ts)
        now_s = ts.tv_sec + ts.tv_nsec * 1e-9
        if now_s < self.check_at_s:
            return 0
        self.check_at_s = now_s + CHECK_S
        self.unchecked = False
        for i in range(1, self.nslots):
            s = &self.slots[i]
            if s.heard == 0 or s.kind != OP_RECV:
                continue
            s.heard -= 1
            if s.heard:
                self.unchecked = True  # once more, when it was silent that long
            elif s.armed and not s.cancelled:
                tokens[n] = (<uint64_t>s.gen << 32) | i
                fds[n].fd = s.fd
                fds[n].events = POLLIN | POLLRDHUP
                n += 1
                if n == CHECK_MAX:
                    self.arm_if_readable(tokens, fds, n)
                    n = 0
        if n:
            self.arm_if_readable(tokens, fds, n)
        return 0

    cdef int arm_if_readable(self, uint64_t *tokens, pollfd *fds, int n) except -1:
        cdef Sqe *e
        cdef int i
        if poll(fds, n, 0) <= 0:
            return 0
        for i in range(n):
            if fds[i].revents:
                # Not marked as cancelled: its ECANCELED arms it again.
                e = self.sqe()
                e.opcode = RL_OP_ASYNC_CANCEL
                e.addr = tokens[i]
        return 0

    cdef int take_ready(self) except -1:
        cdef epoll_event events[MAX_EVENTS]
        self.take_events(events, epoll_wait(self.epfd, events, MAX_EVENTS, 0))
        return 0

    # -- the end ---------------------------------------------------------------------

    cdef int drain(self) except -1:
        cdef uint32_t i
        cdef Slot *s
        cdef Sqe *e
        cdef int tries = 0
        if self.thread != this_thread():
            return 0  # never ran, or ran elsewhere: closing the ring cancels
        self.files_limit = self.ring.cq_entries  # no timer runs any more
        self.run(0)
        self.run(0)  # what waited for the end of a send in flight
        for i in range(1, self.nslots):
            s = &self.slots[i]
            if s.kind == OP_POLL or s.kind == OP_WATCH:
                self.cancel((<uint64_t>s.gen << 32) | i)
            elif s.kind != OP_NONE and not s.cancelled and s.kind != OP_WAKE:
                s.cancelled = True
                if not s.armed:
                    self.post((<uint64_t>s.gen << 32) | i, -ECANCELED)
        e = self.sqe()
        e.opcode = RL_OP_ASYNC_CANCEL
        e.op_flags = RL_CANCEL_ALL | RL_CANCEL_ANY
        self.slot_of(self.wake_token).cancelled = True
        while self.live and tries < 100:
            self.enter(self.nposted == 0 and self.nbacklog == 0 and self.ring.ready() == 0,
                       DRAIN_S / 100)
            self.collect()
            tries += 1
        return 0

    cdef int close(self) except -1:
        if self.closed:
            return 0
        if self.live > 2 or self.flush_queue.n:
            self.drain()
        self.closed = True
        self.ring.close()
        self.drop_slots()
        self.close_wake_fd()
        self.close_epoll()
        return 0

    cdef void abandon(self) noexcept:
        self.closed = self.abandoned = True
        self.buffers.abandon()
        self.ring.abandon()
        self.close_wake_fd()
        self.close_epoll()
