from libc.stdint cimport int64_t

from ringloop.fs._buffers cimport Buffers, Step
from ringloop.fs._flights cimport Flights

# What a FileCall does.
cdef enum:
    READ, READALL, READ1, READLINE, READINTO, READINTO1, PEEK, WRITE, SEEK, TELL, TRUNC, FLUSH
    FSYNC, FDATASYNC


cdef class BinaryFile(Flights):
    cdef object __weakref__
    cdef FileLine line           # the last anext(), used again when nobody has it

    cdef ssize_t write_out(self) noexcept


cdef class FileCall(Step):
    cdef BinaryFile file
    cdef int code


cdef class FileLine(Step):
    cdef BinaryFile file


cdef FileCall new_call(BinaryFile file, int code, object arg, Py_ssize_t n)
cdef BinaryFile new_file(int fd, object name, str mode, Py_ssize_t buffering, bint closefd,
                         int64_t size)
