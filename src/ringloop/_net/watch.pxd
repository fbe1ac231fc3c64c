from libc.stdint cimport uint32_t, uint64_t

from ringloop._core.handles cimport Handle
from ringloop._core.loop cimport CoreLoop
from ringloop._driver.base cimport Driver, Sink


cdef class Watch(Sink):
    cdef CoreLoop loop
    cdef Driver driver
    cdef uint64_t token
    cdef Handle handle
    cdef object fileobj  # as the user gave it: what finds it when it is closed
    cdef int error
    cdef int fd


cdef class Ready(Sink):
    cdef Driver driver
    cdef uint64_t token
    cdef object future

    cdef int stop(self) except -1


cdef Ready wait_ready(CoreLoop loop, int fd, uint32_t mask)
cdef int spare_ready(Ready ready) noexcept
