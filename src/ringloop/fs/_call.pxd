from libc.stdint cimport uint8_t, uint64_t


# A call's states.
cdef enum:
    NEW, YIELDED, SLOW, OVER


cdef class Call:
    cdef object inner      # what goes on where attempt() would block
    cdef uint64_t round
    cdef uint8_t state
    cdef bint urgent       # tries before others have their turn: nothing may come between

    cdef object attempt(self)
    cdef object slow(self)
    cdef void yields(self) noexcept
    cdef void resumed(self) noexcept
    cdef int given_up(self) except -1


cdef object PENDING, BEHIND

cdef void charge(Py_ssize_t nbytes) noexcept
cdef int make_sendable(object type) except -1
