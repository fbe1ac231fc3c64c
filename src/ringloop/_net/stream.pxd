from libc.stdint cimport uint64_t

from ringloop._core.loop cimport CoreLoop
from ringloop._driver.base cimport Completion
from ringloop._net.writing cimport WriteHalf


cdef class StreamTransport(WriteHalf):
    cdef object sock           # the socket that owns the fd; None: we own it ourselves
    cdef int family
    cdef object server
    cdef object context        # every callback of the protocol runs in it
    cdef dict extra
    cdef object peer           # the peer's name, raw bytes until somebody asks...
    cdef object own            # ...and ours, taken when the fd is closed
    cdef object __weakref__
    cdef dict __dict__         # attributes can be set, as on asyncio's: made when one is

    cdef bint buffered         # the protocol is a BufferedProtocol
    cdef bint started          # connection_made() was called, so reading may begin
    cdef bint lost             # connection_lost() was called

    # receiving
    cdef uint64_t recv_token
    cdef bint recv_stopping    # its cancel was sent
    cdef bint paused
    cdef bint bulk             # wait for readiness and receive in place
    cdef bint readable         # in bulk mode: there is something
    cdef int bulk_score
    cdef Py_ssize_t bulk_size
    cdef bytes rx0             # received, not delivered: the first piece...
    cdef list rx               # ...and the others
    cdef Py_ssize_t rx_n
    cdef bint rx_eof           # seen, not told
    cdef bint rx_ended         # no more receiving: EOF or error
    cdef int rx_error

    cdef int init(self, CoreLoop loop, object sock, int fd, int family, object protocol,
                  object server, object context, dict extra) except -1
    cdef int made(self) except -1
    cdef int start_recv(self) except -1
    cdef int stop_recv(self) except -1
    cdef void on_recv(self, Completion *c) noexcept
    cdef int tell(self) except -1
    cdef int deliver(self) except -1
    cdef bytes take_received(self)
    cdef int read_bulk(self) except -1
    cdef Py_ssize_t read_bulk_once(self) except -1
    cdef int received(self, bytes data) except -1
    cdef int receive_failed(self, object exc, str what) except -1
    cdef int deliver_buffered(self, const char *p, Py_ssize_t n) except -1
    cdef int offered_buffer(self, Py_buffer *view, Py_ssize_t hint) except -1
    cdef int buffer_updated(self, object protocol, Py_ssize_t n) except -1
    cdef int deliver_eof(self) except -1
    cdef int fatal_error(self, object exc, str message) except -1
    cdef int force_close(self, object exc) except -1
    cdef int close_fd(self) except -1


cdef StreamTransport new_transport(CoreLoop loop, object sock, int fd, int family,
                                   object protocol, object server, object context, dict extra)
