from ringloop.fs._buffers cimport SLOW_CLOSE, Buffers
from ringloop.fs._op cimport Op


cdef class Flights(Buffers):
    cdef Op flight               # the one operation that moves `pos` or the buffers
    cdef bint stale              # drop what is ahead before the next call: it was written over
    cdef int slow_calls          # that hold the lock or wait for it
    cdef object lock
    cdef int inflight            # pread, pwrite: at places of their own
    cdef object landed           # a future of close(), which waits for them
    cdef object closer           # the task of a close() that had to wait

    cdef inline bint is_free(self) noexcept:
        return self.slow_calls == 0 and self.flight is None
    cdef int wrote_beside(self) except -1
    cdef Op begin(self)
    cdef inline bint closes_late(self) noexcept:
        # What was written may have to be, or space to be freed, before close() returns.
        return self.late_close or (self.can_write and self.pos > SLOW_CLOSE)
    cdef int close_now(self) except -1
