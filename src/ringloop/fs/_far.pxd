from libc.stdint cimport uint64_t


cdef bint is_far(uint64_t device) noexcept
cdef bint may_be_far() noexcept
