from ringloop._core.loop cimport CoreLoop


cdef class ReaderCore:
    cdef object store          # bytes, or a bytearray of our own; None: nothing
    cdef Py_ssize_t pos
    cdef bint exposed          # somebody may hold `store`: nothing stands before `pos`
    cdef Py_ssize_t scanned    # unread bytes known to hold no separator
    cdef bint skipping         # the rest of a line that was too long is still to come

    cdef object waiter
    cdef Py_ssize_t want       # unread bytes that wake it
    cdef Py_ssize_t limit

    cdef CoreLoop core
    cdef public object _loop
    cdef public object _transport
    cdef public object _exception
    cdef public bint _eof
    cdef public bint _paused
    cdef public object _source_traceback

    cdef Py_ssize_t unread(self) noexcept
    cdef const char *start(self) noexcept
    cdef bytes peek(self, Py_ssize_t n)
    cdef int drop(self, Py_ssize_t n) except -1
    cdef bytes take(self, Py_ssize_t n)
    cdef bytes take_all(self)
    cdef int append(self, object data) except -1
    cdef Py_ssize_t find(self, object sep, Py_ssize_t offset) except -2
    cdef int wake(self) except -1
    cdef int maybe_resume(self) except -1
    cdef object wait(self, str who, Py_ssize_t want)
    cdef int check(self) except -1


cdef class Wait:
    cdef object future         # None: it was yielded
