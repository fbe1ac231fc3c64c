from ringloop._core.loop cimport CoreLoop
from cpython.object cimport PyObject
from ringloop._driver.base cimport Sink

cdef extern from "Python.h":
    PyObject **_PyObject_GetDictPtr(object o)
    void Py_CLEAR(PyObject *p)


cdef class FlowControl(Sink):
    cdef CoreLoop loop
    cdef object protocol
    cdef Py_ssize_t wsize      # all bytes not sent yet
    cdef Py_ssize_t high, low
    cdef bint protocol_paused

    cdef int pause_protocol(self) except -1
    cdef int resume_protocol(self) except -1


cdef inline void without_dict(object transport) noexcept:
    """Drop the dict that Cython gives every object with a `__dict__`.

    The interpreter makes one when an attribute is set, and calls methods of an object
    that has none twice as fast.
    """
    Py_CLEAR(_PyObject_GetDictPtr(transport)[0])
