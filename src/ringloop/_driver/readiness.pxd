from libc.stdint cimport uint32_t, uint64_t

from ringloop._driver.base cimport Driver, Slot
from ringloop._sys.posix cimport epoll_event

cdef enum:
    MAX_EVENTS = 1024


ctypedef struct FdEntry:
    uint32_t head        # first slot of the operations that wait on this fd
    uint32_t registered  # the events epoll was last told; 0: not registered


cdef class ReadinessDriver(Driver):
    cdef int epfd
    cdef FdEntry *fds
    cdef int nfds

    cdef int open_epoll(self) except -1
    cdef void close_epoll(self) noexcept
    cdef FdEntry *entry(self, int fd) except NULL
    cdef int arm(self, uint64_t token) except -1
    cdef void unlink(self, Slot *s, uint32_t index) noexcept
    cdef int update(self, int fd, bint fresh) except -1
    cdef void take_events(self, epoll_event *events, int n) noexcept
    cdef void ready(self, int fd, uint32_t events) noexcept
    cdef void ready_io(self, uint64_t token, int fd) noexcept
