from libc.stdint cimport uint32_t, uint64_t

from ringloop._driver.base cimport Slot
from ringloop._driver.readiness cimport ReadinessDriver
from ringloop._driver.ring cimport BufferRing, Ring
from ringloop._sys.posix cimport pollfd
from ringloop._sys.uring cimport Cqe, Sqe


cdef class UringDriver(ReadinessDriver):
    cdef Ring ring
    cdef BufferRing buffers
    cdef tuple sizes              # submissions, completions, buffers, bytes in one
    cdef uint64_t thread          # whose ring it is; 0 until the first attach()
    cdef bint accept_multishot
    cdef bint moving              # to another thread: see rebuild()
    cdef uint64_t wake_token
    cdef uint64_t epoll_token     # the poll of `epfd`; not armed: it has fired
    cdef uint32_t files_limit     # how many file completions one collect() takes at most
    cdef uint32_t files_left      # of this one
    cdef bint unchecked           # receives heard something: see check_receives()
    cdef double check_at_s
    cdef Cqe *backlog             # taken out of a full queue by a submit, oldest first
    cdef Py_ssize_t nbacklog, backlog_cap

    cdef tuple new_ring(self)
    cdef int rebuild(self, uint64_t me) except -1
    cdef Sqe *sqe(self) except NULL
    cdef int push(self, uint64_t token) except -1
    cdef uint64_t start(self, uint64_t token) except 0
    cdef int prepare(self) except -1
    cdef int take_ready(self) except -1
    cdef int enter(self, uint32_t wait, double timeout) except -1
    cdef bint file_is_next(self) noexcept
    cdef int save_backlog(self) except -1
    cdef int collect(self) except -1
    cdef int on_cqe(self, Cqe *cqe) except -1
    cdef int check_receives(self) except -1
    cdef int arm_if_readable(self, uint64_t *tokens, pollfd *fds, int n) except -1
