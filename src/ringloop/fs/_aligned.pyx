"""Memory for O_DIRECT, which the kernel wants aligned to the device's blocks."""
from libc.stdlib cimport free

cdef extern from "<stdlib.h>" nogil:
    int posix_memalign(void **p, size_t alignment, size_t n)

cdef enum:
    ALIGNMENT = 4096


cdef class AlignedBuffer:
    def __dealloc__(self):
        free(self.p)


cdef AlignedBuffer new_aligned(Py_ssize_t n):
    cdef AlignedBuffer buffer = AlignedBuffer.__new__(AlignedBuffer)
    if posix_memalign(<void **>&buffer.p, ALIGNMENT, max(n, 1)):
        raise MemoryError
    return buffer
