from cpython.contextvars cimport PyContext_CopyCurrent
from cpython.object cimport PyObject

from ringloop._core.handles cimport Handle, TimerHandle, TimerHeap, blank_timer, set_call
from ringloop._driver.base cimport Driver, Sink
from ringloop._sys.posix cimport CLOCK_MONOTONIC, clock_gettime, timespec


cdef enum:
    SPARE = 64


cdef class CoreLoop:
    # What asyncio.BaseEventLoop calls by these names, where C can see it.
    cdef public bint _closed
    cdef public bint _stopping
    cdef public bint _debug
    cdef public object _thread_id
    cdef public object _current_handle
    cdef public double slow_callback_duration
    cdef public object _task_factory

    cdef Driver driver
    cdef bint forked
    cdef double clock_resolution
    cdef bint time_replaced      # by a subclass, or on the instance
    cdef TimerHeap timers
    cdef PyObject **ready        # a ring of owned Handles
    cdef Py_ssize_t ready_head, ready_n, ready_mask
    cdef PyObject *spare[SPARE]   # owned Handles that ran, for the next ones
    cdef Py_ssize_t nspare
    cdef dict future_keywords

    cdef PyObject **fd_owners    # by fd: the transport that has it, borrowed
    cdef int nfd_owners

    cdef int claim_fd(self, int fd, PyObject *owner) except -1
    cdef int refuse_transport(self, int fd) except -1
    cdef void unclaim_fd(self, int fd, PyObject *owner) noexcept
    cdef double now(self) noexcept
    cdef double clock(self) except? -1
    cdef int check_usable(self) except -1
    cdef int push(self, Handle h) except -1
    cdef Handle blank(self)
    cdef int reuse(self, Handle h) noexcept
    cdef Handle schedule(self, object callback, tuple args, object context)
    cdef Handle soon(self, PyObject **call, Py_ssize_t n, PyObject *context, str method)
    cdef int check_handle(self, Handle h, str method) except -1
    cdef TimerHandle add_timer(self, double when, object callback, object context)
    cdef int clear_ready(self) except -1
    cdef int run_once(self) except -1
    cdef int run_dispatch(self) except -1
    cdef int run_ready(self, Py_ssize_t n) except -1
    cdef int run_timers(self, double due_s, unsigned long long newest) except -1
    cdef int run_handle(self, Handle h) except -1
    cdef int run_timed(self, Handle h, Sink sink) except -1


cdef object new_future(CoreLoop loop)
cdef dict future_keywords(CoreLoop loop)


cdef inline double monotonic() noexcept:
    cdef timespec ts
    clock_gettime(CLOCK_MONOTONIC, &ts)
    return ts.tv_sec + ts.tv_nsec * 1e-9


cdef inline void rouse(CoreLoop loop) noexcept:
    """End a wait that the loop began, or is about to begin, before something was scheduled.

    That was another thread or, in the loop's own, a destructor inside driver.run(). No
    Python code runs between the loop's look at its queues and the setting of the flag.
    """
    if loop.driver.sleeping:
        loop.driver.sleeping = False  # one write ends the wait
        loop.driver.wake()


cdef inline TimerHandle new_timer(CoreLoop loop, double when_s, PyObject **call, Py_ssize_t n,
                                  PyObject *context, str method):
    """call_at(): `call` is the callback and its arguments, `n` in all."""
    cdef TimerHandle h
    if loop._closed or loop.forked:
        loop.check_usable()
    h = blank_timer()
    h._loop = loop
    set_call(h, call, n)
    if context == NULL or <object>context is None:
        h._context = PyContext_CopyCurrent()
    else:
        h._context = <object>context
    h.when_s = when_s
    h.index = -1
    if loop._debug:
        loop.check_handle(h, method)
    loop.timers.push(h)
    rouse(loop)
    return h
