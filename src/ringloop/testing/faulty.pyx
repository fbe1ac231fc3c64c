"""A driver with seeded faults: the kernel on its worst days, which real ones hide.

It is the epoll driver with these changes, each allowed by the contract:

* sends are short at random, down to one byte;
* received data comes in pieces cut at random places;
* completions come late: they wait in a queue, in order, for some runs;
* readiness is reported where there is none.

The faults that a ring has of its own (no buffers left, a completion queue that
overflows, a full submission queue) need no imitation: `UringDriver(sq_entries=4,
cq_entries=8, buffers=4, buffer_size=64)` has them for real.
"""
from libc.stdint cimport uint32_t, uint64_t

from ringloop._driver.base cimport OP_WATCH, Sink, Slot
from ringloop._driver.epoll cimport EpollDriver
from ringloop._sys.posix cimport iovec

from collections import deque


cdef class FaultyDriver(EpollDriver):
    """`seed` makes the faults repeatable; `rate` is the share of calls that are hit."""

    cdef uint64_t state
    cdef uint32_t rate
    cdef object late          # (token, res, more, data), in the order they happened
    cdef bint releasing
    cdef readonly int faults
    cdef public int accept_error   # what the next accept fails with, once

    def __init__(self, unsigned long long seed=1, double rate=0.3):
        self.name = "faulty"
        self.state = seed * 2862933555777941757ULL + 3037000493ULL
        self.rate = <uint32_t>(rate * 1000)
        self.late = deque()

    cdef uint32_t random(self, uint32_t n) noexcept:
        self.state ^= self.state << 13
        self.state ^= self.state >> 7
        self.state ^= self.state << 17
        return <uint32_t>(self.state >> 16) % n

    cdef bint fault(self) noexcept:
        if self.random(1000) < self.rate:
            self.faults += 1
            return True
        return False

    cdef uint64_t send(self, Sink sink, int fd, object keep, const char *p, size_t n,
                       bint poll_first) except 0:
        if n > 1 and self.fault():
            n = 1 + self.random(<uint32_t>min(n, 100000))
        return EpollDriver.send(self, sink, fd, keep, p, n, poll_first)

    cdef uint64_t sendv(self, Sink sink, int fd, object keep, const iovec *iov, int niov,
                        bint poll_first) except 0:
        cdef size_t n = iov[0].iov_len
        if self.fault():
            if n > 1:
                n = 1 + self.random(<uint32_t>min(n, 100000))
            return EpollDriver.send(self, sink, fd, keep, <char *>iov[0].iov_base, n, poll_first)
        return EpollDriver.sendv(self, sink, fd, keep, iov, niov, poll_first)

    cdef void ready_accept(self, uint64_t token, int fd) noexcept:
        cdef int error = self.accept_error
        if error:
            self.accept_error = 0
            self.finish(token, -error)
        else:
            EpollDriver.ready_accept(self, token, fd)

    cdef void complete(self, uint64_t token, int res, bint more, const char *data) noexcept:
        cdef int n
        if self.releasing:
            EpollDriver.complete(self, token, res, more, data)
            return
        while data != NULL and res > 1 and self.fault():
            n = 1 + self.random(res - 1)
            self.emit(token, n, True, data)
            data += n
            res -= n
        self.emit(token, res, more, data)

    cdef int emit(self, uint64_t token, int res, bint more, const char *data) except? -1:
        if not self.late and not self.fault():
            EpollDriver.complete(self, token, res, more, data)
        else:
            # Behind whatever is late already: per operation, order is part of the contract.
            self.late.append((token, res, more, data[:res] if data != NULL else None))
        return 0

    cdef int release(self) except -1:
        """Report the oldest of the late ones."""
        cdef bytes data
        token, res, more, data = self.late.popleft()
        EpollDriver.complete(self, token, res, more,
                             <char *>NULL if data is None else <char *>data)
        return 0

    cdef int run(self, double timeout) except -1:
        cdef uint32_t i
        cdef Slot *s
        # What becomes late inside this very run must not wait for an event.
        timeout = 0 if self.late else 0.005 if timeout < 0 else min(timeout, 0.005)
        EpollDriver.run(self, timeout)
        self.releasing = True
        try:
            # Half of them on average: fewer, and they would pile up for ever.
            for _ in range(self.random(<uint32_t>len(self.late) + 2)):
                if not self.late:
                    break
                self.release()
            if self.nslots > 1 and self.fault():
                # Readiness where there is none, for somebody at random.
                i = 1 + self.random(self.nslots - 1)
                s = &self.slots[i]
                if s.kind == OP_WATCH and s.armed:
                    EpollDriver.complete(self, (<uint64_t>s.gen << 32) | i, <int>s.mask, True, NULL)
        finally:
            self.releasing = False
        return 0

    cdef int drain(self) except -1:
        EpollDriver.drain(self)
        self.releasing = True
        while self.late:
            self.release()
        self.collect_posted()
        self.releasing = False
        return 0
