cdef class Engine:
    cdef readonly object ssl_object

    cdef int feed(self, bytes data) except -1
    cdef bytes read(self)
    cdef Py_ssize_t read_into(self, char *p, Py_ssize_t n) except -2
    cdef Py_ssize_t write(self, const char *p, Py_ssize_t n) except -2
    cdef bytes take(self)
    cdef bint idle(self) except -1
    cdef Py_ssize_t unread(self) except -1
    cdef Py_ssize_t untaken(self) except -1


cdef class MemoryEngine(Engine):
    cdef object sslobj          # the C object in `ssl_object`, or that itself
    cdef object incoming
    cdef object outgoing
    cdef object error           # an ssl.SSLError, which is for ever
    cdef bint closed            # close_notify was read
