"""Awaitables made by hand: the slots behind `send`, put into a type as Cython cannot.

`am_send` is what tasks call, and the interpreter until 3.11; newer ones call
`tp_iternext` and take the result from a StopIteration, here without a traceback.

`rl_make_sendable(type, f)` once for each concrete class (the slots are not inherited), which
needs an `__await__` and a `__next__` for the slots to be there. A module has one such `f`.
"""
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF

cdef extern from *:
    """
    static PyObject *rl_no_args;

    #if PY_VERSION_HEX >= 0x030C0000
    static PyObject *rl_kept; /* a StopIteration to be used again */

    /* What may stay alive in it for a while: small, and nobody sees when it goes. */
    static int rl_keepable(PyObject *v) {
        return PyBytes_CheckExact(v) ? PyBytes_GET_SIZE(v) <= 8192
            : PyUnicode_CheckExact(v) ? PyUnicode_GET_LENGTH(v) <= 2048
            : PyLong_CheckExact(v);
    }
    #endif

    /* StopIteration(value) as cheaply as it comes; steals the reference. */
    static PyObject *rl_stop(PyObject *value) {
    #if PY_VERSION_HEX >= 0x030C0000
        PyTypeObject *type = (PyTypeObject *)PyExc_StopIteration;
        PyBaseExceptionObject *kept = (PyBaseExceptionObject *)rl_kept;
        PyObject *exc;
        if (value == Py_None) {
            Py_DECREF(value);
            return NULL; /* no exception: StopIteration(None) */
        }
        if (kept != NULL && Py_REFCNT(kept) == 1 && kept->traceback == NULL
            && kept->context == NULL && kept->cause == NULL && rl_keepable(value)) {
            Py_INCREF(kept);
            Py_XSETREF(((PyStopIterationObject *)kept)->value, value);
            PyErr_SetRaisedException((PyObject *)kept);
            return NULL;
        }
        exc = type->tp_new(type, rl_no_args, NULL);
        if (exc == NULL) {
            Py_DECREF(value);
            return NULL;
        }
        Py_XSETREF(((PyStopIterationObject *)exc)->value, value);
        if (rl_keepable(value)) {
            Py_XDECREF(rl_kept);
            rl_kept = Py_NewRef(exc);
        }
        PyErr_SetRaisedException(exc);
    #else
        PyObject *exc = PyObject_CallOneArg(PyExc_StopIteration, value);
        Py_DECREF(value);
        if (exc != NULL) {
            PyErr_SetObject(PyExc_StopIteration, exc);
            Py_DECREF(exc);
        }
    #endif
        return NULL;
    }

    typedef int (*rl_send)(PyObject *, PyObject *, PyObject **);
    static rl_send rl_the_send;

    static PyObject *rl_iternext(PyObject *self) {
        PyObject *result = NULL;
        int r = rl_the_send(self, Py_None, &result);
        return r == PYGEN_RETURN ? rl_stop(result) : r == PYGEN_NEXT ? result : NULL;
    }

    static int rl_make_sendable(PyObject *t, rl_send send) {
        PyTypeObject *type = (PyTypeObject *)t;
        if (rl_no_args == NULL && (rl_no_args = PyTuple_New(0)) == NULL)
            return -1;
        rl_the_send = send;
        type->tp_as_async->am_send = (sendfunc)(void (*)(void))send;
        type->tp_iternext = rl_iternext;
        return 0;
    }
    """
    ctypedef int (*rl_send)(PyObject *, PyObject *, PyObject **) except -1
    int rl_make_sendable(object type, rl_send f) except -1
    int PyIter_Send(PyObject *it, PyObject *arg, PyObject **result) except -1
    enum:
        PYGEN_RETURN, PYGEN_NEXT


cdef inline object send_or_stop(object awaitable, rl_send f, object arg):
    """`send` as Python code calls it: what is yielded, or StopIteration with the result."""
    cdef PyObject *result
    cdef int r = f(<PyObject *>awaitable, <PyObject *>arg, &result)
    value = <object>result
    Py_DECREF(value)  # the reference that came with it
    if r == PYGEN_NEXT:
        return value
    raise StopIteration(value)
