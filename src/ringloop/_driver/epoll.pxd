from libc.stdint cimport uint64_t

from ringloop._driver.base cimport Slot
from ringloop._driver.readiness cimport ReadinessDriver


cdef class EpollDriver(ReadinessDriver):
    cdef char *scratch

    cdef uint64_t try_send(self, uint64_t token, bint poll_first) except 0
    cdef void finish(self, uint64_t token, int res) noexcept
    cdef ssize_t do_recv(self, int fd, char *p, size_t n) noexcept
    cdef ssize_t do_send(self, Slot *s) noexcept
    cdef void ready_recv(self, uint64_t token, int fd) noexcept
    cdef void ready_accept(self, uint64_t token, int fd) noexcept
