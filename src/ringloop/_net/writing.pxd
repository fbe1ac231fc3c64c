from libc.stdint cimport uint64_t

from ringloop._driver.base cimport Completion, Driver
from ringloop._net.flow cimport FlowControl
from ringloop._sys.posix cimport iovec


cdef class WriteHalf(FlowControl):
    cdef Driver driver
    cdef readonly int _sock_fd
    cdef bint closing
    cdef int conn_lost         # connection_lost() is scheduled; counts writes after it

    cdef uint64_t send_token
    cdef object out            # bytes, or a list of them: being sent
    cdef Py_ssize_t out_i      # first piece of the list that is not all sent
    cdef Py_ssize_t out_off    # sent bytes of that piece
    cdef bint send_blocked     # the socket's buffer was full
    cdef bytes w0              # waiting to be sent: the first piece...
    cdef list wq               # ...and the others
    cdef bint eof              # write_eof() was called...
    cdef bint eof_sent         # ...and all before it was sent
    cdef int tx_error
    cdef Py_ssize_t asked      # bytes of the send in flight
    cdef bint sending_file     # loop.sendfile() has the socket
    cdef bint awaits_room      # `send_token` is its wait for room in the socket
    cdef object file_waiter    # what it waits for: that, or the end of what was written

    cdef int refuse(self, str method) except -1
    cdef int queue(self, bytes data) except -1
    cdef int after_queue(self) except -1
    cdef int gather(self, iovec *iov) except -1
    cdef int start_send(self) except -1
    cdef int send_now(self) except -1
    cdef int send_early(self) except -1
    cdef int after_send(self) except? -1
    cdef void consume(self, Py_ssize_t n) noexcept
    cdef int all_sent(self) except -1
    cdef int send_eof(self) except -1
    cdef object new_file_waiter(self)
    cdef int tell_sendfile(self, object exc) except -1
    cdef void on_send(self, Completion *c) noexcept
    cdef int lose(self, object exc) except -1
    cdef int drop_unsent(self) except -1


cdef void set_nodelay(int fd, int family) noexcept
