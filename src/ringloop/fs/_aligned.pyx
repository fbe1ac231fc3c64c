"""Memory for O_DIRECT, which the kernel wants aligned to the device's blocks.

Sizes up to 64 KiB are powers of two, and what is given back is kept for the next one:
posix_memalign was a tenth of the instructions of a direct read in user space.
"""
from libc.stdlib cimport free

cdef extern from "<stdlib.h>" nogil:
    int posix_memalign(void **p, size_t alignment, size_t n)

cdef enum:
    ALIGNMENT = 4096  # and the smallest size
    SIZES = 5         # that are kept: up to 64 KiB
    KEPT = 64         # of the smallest; of others as many bytes

cdef void *_kept[SIZES]  # by size; each begins with a pointer to the next
cdef int _nkept[SIZES]


cdef class AlignedBuffer:
    def __dealloc__(self):
        if self.p == NULL:
            return
        if self.shift < SIZES and _nkept[self.shift] < KEPT >> self.shift:
            (<void **>self.p)[0] = _kept[self.shift]
            _kept[self.shift] = self.p
            _nkept[self.shift] += 1
        else:
            free(self.p)


cdef AlignedBuffer new_aligned(Py_ssize_t n):
    cdef AlignedBuffer buffer = AlignedBuffer.__new__(AlignedBuffer)
    cdef int shift = 0
    while shift < SIZES and (<Py_ssize_t>ALIGNMENT << shift) < n:
        shift += 1
    buffer.shift = shift
    if shift < SIZES and _nkept[shift]:
        buffer.p = <char *>_kept[shift]
        _kept[shift] = (<void **>buffer.p)[0]
        _nkept[shift] -= 1
    elif posix_memalign(<void **>&buffer.p, ALIGNMENT,
                        <size_t>ALIGNMENT << shift if shift < SIZES else <size_t>n):
        buffer.p = NULL
        raise MemoryError
    return buffer
