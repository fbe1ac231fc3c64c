from ringloop.fs._op cimport Op


cdef class _Folder:
    cdef Py_ssize_t in_flight
    cdef object waiting      # CreateOps, first come first served
    cdef object __weakref__


cdef class CreateOp(Op):
    cdef _Folder folder      # where it is one of those in flight
    cdef bint given_up       # cancelled before it began

    cdef int start_in_folder(self, bytes path) except -1
    cdef int leave_folder(self) except -1
    cdef int begin(self, _Folder folder) except -1
    cdef int fail(self, object exc) except -1
