cdef class AlignedBuffer:
    cdef char *p


cdef AlignedBuffer new_aligned(Py_ssize_t n)
