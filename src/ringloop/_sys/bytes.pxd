"""bytes that are filled before it is known how many they are."""
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF

cdef extern from "Python.h":
    int _PyBytes_Resize(PyObject **p, Py_ssize_t n) except -1


cdef inline bytes shortened(PyObject *data, Py_ssize_t n):
    """The first `n` bytes, mostly in place; takes over the reference, which is the only one."""
    _PyBytes_Resize(&data, n)
    result = <bytes>data
    Py_DECREF(result)
    return result
