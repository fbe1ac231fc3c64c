from ringloop._sys.files cimport stat_t
from ringloop.fs._call cimport Call


cdef enum:
    FAR = -10000             # no errno: open_now() found a file of another machine's


cdef class OpenCall(Call):
    cdef object file         # path or descriptor, as given
    cdef bytes path
    cdef int flags
    cdef str mode            # of the binary file
    cdef int buffering
    cdef tuple text          # None: binary; else mode, encoding, errors, newline
    cdef bint closefd
    cdef bint far            # the ring itself would wait for the server, so: a thread
    cdef bint fifo           # opening it waits for the other end
    cdef bint creates        # a name that is not known to be there
    cdef int held            # a FIFO's end that must stay open meanwhile; or -1
    cdef object opener
    cdef object opened

    cdef object from_fd(self, int fd, stat_t *st)


cdef int open_now(bytes path, int flags, stat_t *st, bint *fifo) noexcept
