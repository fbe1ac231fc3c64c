from ringloop.fs._flights cimport Flights


cdef object new_at(Flights file, object data, Py_ssize_t n, object offset)
