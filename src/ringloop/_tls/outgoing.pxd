from ringloop._tls.engine cimport Engine


cdef enum State:
    INIT
    HANDSHAKE
    OPEN
    FLUSHING
    SHUTDOWN
    LOST


cdef class TLSWriteHalf:
    cdef object loop
    cdef object lower               # the transport below; kept for get_extra_info()
    cdef object protocol
    cdef Engine engine
    cdef State state
    cdef bint failed                # connection_lost() is all that is still to come

    cdef object backlog             # a deque of bytes to be encrypted...
    cdef Py_ssize_t backlog_off     # ...of whose first so many are
    cdef Py_ssize_t backlog_size
    cdef int corked                 # inside a callback that may write
    cdef bint lower_paused          # the transport below has enough
    cdef bint protocol_paused
    cdef int writes_lost
    cdef Py_ssize_t high, low

    cdef int write_bytes(self, bytes data) except -1
    cdef bytes next_piece(self)
    cdef int write_backlog(self) except -1
    cdef int send(self) except -1
    cdef int set_write_limits(self, object high, object low) except -1
    cdef int control_protocol_writing(self) except -1
    cdef int tell_flow(self, str what) except -1
    cdef int fatal_error(self, object exc, str message) except -1
