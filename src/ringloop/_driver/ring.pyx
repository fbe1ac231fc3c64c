"""One io_uring instance: set-up with fallback, the two queues, the enter call.

Knows nothing of slots and sinks; `uring.pyx` is the driver on top of it.
"""
from ringloop._sys.errno cimport EINVAL, errno
from libc.string cimport memset

from ringloop._driver.base cimport os_error
from ringloop._sys.posix cimport (
    MADV_DONTFORK, MAP_ANONYMOUS, MAP_FAILED, MAP_POPULATE, MAP_PRIVATE, MAP_SHARED,
    PROT_READ, PROT_WRITE, close as close_fd, madvise, mmap, munmap,
)
from ringloop._sys.uring cimport (
    RL_ENTER_EXT_ARG, RL_ENTER_GETEVENTS, RL_ENTER_NO_IOWAIT,
    RL_FEAT_NO_IOWAIT, RL_FEAT_SINGLE_MMAP, RL_OFF_SQES, RL_OFF_SQ_RING,
    RL_REGISTER_ENABLE_RINGS, RL_REGISTER_IOWQ_MAX_WORKERS, RL_REGISTER_PBUF_RING,
    RL_REGISTER_PROBE,
    RL_SETUP_CLAMP, RL_SETUP_CQSIZE, RL_SETUP_DEFER_TASKRUN,
    RL_SETUP_NO_SQARRAY, RL_SETUP_R_DISABLED, RL_SETUP_SINGLE_ISSUER,
    RL_SETUP_SUBMIT_ALL, RL_SETUP_TASKRUN_FLAG, RL_SQ_CQ_OVERFLOW, RL_SQ_TASKRUN,
    BufReg, GeteventsArg, Params, Timespec,
    rl_load_acquire, rl_load_relaxed, rl_store_release, rl_store_release16,
    rl_uring_enter, rl_uring_register, rl_uring_setup,
)


cdef enum:
    MAX_WORKERS = 8


cdef void *_map(size_t n, int flags, int fd, uint64_t off) noexcept:
    """Map memory that a forked child does not get: NULL on failure.

    MADV_DONTFORK: parent and child would share the queues, and the kernel's
    pinned buffer ring would stay behind with the parent's pages.
    """
    cdef void *p = mmap(NULL, n, PROT_READ | PROT_WRITE, flags, fd, <long>off)
    if p == MAP_FAILED:
        return NULL
    madvise(p, n, MADV_DONTFORK)
    return p


cdef class BufferRing:
    def __dealloc__(self):
        # The kernel has let go of it: its Ring was closed before.
        if self.ring != NULL:
            munmap(self.ring, self.count * sizeof(Buf))
        if self.memory != NULL:
            munmap(self.memory, <size_t>self.count * self.size)

    cdef void give_back(self, uint32_t bid) noexcept:
        """Let the kernel use buffer `bid` again; its content is copied out."""
        cdef Buf *b = &self.ring[self.tail & self.mask]
        b.addr = <uint64_t>self.address(bid)
        b.len = self.size
        b.bid = <uint16_t>bid
        self.tail += 1
        # The tail shares the first entry's memory, in the field that we never write.
        rl_store_release16(&self.ring[0].resv, self.tail)

    cdef void abandon(self) noexcept:
        """In a forked child: forget the mappings, which it did not get (DONTFORK).

        No munmap: the addresses may be somebody else's by now.
        """
        self.ring = NULL
        self.memory = NULL


cdef class Ring:
    def __cinit__(self, uint32_t sq_entries=512, uint32_t cq_entries=8192):
        """Set up a ring, R_DISABLED until `enable()`; OSError where that fails."""
        cdef Params p
        cdef int fd
        cdef uint32_t i
        cdef uint32_t *array
        cdef char *base
        # DEFER_TASKRUN (6.1) is required: without it the kernel interrupts us for
        # each completion, and a loop that moves to another thread could lose data.
        cdef uint32_t flags = (
            RL_SETUP_SUBMIT_ALL | RL_SETUP_CQSIZE | RL_SETUP_CLAMP | RL_SETUP_R_DISABLED
            | RL_SETUP_SINGLE_ISSUER | RL_SETUP_DEFER_TASKRUN | RL_SETUP_TASKRUN_FLAG
        )
        self.fd = -1
        for flags in (flags | RL_SETUP_NO_SQARRAY, flags):  # NO_SQARRAY: 6.6
            memset(&p, 0, sizeof(p))
            p.flags = flags
            p.cq_entries = cq_entries
            fd = rl_uring_setup(sq_entries, &p)
            if fd != -EINVAL:
                break
        if fd < 0:
            raise os_error(-fd, "io_uring_setup")
        self.fd = fd
        self.setup_flags = p.flags
        self.features = p.features
        if not p.features & RL_FEAT_SINGLE_MMAP:
            raise os_error(EINVAL, "io_uring without SINGLE_MMAP")

        self.rings_len = max(p.sq_off.array + p.sq_entries * sizeof(uint32_t),
                             p.cq_off.cqes + p.cq_entries * sizeof(Cqe))
        self.rings = _map(self.rings_len, MAP_SHARED | MAP_POPULATE, fd, RL_OFF_SQ_RING)
        self.sqes_len = p.sq_entries * sizeof(Sqe)
        self.sqes = <Sqe *>_map(self.sqes_len, MAP_SHARED | MAP_POPULATE, fd, RL_OFF_SQES)
        if self.rings == NULL or self.sqes == NULL:
            raise os_error(errno, "mmap of the io_uring queues")
        base = <char *>self.rings
        self.sq_head = <uint32_t *>(base + p.sq_off.head)
        self.sq_tail = <uint32_t *>(base + p.sq_off.tail)
        self.sq_flags = <uint32_t *>(base + p.sq_off.flags)
        self.sq_mask = (<uint32_t *>(base + p.sq_off.ring_mask))[0]
        self.sq_entries = p.sq_entries
        self.cq_head = <uint32_t *>(base + p.cq_off.head)
        self.cq_tail = <uint32_t *>(base + p.cq_off.tail)
        self.cq_mask = (<uint32_t *>(base + p.cq_off.ring_mask))[0]
        self.cq_entries = p.cq_entries
        self.cqes = <Cqe *>(base + p.cq_off.cqes)
        if not p.flags & RL_SETUP_NO_SQARRAY:
            array = <uint32_t *>(base + p.sq_off.array)
            for i in range(p.sq_entries):
                array[i] = i
        self.enter_flags = RL_ENTER_EXT_ARG
        if p.features & RL_FEAT_NO_IOWAIT:
            # Waiting for a socket is not waiting for a disk: 6.15 lets us say so,
            # else an idle loop shows as I/O wait and keeps the CPU's clock up.
            self.enter_flags |= RL_ENTER_NO_IOWAIT

    def __dealloc__(self):
        self.close()

    cdef void close(self) noexcept:
        if self.rings != NULL:
            munmap(self.rings, self.rings_len)
            self.rings = NULL
        if self.sqes != NULL:
            munmap(self.sqes, self.sqes_len)
            self.sqes = NULL
        if self.fd >= 0:
            close_fd(self.fd)
            self.fd = -1

    cdef void abandon(self) noexcept:
        """In a forked child: close the fd only; the ring lives on in the parent."""
        self.rings = NULL
        self.sqes = NULL
        self.close()

    cdef int enable(self) except -1:
        """Bind the ring to the calling thread, the only one that may enter it."""
        cdef uint32_t[2] workers = [MAX_WORKERS, 0]  # for files; for the rest: as it is
        cdef int r = rl_uring_register(self.fd, RL_REGISTER_ENABLE_RINGS, NULL, 0)
        if r < 0:
            raise os_error(-r, "io_uring_register(ENABLE_RINGS)")
        # Workers block in file operations that cannot wait otherwise; more of them than a
        # disk or a journal can serve only contend. Refused where a sandbox filters it.
        rl_uring_register(self.fd, RL_REGISTER_IOWQ_MAX_WORKERS, workers, 2)
        # Not done: RL_REGISTER_RING_FDS, which saves the fd look-up of each enter. It
        # lives in the thread, and only there can it be undone: it would keep the old
        # ring of a loop that moved, and all that is armed on it, until that thread ends.
        return 0

    cdef Sqe *next_sqe(self) noexcept:
        """A zeroed submission entry, or NULL while the queue is full."""
        cdef Sqe *sqe
        if self.tail - rl_load_acquire(self.sq_head) >= self.sq_entries:
            return NULL
        sqe = &self.sqes[self.tail & self.sq_mask]
        memset(sqe, 0, sizeof(Sqe))
        self.tail += 1
        return sqe

    cdef uint32_t unsubmitted(self) noexcept:
        return self.tail - rl_load_relaxed(self.sq_head)

    cdef uint32_t ready(self) noexcept:
        """How many completions wait in the queue."""
        return rl_load_acquire(self.cq_tail) - rl_load_relaxed(self.cq_head)

    cdef uint64_t next_token(self) noexcept:
        """Whose completion is the next in the queue; 0 if none is there."""
        if self.ready() == 0:
            return 0
        return self.cqes[rl_load_relaxed(self.cq_head) & self.cq_mask].user_data

    cdef bint needs_enter(self) noexcept:
        """The kernel has work that only an enter runs."""
        return (rl_load_relaxed(self.sq_flags) & (RL_SQ_TASKRUN | RL_SQ_CQ_OVERFLOW)) != 0

    cdef bint overflowed(self) noexcept:
        """The kernel has completions for which the queue had no room."""
        return (rl_load_relaxed(self.sq_flags) & RL_SQ_CQ_OVERFLOW) != 0

    cdef int enter(self, uint32_t wait, double timeout) noexcept:
        """Submit all, wait for `wait` completions or `timeout` seconds (negative: ever).

        Gives the number submitted or -errno. With something to submit the kernel
        gives that count and hides ETIME and EINTR: callers look at the completion
        queue, the clock and Python's signals whatever comes back.
        """
        cdef GeteventsArg arg
        cdef Timespec ts
        cdef int r
        cdef uint32_t n = self.unsubmitted()
        memset(&arg, 0, sizeof(arg))
        if wait and timeout >= 0:
            ts.tv_sec = <long>timeout
            ts.tv_nsec = <long>((timeout - ts.tv_sec) * 1e9)
            arg.ts = <uint64_t>&ts
        rl_store_release(self.sq_tail, self.tail)
        with nogil:
            r = rl_uring_enter(self.fd, n, wait, self.enter_flags | RL_ENTER_GETEVENTS,
                               &arg, sizeof(arg))
        return r

    cdef BufferRing add_buffers(self, uint16_t group, uint32_t count, uint32_t size):
        """Register `count` (a power of two) buffers of `size` bytes as a group."""
        cdef BufferRing b = BufferRing()
        cdef BufReg reg
        cdef uint32_t i
        cdef int r
        b.count = count
        b.size = size
        b.mask = <uint16_t>(count - 1)
        b.ring = <Buf *>_map(count * sizeof(Buf), MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
        b.memory = <char *>_map(<size_t>count * size, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
        if b.ring == NULL or b.memory == NULL:
            raise os_error(errno, "mmap of the receive buffers")
        memset(&reg, 0, sizeof(reg))
        reg.ring_addr = <uint64_t>b.ring
        reg.ring_entries = count
        reg.bgid = group
        r = rl_uring_register(self.fd, RL_REGISTER_PBUF_RING, &reg, 1)
        if r < 0:
            raise os_error(-r, "io_uring_register(PBUF_RING)")
        for i in range(count):
            b.give_back(i)
        return b

    cdef int probe(self, Probe *p) noexcept:
        """Which opcodes the kernel has; 0 or -errno."""
        memset(p, 0, sizeof(Probe))
        return rl_uring_register(self.fd, RL_REGISTER_PROBE, p, 256)
