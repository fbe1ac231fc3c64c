"""One io_uring instance: its memory, its queues, its system calls."""
from libc.stdint cimport uint16_t, uint32_t, uint64_t

from ringloop._sys.uring cimport Buf, Cqe, Probe, Sqe


cdef class BufferRing:
    """A group of equal buffers that the kernel picks from."""
    cdef Buf *ring
    cdef char *memory
    cdef readonly uint32_t count
    cdef readonly uint32_t size
    cdef uint16_t tail
    cdef uint16_t mask

    cdef inline char *address(self, uint32_t bid) noexcept:
        return self.memory + <size_t>bid * self.size

    cdef void give_back(self, uint32_t bid) noexcept
    cdef void abandon(self) noexcept


cdef class Ring:
    cdef readonly int fd
    cdef uint32_t enter_flags
    cdef readonly uint32_t setup_flags
    cdef readonly uint32_t features
    cdef void *rings
    cdef size_t rings_len
    cdef Sqe *sqes
    cdef size_t sqes_len
    cdef uint32_t *sq_head
    cdef uint32_t *sq_tail
    cdef uint32_t *sq_flags
    cdef uint32_t sq_mask
    cdef readonly uint32_t sq_entries
    cdef uint32_t tail              # ours; published by enter()
    cdef uint32_t *cq_head
    cdef uint32_t *cq_tail
    cdef Cqe *cqes
    cdef uint32_t cq_mask
    cdef readonly uint32_t cq_entries

    cdef int enable(self) except -1
    cdef Sqe *next_sqe(self) noexcept
    cdef uint32_t unsubmitted(self) noexcept
    cdef uint32_t ready(self) noexcept
    cdef uint64_t next_token(self) noexcept
    cdef bint needs_enter(self) noexcept
    cdef bint overflowed(self) noexcept
    cdef int enter(self, uint32_t wait, double timeout) noexcept
    cdef BufferRing add_buffers(self, uint16_t group, uint32_t count, uint32_t size)
    cdef int probe(self, Probe *p) noexcept
    cdef void close(self) noexcept
    cdef void abandon(self) noexcept
