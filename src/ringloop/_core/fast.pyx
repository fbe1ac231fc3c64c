"""The loop's hottest methods, as the interpreter calls them fastest.

A `def` with *args gathers them into a tuple, and is called the long way. The forms here
take arguments as C arrays (METH_FASTCALL): asyncio's C code has them at hand, and the
interpreter specializes its calls, for methods that belong to the very class of the object.
So `add_fast_forms()` gives them to the class that programs use. Whatever is unusual goes on
to the method of CoreLoop, whose error messages are Python's.
"""
from cpython.float cimport PyFloat_AS_DOUBLE, PyFloat_CheckExact
from cpython.long cimport PyLong_AsDouble, PyLong_CheckExact
from cpython.object cimport PyObject, PyTypeObject

import inspect
import sys
from asyncio import tasks

from ringloop._core.handles cimport tuple_of
from ringloop._core.loop cimport (
    CoreLoop, future_keywords, monotonic, new_future, new_timer,
)

cdef extern from "Python.h":
    ctypedef PyObject *(*PyCFunction)(PyObject *, PyObject *)
    ctypedef struct PyMethodDef:
        const char *ml_name
        PyCFunction ml_meth
        int ml_flags
        const char *ml_doc
    int METH_FASTCALL, METH_KEYWORDS, METH_NOARGS
    object PyDescr_NewMethod(PyTypeObject *type, PyMethodDef *method)
    PyObject *PyTuple_GET_ITEM(object t, Py_ssize_t i)
    Py_ssize_t PyTuple_GET_SIZE(object t)
    object PyObject_Call(object f, tuple args, dict keywords)

cdef dict _tasks = vars(tasks)  # whoever replaces Task there means it
cdef object _CONTEXT = sys.intern("context")
cdef object _NAME = sys.intern("name")

# _asyncio's names for call_soon(context=) are always this tuple, of a string that is not
# interned.
cdef tuple _names_seen = None


cdef inline bint _only_context(PyObject *names) except -1:
    global _names_seen
    if names == NULL or names == <PyObject *>_names_seen:
        return True
    if PyTuple_GET_SIZE(<object>names) != 1:
        return False
    if PyTuple_GET_ITEM(<object>names, 0) == <PyObject *>_CONTEXT:
        return True
    if <object>PyTuple_GET_ITEM(<object>names, 0) != _CONTEXT:
        return False
    _names_seen = <tuple>names
    return True


cdef double _seconds(PyObject *value) except? -1:
    if PyFloat_CheckExact(<object>value):
        return PyFloat_AS_DOUBLE(<object>value)
    if PyLong_CheckExact(<object>value):
        return PyLong_AsDouble(<object>value)
    return <double><object>value


cdef object _long_way(method, PyObject *self, PyObject **args, Py_ssize_t n,
                      PyObject *names):
    cdef dict keywords = {}
    cdef Py_ssize_t i
    if names != NULL:
        for i in range(PyTuple_GET_SIZE(<object>names)):
            keywords[<object>PyTuple_GET_ITEM(<object>names, i)] = <object>args[n + i]
    return PyObject_Call(method, (<object>self, *tuple_of(args, n)), keywords)


cdef object _call_soon(PyObject *self, PyObject **args, Py_ssize_t n, PyObject *names):
    if n == 0 or not _only_context(names):
        return _long_way(CoreLoop.call_soon, self, args, n, names)
    return (<CoreLoop>self).soon(args, n, NULL if names == NULL else args[n], "call_soon")


cdef object _call_later(PyObject *self, PyObject **args, Py_ssize_t n, PyObject *names):
    cdef double now_s
    if n < 2 or <object>args[0] is None or not _only_context(names):
        return _long_way(CoreLoop.call_later, self, args, n, names)
    now_s = (<CoreLoop>self).clock() if (<CoreLoop>self).time_replaced else monotonic()
    return new_timer(<CoreLoop>self, now_s + _seconds(args[0]), args + 1, n - 1,
                     NULL if names == NULL else args[n], "call_later")


cdef object _call_at(PyObject *self, PyObject **args, Py_ssize_t n, PyObject *names):
    if n < 2 or <object>args[0] is None or not _only_context(names):
        return _long_way(CoreLoop.call_at, self, args, n, names)
    return new_timer(
        <CoreLoop>self, _seconds(args[0]), args + 1, n - 1,
        NULL if names == NULL else args[n], "call_at")


cdef object _create_task(PyObject *self, PyObject **args, Py_ssize_t n, PyObject *names):
    cdef CoreLoop loop = <CoreLoop>self
    cdef dict keywords
    cdef Py_ssize_t i
    if n != 1 or loop._task_factory is not None or loop._closed or loop.forked:
        return _long_way(CoreLoop.create_task, self, args, n, names)
    keywords = future_keywords(loop)
    if names != NULL:
        for i in range(PyTuple_GET_SIZE(<object>names)):
            name = <object>PyTuple_GET_ITEM(<object>names, i)
            if name is not _NAME and name is not _CONTEXT:
                return _long_way(CoreLoop.create_task, self, args, n, names)
            if <object>args[1 + i] is not None:
                if keywords is loop.future_keywords:
                    keywords = {"loop": loop}
                keywords[name] = <object>args[1 + i]
    return PyObject_Call(_tasks["Task"], (<object>args[0],), keywords)


cdef object _get_debug(PyObject *self, PyObject *_):
    return (<CoreLoop>self)._debug


cdef object _create_future(PyObject *self, PyObject *_):
    return new_future(<CoreLoop>self)


cdef enum:
    FORMS = 6

cdef PyMethodDef _forms[FORMS]
cdef list _docs = []  # what their ml_doc points into


cdef int _define(int i, const char *name, void *function, int flags) except -1:
    """One form, with the signature and the docstring of CoreLoop's method."""
    method = getattr(CoreLoop, name.decode())
    signature = str(inspect.signature(method)).replace("(self", "($self")
    _docs.append(f"{name.decode()}{signature}\n--\n\n{inspect.getdoc(method)}".encode())
    _forms[i].ml_name = name
    _forms[i].ml_meth = <PyCFunction>function
    _forms[i].ml_flags = flags
    _forms[i].ml_doc = <bytes>_docs[-1]
    return 0


_define(0, "call_soon", <void *>_call_soon, METH_FASTCALL | METH_KEYWORDS)
_define(1, "call_later", <void *>_call_later, METH_FASTCALL | METH_KEYWORDS)
_define(2, "call_at", <void *>_call_at, METH_FASTCALL | METH_KEYWORDS)
_define(3, "create_task", <void *>_create_task, METH_FASTCALL | METH_KEYWORDS)
_define(4, "get_debug", <void *>_get_debug, METH_NOARGS)
_define(5, "create_future", <void *>_create_future, METH_NOARGS)


def add_fast_forms(loop_class not None):
    """Give them to a subclass of CoreLoop in which all is defined now."""
    cdef int i
    for i in range(FORMS):
        form = PyDescr_NewMethod(<PyTypeObject *>loop_class, &_forms[i])
        setattr(loop_class, form.__name__, form)
