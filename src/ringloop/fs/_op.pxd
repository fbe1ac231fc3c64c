from libc.stdint cimport uint64_t

from ringloop._driver.base cimport Driver, Sink
from ringloop._sys.files cimport FileOp


cdef class Op(Sink):
    cdef FileOp op
    cdef object keep         # owns what `op` points to
    cdef object loop
    cdef Driver driver
    cdef uint64_t token
    cdef int res
    cdef bint done
    cdef bint in_thread      # although there is a ring
    cdef bint alone          # in a thread of its own
    cdef bint stream         # of a pipe or terminal: wait until it is ready, not in a thread
    cdef bint watching
    cdef list waiters

    cdef int start(self) except -1
    cdef bint to_terminal(self) except -1
    cdef bint watch(self) except -1
    cdef int unwatch(self) except -1
    cdef int land(self) except -1
    cdef int finish(self) except -1
    cdef int cancel(self) except -1
    cdef object create_future(self)
    cdef object waiter(self)


cdef Op new_op(int opcode, int fd)
