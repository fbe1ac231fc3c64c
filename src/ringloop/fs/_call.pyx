"""Awaitables made by hand: an operation that the caches can answer never suspends.

`await f.read(100)` sends once to a `Call`. It tries; where the page cache or a buffer
has the answer, that send returns it, with no coroutine and no future. Only what would
block continues in a coroutine, or in a future's iterator.

**Turns.** A task whose calls never suspend would starve all others, so inline work is
counted in units of about 2 us, and a task that has used up its turn yields to the loop
once. A turn's length is what keeps an iteration below a millisecond: the units of
an iteration, divided by the tasks that yielded in the last one; none gets more than half
of what the iteration has left. That an iteration has passed is seen by whoever resumes
first. What the task itself does between two calls is not counted, so the clock is looked
at every few calls: the second look ends a turn that has lasted longer than its units stand
for. (The coarse clock moves every 4 ms on many machines, which makes turns of 4 to 8 ms.)
A task that waited for something else meanwhile yields then as well, for nothing: to know
that it waited would cost more than it saves.

A timer that becomes due while callbacks run waits for two iterations' inline work: the
batch that runs, and the one behind which the task that it wakes stands in line.
"""
from cpython.object cimport PyObject
from cpython.ref cimport Py_INCREF
from libc.stdint cimport int64_t, uint64_t

import warnings

from ringloop._core.sendable cimport (
    PYGEN_NEXT, PYGEN_RETURN, PyIter_Send, rl_make_sendable, send_or_stop,
)
from ringloop._sys.posix cimport CLOCK_MONOTONIC, clock_gettime, timespec

cdef enum:
    ROUND_UNITS = 128      # inline work of all tasks in an iteration
    MAX_TURN = 64
    UNIT_SHIFT = 14        # a unit is a call, or 16 KiB copied
    UNIT_NS = 2000
    LOOK_EVERY = 4         # calls between two looks at the clock

cdef Py_ssize_t _spent = 0       # units of the running turn
cdef Py_ssize_t _turn = MAX_TURN
cdef Py_ssize_t _yields = 0      # in this round
cdef Py_ssize_t _used = 0        # units of the turns before, in this round
cdef unsigned int _calls = 0
cdef int64_t _began_ns = 0       # when the running turn was first looked at
cdef uint64_t _round = 0

cdef class _Pending:
    pass

cdef object PENDING = _Pending()
cdef object BEHIND = _Pending()


cdef void charge(Py_ssize_t nbytes) noexcept:
    """Note inline work: one call that moved so many bytes."""
    global _spent
    _spent += 1 + (nbytes >> UNIT_SHIFT)


cdef void _begin_round() noexcept:
    global _round, _turn, _used, _yields
    _round += 1
    _turn = min(max(ROUND_UNITS // max(_yields, 1), 1), MAX_TURN)
    _yields = _used = 0


cdef void _end_turn() noexcept:
    global _began_ns, _spent, _used
    _used += _spent
    _spent = _began_ns = 0


cdef bint _is_over() noexcept:
    """Whether the running turn has had its time."""
    global _began_ns, _calls
    cdef timespec now
    cdef int64_t now_ns
    _calls += 1
    if _calls % LOOK_EVERY == 0:
        clock_gettime(CLOCK_MONOTONIC, &now)
        now_ns = <int64_t>now.tv_sec * 1000000000 + now.tv_nsec
        if _began_ns == 0:
            _began_ns = now_ns
        return now_ns - _began_ns >= _turn * UNIT_NS
    return False


cdef int _yield(Call call, PyObject **result) noexcept:
    global _turn, _yields
    _end_turn()
    _yields += 1
    _turn = max(min(_turn, (ROUND_UNITS - _used) >> 1), 1)
    call.round = _round
    call.state = YIELDED
    call.yields()
    Py_INCREF(None)
    result[0] = <PyObject *>None
    return PYGEN_NEXT


cdef int _send(PyObject *p, PyObject *arg, PyObject **result) except -1:
    cdef Call self = <Call>p
    cdef object value
    cdef int r
    if self.state == NEW or self.state == YIELDED:
        if self.state == YIELDED:
            if self.round == _round:
                _begin_round()
            self.resumed()
        elif (_spent >= _turn or _is_over()) and not self.urgent:
            return _yield(self, result)
        self.state = OVER
        value = self.attempt()
        if value is BEHIND:
            return _yield(self, result)
        if value is not PENDING:
            Py_INCREF(value)
            result[0] = <PyObject *>value
            return PYGEN_RETURN
        self.inner = self.slow()
        self.state = SLOW
        _end_turn()  # others run now
    elif self.state == OVER:
        raise RuntimeError("cannot reuse already awaited coroutine")
    try:
        r = PyIter_Send(<PyObject *>self.inner, arg, result)
    except BaseException:
        self.state = OVER
        self.inner = None
        raise
    if r != PYGEN_NEXT:
        self.state = OVER
        self.inner = None
    return r


cdef class Call:
    """A coroutine that tries at once."""

    cdef object attempt(self):
        """The result, or PENDING if that would block. May be called again.

        BEHIND if another call, which has yielded, comes first: then this one yields, too.
        """
        raise NotImplementedError

    cdef object slow(self):
        """A coroutine, or another iterator, that finishes what attempt() could not."""
        raise NotImplementedError

    cdef void yields(self) noexcept:
        """Told when it yields before it tries."""

    cdef void resumed(self) noexcept:
        """Told when it goes on, or is given up instead."""

    cdef int given_up(self) except -1:
        """Told when throw() or close() ended what slow() gave.

        Failures come by throw(), too, so whatever was begun may be over already.
        """
        return 0

    def __await__(self):
        return self

    def __iter__(self):
        return self

    def __next__(self):
        return send_or_stop(self, _send, None)

    def send(self, value):
        return send_or_stop(self, _send, value)

    def throw(self, kind, value=None, traceback=None):
        if self.state == SLOW:
            try:
                if value is None and traceback is None:
                    return self.inner.throw(kind)
                return self.inner.throw(kind, value, traceback)
            except BaseException:
                self.state = OVER
                self.inner = None
                self.given_up()
                raise
        if self.state == YIELDED:
            self.resumed()
        self.state = OVER
        if value is None:
            value = kind if isinstance(kind, BaseException) else kind()
        raise value.with_traceback(traceback) if traceback is not None else value

    def close(self):
        inner = self.inner
        if self.state == YIELDED:
            self.resumed()
        self.state = OVER
        self.inner = None
        if inner is not None:
            try:
                self.given_up()
            finally:
                inner.close()

    def __dealloc__(self):
        if self.state == NEW:
            warnings.warn(f"coroutine '{type(self).__name__}' was never awaited", RuntimeWarning)


cdef int make_sendable(object type) except -1:
    """Every concrete class of calls needs it: these slots are not inherited."""
    return rl_make_sendable(type, _send)
