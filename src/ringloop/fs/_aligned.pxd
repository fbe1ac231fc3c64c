cdef class AlignedBuffer:
    cdef char *p
    cdef int shift  # of 4 KiB, to its size; or one more than is kept


cdef AlignedBuffer new_aligned(Py_ssize_t n)
