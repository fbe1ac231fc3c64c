cimport cython
from cpython.object cimport PyObject

cdef extern from "Python.h":
    ctypedef struct WithWeakrefs "PyTypeObject":
        Py_ssize_t tp_weaklistoffset
    WithWeakrefs *type_of "Py_TYPE" (object o)


cdef enum:
    MANY = -1


cdef class Handle:
    cdef readonly object _loop
    cdef readonly object _callback
    cdef object args              # of the callback: the one, or a tuple of all
    cdef int nargs                # 0, 1, or MANY: a tuple
    cdef readonly bint _cancelled
    cdef readonly object _context
    cdef object origin            # in debug mode: (traceback of its making, repr or None)
    # A timer's, here so that both kinds are of one size: then one free list serves both.
    cdef int index                # in the heap; -1: not there
    cdef double when_s
    cdef PyObject *heap           # borrowed; only while it is there
    cdef object __weakref__

    cdef int run(self) except -1
    cdef int forget(self) except -1
    cdef int failed(self) except -1
    cdef int report(self, object exc) except -1


cdef inline PyObject *weak_references(Handle h) noexcept:
    return (<PyObject **>(<char *><PyObject *>h + type_of(h).tp_weaklistoffset))[0]


cdef Handle new_handle(object loop, object callback, tuple args, object context)


cdef tuple tuple_of(PyObject **items, Py_ssize_t n)


cdef inline int set_call(Handle h, PyObject **call, Py_ssize_t n) except -1:
    """Callback and arguments, `n` in all. Nearly all have one argument at most: no tuple."""
    h._callback = <object>call[0]
    h.nargs = 0
    if n == 2:
        h.args = <object>call[1]
        h.nargs = 1
    elif n > 2:
        h.args = tuple_of(call + 1, n - 1)
        h.nargs = MANY
    return 0


cdef class TimerHandle(Handle):
    pass


cdef TimerHandle blank_timer()


cdef inline int raise_pending() except -1:
    """Turn the C error indicator, which a raw call left set, into an exception."""
    return -1


@cython.final
cdef class TimerHeap:
    cdef TimerNode *nodes
    cdef int n                    # of the nodes, cancelled ones included
    cdef int dead                 # how many of them are cancelled
    cdef int cap
    cdef unsigned long long seq

    cdef int push(self, TimerHandle h) except -1
    cdef int grow(self) except -1
    cdef bint pending(self) noexcept
    cdef double first(self) noexcept
    cdef unsigned long long first_seq(self) noexcept
    cdef TimerHandle pop(self)
    cdef void remove(self, TimerHandle h) noexcept
    cdef void clear(self) noexcept
    cdef void drop_first(self) noexcept
    cdef void compact(self) noexcept
    cdef void place(self, int i, TimerNode *node) noexcept
    cdef void sift_up(self, int i, TimerNode *node) noexcept
    cdef void sift_down(self, int i, TimerNode *node) noexcept


ctypedef struct TimerNode:
    double when_s
    unsigned long long seq        # equal times run in the order they were asked for
    void *handle                  # owned; NULL: cancelled
