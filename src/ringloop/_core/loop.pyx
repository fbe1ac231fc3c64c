"""CoreLoop: the hot half of the event loop. The cold half is asyncio.BaseEventLoop.

One iteration (`run_once`):

    driver.run     flush writes, submit, wait, collect completions
    run_ready      what was ready before that
    run_dispatch   tell the users of the sinks that collected something
    run_timers     those that were due after driver.run
    run_ready      what all these scheduled; what that schedules waits for the next

The order in which things are told is asyncio's: what was scheduled first, then
I/O, then timers. (A task that awaited create_connection() has the transport in its
hands before the first data_received().) The second run_ready is ours: a task which
a completion wakes runs in the same iteration, so that its writes leave with the
next submission. After stop() it is left out: new callbacks wait for the next run.
"""
from cpython.contextvars cimport PyContext_CopyCurrent
from cpython.exc cimport PyErr_CheckSignals
from cpython.object cimport PyObject
from cpython.pythread cimport PyThread_get_thread_ident
from cpython.ref cimport Py_DECREF, Py_INCREF, Py_REFCNT
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memset

from ringloop._driver.base import FORKED

cdef extern from "Python.h":
    int PyObject_GenericSetAttr(object o, object name, PyObject *value) except -1
    PyObject **PySequence_Fast_ITEMS(object sequence)
    object PyObject_Call(object f, tuple args, dict keywords)

import asyncio
import logging
import sys
import time
from asyncio import events, format_helpers

from ringloop._core.handles cimport (
    MANY, Handle, TimerHandle, TimerHeap, set_call, weak_references,
)
from ringloop._driver.base cimport Driver, Sink, SinkQueue

cdef object _Future = asyncio.Future
cdef object _create_task = asyncio.BaseEventLoop.create_task

cdef object logger = logging.getLogger("asyncio")

# As in the standard library: no wait is longer, so that no timespec overflows.
cdef double MAX_WAIT_S = 24 * 3600.0


cdef dict future_keywords(CoreLoop loop):
    """{"loop": loop}, made once: the C classes only read it."""
    if loop.future_keywords is None:
        loop.future_keywords = {"loop": loop}
    return loop.future_keywords


cdef object new_future(CoreLoop loop):
    """asyncio.Future(loop=loop)."""
    return PyObject_Call(_Future, (), future_keywords(loop))


cdef class CoreLoop:
    def __cinit__(self, *args, **kwargs):
        self._closed = True  # until there is a driver to close
        self.timers = TimerHeap()
        self.time_replaced = type(self).time is not CoreLoop.time
        self.clock_resolution = time.get_clock_info("monotonic").resolution
        self.ready = <PyObject **>malloc(256 * sizeof(PyObject *))
        if self.ready == NULL:
            raise MemoryError
        self.ready_mask = 255

    def __dealloc__(self):
        self.clear_ready()
        free(self.ready)
        free(self.fd_owners)

    def _open(self, Driver driver not None):
        self.driver = driver

    @property
    def _driver_name(self):
        return self.driver.name

    def _live_operations(self):
        """How many operations the driver has in flight; for tests and diagnostics."""
        return self.driver.live

    # -- time ------------------------------------------------------------------------

    cdef double now(self) noexcept:
        return monotonic()

    def time(self):
        """The loop's clock: seconds since an arbitrary point, never going back.

        Timers go by it, so a subclass or a test may replace it.
        """
        return self.now()

    cdef double clock(self) except? -1:
        """What time() says."""
        if self.time_replaced:
            return self.time()
        return self.now()

    def __setattr__(self, name, value):
        PyObject_GenericSetAttr(self, name, <PyObject *>value)
        if name == "time" or name == "__class__":
            self.time_replaced = name == "time" or type(self).time is not CoreLoop.time

    def __delattr__(self, name):
        PyObject_GenericSetAttr(self, name, NULL)
        if name == "time":
            self.time_replaced = type(self).time is not CoreLoop.time

    # -- futures ---------------------------------------------------------------------

    def get_debug(self):
        """Whether the loop is in debug mode. Every future asks when it is made."""
        return self._debug

    def create_future(self):
        """An asyncio.Future of this loop."""
        return new_future(self)

    def create_task(self, coro, **options):
        """Run a coroutine concurrently: an asyncio.Task, or what the task factory makes."""
        return _create_task(self, coro, **options)

    # -- scheduling ------------------------------------------------------------------

    cdef int check_usable(self) except -1:
        if self._closed:
            raise RuntimeError("Event loop is closed")
        if self.forked:
            raise RuntimeError(FORKED)
        return 0

    def _check_closed(self):
        self.check_usable()

    cdef int push(self, Handle h) except -1:
        """Append to the ready queue. Runs no Python code, so any thread may, with the GIL."""
        cdef Py_ssize_t i, n
        cdef PyObject **items
        if self.ready_n > self.ready_mask:
            n = (self.ready_mask + 1) * 2
            items = <PyObject **>malloc(n * sizeof(PyObject *))
            if items == NULL:
                raise MemoryError
            for i in range(self.ready_n):
                items[i] = self.ready[(self.ready_head + i) & self.ready_mask]
            free(self.ready)
            self.ready = items
            self.ready_head = 0
            self.ready_mask = n - 1
        Py_INCREF(h)
        self.ready[(self.ready_head + self.ready_n) & self.ready_mask] = <PyObject *>h
        self.ready_n += 1
        rouse(self)
        return 0

    cdef Handle blank(self):
        """A handle to fill: one that ran and that nobody else had, or a new one."""
        cdef Handle h
        if self.nspare == 0:
            h = Handle.__new__(Handle)
        else:
            self.nspare -= 1
            h = <Handle>self.spare[self.nspare]
            Py_DECREF(h)  # the list's reference; `h` holds its own
        h._loop = self
        return h

    cdef int reuse(self, Handle h) noexcept:
        """Keep a handle to which only the caller refers, and nobody by a weak reference."""
        if h.origin is not None or weak_references(h) != NULL:
            return 0
        # Destructors may run here, and call us.
        h._callback = None
        h.args = None
        h._context = None
        h._loop = None
        h._cancelled = False
        if self.nspare < SPARE and Py_REFCNT(h) == 1:
            Py_INCREF(h)
            self.spare[self.nspare] = <PyObject *>h
            self.nspare += 1
        return 0

    cdef Handle schedule(self, object callback, tuple args, object context):
        """call_soon() for our own modules."""
        cdef Handle h
        if self._closed or self.forked:
            self.check_usable()
        h = self.blank()
        h._callback = callback
        h.args = args
        h.nargs = MANY
        h._context = PyContext_CopyCurrent() if context is None else context
        self.push(h)
        return h

    cdef Handle soon(self, PyObject **call, Py_ssize_t n, PyObject *context, str method):
        """call_soon() and its kin: `call` is the callback and its arguments, `n` in all."""
        cdef Handle h
        if self._closed or self.forked:
            self.check_usable()
        h = self.blank()
        set_call(h, call, n)
        if context == NULL or <object>context is None:
            h._context = PyContext_CopyCurrent()
        else:
            h._context = <object>context
        if self._debug:
            self.check_handle(h, method)
        self.push(h)
        return h

    # Python code and asyncio's C code mostly get the fast forms of these, in fast.pyx.

    def call_soon(self, callback, *args, context=None):
        """Arrange for `callback(*args)` to be called in the next iteration.

        Callbacks run in the order they were registered, each once, in `context`
        (default: a copy of the current one). Returns an asyncio.Handle.
        """
        cdef tuple call = (callback, *args)
        return self.soon(PySequence_Fast_ITEMS(call), len(call), <PyObject *>context,
                         "call_soon")

    def call_soon_threadsafe(self, callback, *args, context=None):
        """Like call_soon(), from any thread."""
        cdef tuple call = (callback, *args)
        return self.soon(PySequence_Fast_ITEMS(call), len(call), <PyObject *>context,
                         "call_soon_threadsafe")

    def call_later(self, delay, callback, *args, context=None):
        """Arrange for `callback(*args)` to be called after `delay` seconds.

        Returns an asyncio.TimerHandle.
        """
        cdef tuple call = (callback, *args)
        if delay is None:
            raise TypeError("delay must not be None")
        return new_timer(self, self.clock() + <double>delay, PySequence_Fast_ITEMS(call),
                         len(call), <PyObject *>context, "call_later")

    def call_at(self, when, callback, *args, context=None):
        """Like call_later(), at an absolute time of the loop's clock."""
        cdef tuple call = (callback, *args)
        if when is None:
            raise TypeError("when cannot be None")
        return new_timer(self, when, PySequence_Fast_ITEMS(call), len(call), <PyObject *>context,
                         "call_at")

    cdef int check_handle(self, Handle h, str method) except -1:
        """In debug mode, before it is scheduled."""
        if method != "call_soon_threadsafe":
            self._check_thread()
        self._check_callback(h._callback, method)
        h._source_traceback = format_helpers.extract_stack(sys._getframe(0))
        return 0

    cdef TimerHandle add_timer(self, double when, object callback, object context):
        """call_at() for our own modules."""
        cdef PyObject *call = <PyObject *>callback
        return new_timer(self, when, &call, 1, <PyObject *>context, "call_at")

    def _add_callback(self, handle):
        # The standard library's signal code brings an asyncio.Handle of its own.
        if not handle._cancelled:
            self.schedule(handle._run, (), None)

    def _add_callback_signalsafe(self, handle):
        self._add_callback(handle)
        self._write_to_self()

    def _write_to_self(self):
        self.driver.wake()

    # -- running ---------------------------------------------------------------------

    def run_forever(self):
        """Run until stop() is called."""
        self.check_usable()
        self._check_running()
        self._set_coroutine_origin_tracking(self._debug)
        hooks = sys.get_asyncgen_hooks()
        try:
            self._thread_id = PyThread_get_thread_ident()
            sys.set_asyncgen_hooks(firstiter=self._asyncgen_firstiter_hook,
                                   finalizer=self._asyncgen_finalizer_hook)
            events._set_running_loop(self)
            self._enter_signals()
            self.driver.attach()
            try:
                while True:
                    self.run_once()
                    if self._stopping:
                        break
            finally:
                # What was written last leaves now, not when the loop runs again.
                if not self.forked:
                    self.driver.submit()
        finally:
            self._stopping = False
            self._thread_id = None
            events._set_running_loop(None)
            self._set_coroutine_origin_tracking(False)
            sys.set_asyncgen_hooks(*hooks)
            self._exit_signals()

    def stop(self):
        """Stop after the current iteration; callbacks already scheduled still run."""
        self._stopping = True

    def is_closed(self):
        return self._closed

    def is_running(self):
        return self._thread_id is not None

    cdef int run_once(self) except -1:
        cdef double timeout = -1
        cdef double due_s = 0
        cdef unsigned long long newest = self.timers.seq
        cdef Py_ssize_t n = self.ready_n
        if n or self._stopping or self.driver.dispatch_queue.n:
            timeout = 0
        elif self.timers.pending():
            # A replaced time() is Python code: other threads may have their turn in it.
            self.driver.sleeping = True
            timeout = min(max(0.0, self.timers.first() - self.clock()), MAX_WAIT_S)
        self.driver.run(timeout)
        # Which timers run is decided here: what becomes due while callbacks run comes
        # after all that these schedule, as in the standard library.
        if self.timers.n:
            due_s = self.clock() + self.clock_resolution
        if timeout != 0:
            PyErr_CheckSignals()  # the Python handler of a signal that ended the wait
            if self.forked:
                self.check_usable()
        if n:
            self.run_ready(n)
        if self.driver.dispatch_queue.n:
            self.run_dispatch()
        if due_s:
            self.run_timers(due_s, newest)
        # What that scheduled runs in an iteration that asks the driver nothing. (Who
        # replaced time() moves it by hand, and then counts asyncio's iterations.)
        n = self.ready_n
        if n and not self._stopping and not self.time_replaced:
            newest = self.timers.seq
            due_s = self.clock() + self.clock_resolution if self.timers.n else 0
            self.run_ready(n)
            if due_s:
                self.run_timers(due_s, newest)
        return 0

    cdef int run_timers(self, double due_s, unsigned long long newest) except -1:
        """Run what was due before `due_s`, up to the timer that was added as `newest`."""
        while (self.timers.pending() and self.timers.first() < due_s
               and self.timers.first_seq() <= newest):
            self.run_handle(self.timers.pop())
            if self.forked:
                self.check_usable()
        return 0

    cdef int run_handle(self, Handle h) except -1:
        if self._debug:
            return self.run_timed(h, None)
        return h.run()

    cdef int run_dispatch(self) except -1:
        cdef SinkQueue *q = &self.driver.dispatch_queue
        cdef Py_ssize_t n = q.n - q.head
        cdef Sink sink
        while n:
            n -= 1
            sink = self.driver.next_dispatch()
            if self._debug:
                self.run_timed(None, sink)
            else:
                sink.dispatch()
            if self.forked:
                self.check_usable()
        self.driver.end_dispatch()
        return 0

    cdef int run_ready(self, Py_ssize_t n) except -1:
        cdef Handle h
        while n:
            n -= 1
            h = <Handle>self.ready[self.ready_head]
            Py_DECREF(h)  # the queue's reference; `h` holds its own
            self.ready_head = (self.ready_head + 1) & self.ready_mask
            self.ready_n -= 1
            if not h._cancelled:
                self.run_handle(h)
                if self.forked:
                    self.check_usable()  # in the child: what follows is the parent's
            if Py_REFCNT(h) == 1:
                self.reuse(h)
        return 0

    cdef int run_timed(self, Handle h, Sink sink) except -1:
        """Debug mode: note who runs, and log whoever takes too long."""
        cdef double start = self.now()
        cdef double took
        self._current_handle = h
        try:
            if h is not None:
                h.run()
            else:
                sink.dispatch()
        finally:
            self._current_handle = None
        took = self.now() - start
        if took >= self.slow_callback_duration:
            what = asyncio.base_events._format_handle(h) if h is not None else repr(sink)
            logger.warning("Executing %s took %.3f seconds", what, took)
        return 0

    # -- who has which fd ------------------------------------------------------------

    cdef int claim_fd(self, int fd, PyObject *owner) except -1:
        """Note that a transport has `fd`; the reference is borrowed, so unclaim it."""
        cdef int n
        cdef PyObject **p
        if fd >= self.nfd_owners:
            n = max(64, self.nfd_owners * 2, fd + 1)
            p = <PyObject **>realloc(self.fd_owners, n * sizeof(PyObject *))
            if p == NULL:
                raise MemoryError
            memset(p + self.nfd_owners, 0, (n - self.nfd_owners) * sizeof(PyObject *))
            self.fd_owners = p
            self.nfd_owners = n
        self.fd_owners[fd] = owner
        return 0

    cdef void unclaim_fd(self, int fd, PyObject *owner) noexcept:
        if fd < self.nfd_owners and self.fd_owners[fd] == owner:
            self.fd_owners[fd] = NULL

    def _ensure_fd_no_transport(self, fd):
        """RuntimeError if a transport reads and writes this fd (or socket) already."""
        cdef int n
        if not isinstance(fd, int):
            try:
                n = int(fd.fileno())
            except (AttributeError, TypeError, ValueError):
                raise ValueError(f"Invalid file object: {fd!r}") from None
        else:
            n = fd
        self.refuse_transport(n)

    cdef int refuse_transport(self, int fd) except -1:
        if 0 <= fd < self.nfd_owners and self.fd_owners[fd] != NULL:
            transport = <object>self.fd_owners[fd]
            if not transport.is_closing():
                raise RuntimeError(
                    f"File descriptor {fd!r} is used by transport {transport!r}")
        return 0

    # -- the end ---------------------------------------------------------------------

    cdef int clear_ready(self) except -1:
        cdef Handle h
        while self.ready_n:
            h = <Handle>self.ready[self.ready_head]
            self.ready_head = (self.ready_head + 1) & self.ready_mask
            self.ready_n -= 1
            Py_DECREF(h)
        while self.nspare:
            self.nspare -= 1
            h = <Handle>self.spare[self.nspare]
            Py_DECREF(h)
        return 0

    def _close_core(self):
        self.driver.close()
        self.timers.clear()
        self.clear_ready()
        self.future_keywords = None

    def _after_fork_in_child(self):
        """Called in a forked child: this loop stays the parent's."""
        if not self._closed:
            self.forked = True
            self._thread_id = None
            self.driver.abandon()
