"""What call_soon and call_later give back: handles, and the heap of the timed ones.

asyncio.Handle is a Python class with slots, which no C type can extend; ours
report it as their `__class__`, so that isinstance() holds.
"""
cimport cython
from cpython.contextvars cimport PyContext_CopyCurrent, PyContext_Exit
from cpython.object cimport PyObject, PyTypeObject, destructor
from cpython.ref cimport Py_DECREF, Py_INCREF
from cpython.tuple cimport PyTuple_New, PyTuple_SET_ITEM
from libc.stdlib cimport free, realloc

import asyncio
import inspect
from asyncio import format_helpers

cdef extern from "Python.h":
    const size_t PY_VECTORCALL_ARGUMENTS_OFFSET
    int PyContext_EnterRaw "PyContext_Enter" (PyObject *context)
    PyObject *PyObject_CallRaw "PyObject_Call" (PyObject *f, PyObject *args, PyObject *kw)
    PyObject *PyObject_VectorcallRaw "PyObject_Vectorcall" (
        PyObject *f, PyObject **args, size_t nargsf, PyObject *names)
    PyTypeObject *type_of_raw "Py_TYPE" (PyObject *o)
    void PyObject_GC_Track(PyObject *o)
    void PyObject_GC_UnTrack(PyObject *o)
    void _Py_NewReference(PyObject *o)
    TimerHandle owned "(void *)" (PyObject *o)  # the reference is the caller's now

cdef object _Handle = asyncio.Handle
cdef object _TimerHandle = asyncio.TimerHandle

# 3.13 shows a callback's arguments in debug mode only.
cdef bint _FORMAT_HAS_DEBUG = "debug" in inspect.signature(
    format_helpers._format_callback_source).parameters


cdef enum:
    MAX_TIMERS = 1 << 29  # indexes are ints, and twice one plus two must be one, too
    FEW_DEAD = 64  # cancelled timers that are not worth a clean-up
    SPARE = 256  # freed timers that are kept for the next ones


@cython.freelist(256)
cdef class Handle:
    """A callback with its arguments and context, as `loop.call_soon` gives it."""

    @property
    def __class__(self):
        return _Handle

    @property
    def _source_traceback(self):
        return None if self.origin is None else self.origin[0]

    @_source_traceback.setter
    def _source_traceback(self, traceback):
        self.origin = (traceback, None)

    @property
    def _args(self):
        if self._cancelled:
            return None
        return () if self.nargs == 0 else (self.args,) if self.nargs == 1 else self.args

    cdef int run(self) except -1:
        """Call it. Only SystemExit and KeyboardInterrupt come out."""
        cdef PyObject *result
        cdef PyObject *arg[2]
        # These outlive a cancel() from inside the callback.
        cdef object context = self._context
        cdef object callback = self._callback
        cdef object args = self.args
        if PyContext_EnterRaw(<PyObject *>context) < 0:
            return self.failed()  # somebody runs in it already
        arg[1] = <PyObject *>args
        if self.nargs == MANY:
            result = PyObject_CallRaw(<PyObject *>callback, <PyObject *>args, NULL)
        else:
            result = PyObject_VectorcallRaw(
                <PyObject *>callback, arg + 1, self.nargs | PY_VECTORCALL_ARGUMENTS_OFFSET, NULL)
        if result != NULL:
            PyContext_Exit(context)
            Py_DECREF(<object>result)
            return 0
        # Leaves the pending error alone, as contextvars' own run() relies on.
        PyContext_Exit(context)
        return self.failed()

    cdef int failed(self) except -1:
        try:
            raise_pending()
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self.report(exc)
        return 0

    cdef int report(self, object exc) except -1:
        kwargs = {"debug": self._loop.get_debug()} if _FORMAT_HAS_DEBUG else {}
        callback = format_helpers._format_callback_source(self._callback, self._args, **kwargs)
        context = {"message": f"Exception in callback {callback}", "exception": exc,
                   "handle": self}
        if self._source_traceback:
            context["source_traceback"] = self._source_traceback
        self._loop.call_exception_handler(context)
        return 0

    def _run(self):
        self.run()

    @cython.binding(False)
    def cancel(self):
        """Cancel the callback; if it has run or was cancelled, do nothing."""
        self.forget()

    cdef int forget(self) except -1:
        if self._cancelled:
            return 0
        self._cancelled = True
        if self.origin is not None:  # the arguments will be gone
            self.origin = (self._source_traceback, repr(self))
        self._callback = None
        self.args = None
        return 0

    def cancelled(self):
        """True if the callback was cancelled."""
        return self._cancelled

    def get_context(self):
        """The contextvars.Context that the callback runs in."""
        return self._context

    def _repr_info(self):
        return _Handle._repr_info(self)

    def __repr__(self):
        if self.origin is not None and self.origin[1] is not None:
            return self.origin[1]
        return f"<{' '.join(self._repr_info())}>"


cdef Handle new_handle(object loop, object callback, tuple args, object context):
    cdef Handle h = Handle.__new__(Handle)
    h._loop = loop
    h._callback = callback
    h.args = args
    h.nargs = MANY
    h._context = PyContext_CopyCurrent() if context is None else context
    return h


cdef tuple tuple_of(PyObject **items, Py_ssize_t n):
    cdef tuple result = PyTuple_New(n)
    cdef Py_ssize_t i
    for i in range(n):
        Py_INCREF(<object>items[i])
        PyTuple_SET_ITEM(result, i, <object>items[i])
    return result


cdef class TimerHandle(Handle):
    """A Handle with a time, as `loop.call_later` and `loop.call_at` give it."""

    @property
    def __class__(self):
        return _TimerHandle

    @cython.binding(False)
    @cython.always_allow_keywords(False)
    def cancel(self):
        """Cancel the callback; if it has run or was cancelled, do nothing."""
        if self.index >= 0 and self.heap != NULL:
            (<TimerHeap>self.heap).remove(self)
        if self.origin is not None:
            self.forget()
        elif not self._cancelled:
            self._cancelled = True
            self._callback = None
            self.args = None

    def when(self):
        """The time, on the loop's clock, in seconds."""
        return self.when_s

    @property
    def _when(self):
        return self.when_s

    @property
    def _scheduled(self):
        return self.index >= 0

    def _repr_info(self):
        info = Handle._repr_info(self)
        info.insert(2 if self._cancelled else 1, f"when={self.when_s}")
        return info

    def __hash__(self):
        return hash(self.when_s)

    def __eq__(self, other):
        if not isinstance(other, _TimerHandle):
            return NotImplemented
        return (self.when_s == other._when and self._callback == other._callback
                and self._args == other._args and self._cancelled == other._cancelled)

    def __lt__(self, other):
        return self.when_s < other.when() if isinstance(other, _TimerHandle) else NotImplemented

    def __le__(self, other):
        if not isinstance(other, _TimerHandle):
            return NotImplemented
        return self.when_s < other.when() or self.__eq__(other)

    def __gt__(self, other):
        return self.when_s > other.when() if isinstance(other, _TimerHandle) else NotImplemented

    def __ge__(self, other):
        if not isinstance(other, _TimerHandle):
            return NotImplemented
        return self.when_s > other.when() or self.__eq__(other)


# Freed timers, whole but for a reference to each. Cython's own free list would have every
# field of them made anew.
cdef PyObject *_spare[SPARE]
cdef int _nspare = 0


cdef TimerHandle blank_timer():
    """A timer to fill, of no heap: one that was freed, or a new one."""
    global _nspare
    cdef PyObject *o
    if _nspare == 0:
        return TimerHandle.__new__(TimerHandle)
    _nspare -= 1
    o = _spare[_nspare]
    _Py_NewReference(o)
    PyObject_GC_Track(o)
    return owned(o)


cdef void _free_timer(PyObject *o) noexcept:
    """tp_dealloc. The collector must not know what is spare: it may be at work on it."""
    global _nspare
    if (type_of_raw(o) != <PyTypeObject *>TimerHandle or (<Handle>o).origin is not None
            or weak_references(<Handle>o) != NULL):
        _free_whole(o)
        return
    PyObject_GC_UnTrack(o)
    # Destructors may run here, and free others.
    if (<Handle>o)._cancelled:
        (<Handle>o)._cancelled = False
    else:
        (<Handle>o)._callback = None
        (<Handle>o).args = None
    (<Handle>o)._context = None
    (<Handle>o)._loop = None
    if _nspare < SPARE:
        _spare[_nspare] = o
        _nspare += 1
    else:
        _free_whole(o)


cdef destructor _free_whole = (<PyTypeObject *>TimerHandle).tp_dealloc
(<PyTypeObject *>TimerHandle).tp_dealloc = _free_timer


@cython.final
cdef class TimerHeap:
    """A binary heap of timers in which each knows its place.

    A cancelled timer gives up its references at once; its node stays until more than half
    of all are such, and then they leave together. Programs set a timeout for each request
    and cancel nearly all of them: taking each out of the heap costs three times as much.
    """

    def __dealloc__(self):
        self.clear()

    cdef void clear(self) noexcept:
        cdef TimerHandle h
        while self.n:
            self.n -= 1
            if self.nodes[self.n].handle == NULL:
                continue
            h = <TimerHandle>self.nodes[self.n].handle
            Py_DECREF(h)
            h.index = -1
        free(self.nodes)
        self.nodes = NULL
        self.cap = self.dead = 0

    cdef int push(self, TimerHandle h) except -1:
        cdef TimerNode node
        cdef int i = self.n
        if i == self.cap:
            self.grow()
        self.n = i + 1
        self.seq += 1
        node.when_s = h.when_s
        node.seq = self.seq
        node.handle = <void *>h
        Py_INCREF(h)
        h.heap = <PyObject *>self
        if i == 0 or node.when_s >= self.nodes[(i - 1) >> 1].when_s:
            self.nodes[i] = node  # mostly: timeouts are of one length
            h.index = i
        else:
            self.sift_up(i, &node)
        return 0

    cdef int grow(self) except -1:
        cdef TimerNode *p
        cdef int cap
        if self.cap > MAX_TIMERS // 2:
            raise MemoryError
        cap = max(64, self.cap * 2)
        p = <TimerNode *>realloc(self.nodes, cap * sizeof(TimerNode))
        if p == NULL:
            raise MemoryError
        self.nodes = p
        self.cap = cap
        return 0

    cdef bint pending(self) noexcept:
        """Is there a timer? Drops cancelled ones before the first."""
        while self.n and self.nodes[0].handle == NULL:
            self.dead -= 1
            self.drop_first()
        return self.n != 0

    # The three that follow: only after pending() said yes.

    cdef double first(self) noexcept:
        """When the next timer is due."""
        return self.nodes[0].when_s

    cdef unsigned long long first_seq(self) noexcept:
        return self.nodes[0].seq

    cdef TimerHandle pop(self):
        cdef TimerHandle h = <TimerHandle>self.nodes[0].handle
        Py_DECREF(h)  # the heap's reference; `h` holds its own
        h.index = -1
        self.drop_first()
        return h

    cdef void remove(self, TimerHandle h) noexcept:
        """Only what is in the heap."""
        self.nodes[h.index].handle = NULL
        self.dead += 1
        h.index = -1
        Py_DECREF(h)  # the heap's reference; the caller holds its own
        if self.dead == self.n:
            self.n = self.dead = 0
        elif self.dead > FEW_DEAD and self.dead > self.n >> 1:
            self.compact()

    cdef void drop_first(self) noexcept:
        self.n -= 1
        if self.n:
            self.sift_down(0, &self.nodes[self.n])

    cdef void compact(self) noexcept:
        """Take out all that is cancelled, and make a heap of the rest."""
        cdef int i
        cdef int n = 0
        for i in range(self.n):
            if self.nodes[i].handle != NULL:
                self.place(n, &self.nodes[i])
                n += 1
        self.n = n
        self.dead = 0
        for i in range((n >> 1) - 1, -1, -1):
            self.sift_down(i, &self.nodes[i])

    cdef inline void place(self, int i, TimerNode *node) noexcept:
        self.nodes[i] = node[0]
        if node.handle != NULL:
            (<TimerHandle><PyObject *>node.handle).index = i

    cdef inline void sift_up(self, int i, TimerNode *node) noexcept:
        """Put `node`, which is not in the heap, into the hole at `i` or above."""
        cdef int j
        while i > 0:
            j = (i - 1) >> 1
            if not _before(node, &self.nodes[j]):
                break
            self.place(i, &self.nodes[j])
            i = j
        self.place(i, node)

    cdef void sift_down(self, int i, TimerNode *of) noexcept:
        """Put a node into the hole at `i` or below."""
        cdef int j
        cdef TimerNode *a = self.nodes
        cdef TimerNode node = of[0]
        while True:
            j = 2 * i + 1
            if j >= self.n:
                break
            if j + 1 < self.n and _before(&a[j + 1], &a[j]):
                j += 1
            if not _before(&a[j], &node):
                break
            self.place(i, &a[j])
            i = j
        self.place(i, &node)


cdef inline bint _before(TimerNode *a, TimerNode *b) noexcept:
    return a.when_s < b.when_s or (a.when_s == b.when_s and a.seq < b.seq)
