"""The compiled half of StreamReader: its buffer, and the steps of its reads.

A read is a plain `async def` (`classes.py`) around a step from here, which gives the
bytes or, while there is too little, what to await. (Measured: a coroutine made by hand,
which ends by raising StopIteration, took 250 ns where a generator that the interpreter
runs itself took 80. A future of our own in the place of asyncio.Future gained nothing:
what it saves, tasks spend on futures they do not know.)

What is unread is `store` from `pos` on. While it fits into one piece, `store` is the
very bytes that the transport delivered: a read of all of it copies nothing. When more
comes before that is read, it becomes a bytearray of ours, whose front is cut off only
once half of it was read. Whoever asks for `_buffer`, as some programs do, gets a
bytearray that is the buffer from then on: `exposed`.

A read that waits says how many bytes it wants, and is woken once, when they are there;
while it is short of them the transport is not paused, whatever the limit.
"""
cimport cython
from cpython.bytearray cimport PyByteArray_AS_STRING, PyByteArray_GET_SIZE, PyByteArray_Resize
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.string cimport memchr, memcpy

import sys
from asyncio import IncompleteReadError, LimitOverrunError, events, format_helpers

from ringloop._core.loop cimport CoreLoop, new_future

cdef enum:
    DEFAULT_LIMIT = 65536

cdef Py_ssize_t EVERYTHING = sys.maxsize
cdef object _get_event_loop = getattr(events, "_get_event_loop", events.get_event_loop)


@cython.final
@cython.freelist(64)
cdef class Wait:
    """Awaits a future that has no result: as `await future`, without the StopIteration
    object that ends that. (If the future fails, the task throws into the coroutine.)
    """

    def __await__(self):
        return self

    def __next__(self):
        future = self.future
        if future is None:
            raise StopIteration
        self.future = None
        future._asyncio_future_blocking = True
        return future


cdef class ReaderCore:
    """Buffer, limit and waiter of a StreamReader."""

    def __init__(self, limit=DEFAULT_LIMIT, loop=None):
        if limit <= 0:
            raise ValueError("Limit cannot be <= 0")
        self._limit = limit
        self._loop = _get_event_loop() if loop is None else loop
        if isinstance(self._loop, CoreLoop):
            self.core = self._loop
        if self._loop.get_debug():
            self._source_traceback = format_helpers.extract_stack(sys._getframe(0))

    def __repr__(self):
        info = ["StreamReader"]
        if self.unread():
            info.append(f"{self.unread()} bytes")
        if self._eof:
            info.append("eof")
        if self.limit != DEFAULT_LIMIT:
            info.append(f"limit={self.limit}")
        if self.waiter:
            info.append(f"waiter={self.waiter!r}")
        if self._exception:
            info.append(f"exception={self._exception!r}")
        if self._transport:
            info.append(f"transport={self._transport!r}")
        if self._paused:
            info.append("paused")
        return f"<{' '.join(info)}>"

    # -- what programs reach for, though it is private -------------------------------

    @property
    def _buffer(self):
        if not self.exposed:
            self.store = bytearray(self.peek(self.unread()))
            self.pos = 0
            self.exposed = True
        return self.store

    @_buffer.setter
    def _buffer(self, value):
        self.store = value if isinstance(value, bytearray) else bytearray(value)
        self.pos = self.scanned = 0
        self.exposed = True

    @property
    def _limit(self):
        return self.limit

    @_limit.setter
    def _limit(self, value):
        self.limit = EVERYTHING if value > EVERYTHING else int(value)

    @property
    def _waiter(self):
        return self.waiter

    @_waiter.setter
    def _waiter(self, value):
        self.waiter = value
        self.want = 1

    def _wakeup_waiter(self):
        self.wake()

    def _maybe_resume_transport(self):
        self.maybe_resume()

    # -- the buffer ------------------------------------------------------------------

    cdef Py_ssize_t unread(self) noexcept:
        if self.store is None:
            return 0
        if type(self.store) is bytes:
            return PyBytes_GET_SIZE(<bytes>self.store) - self.pos
        return PyByteArray_GET_SIZE(self.store) - self.pos

    cdef const char *start(self) noexcept:
        """Where the unread bytes are. Not to be called while there are none."""
        if type(self.store) is bytes:
            return PyBytes_AS_STRING(<bytes>self.store) + self.pos
        return PyByteArray_AS_STRING(self.store) + self.pos

    cdef bytes peek(self, Py_ssize_t n):
        if n == 0:
            return b""
        if (type(self.store) is bytes and self.pos == 0
                and n == PyBytes_GET_SIZE(<bytes>self.store)):
            return <bytes>self.store
        return PyBytes_FromStringAndSize(self.start(), n)

    cdef int drop(self, Py_ssize_t n) except -1:
        self.scanned = 0
        if self.exposed:
            del (<bytearray>self.store)[:n]
        elif n == self.unread():
            self.store = None
            self.pos = 0
        else:
            self.pos += n
        return 0

    cdef bytes take(self, Py_ssize_t n):
        cdef bytes data = self.peek(n)
        self.drop(n)
        return data

    cdef bytes take_all(self):
        return self.take(self.unread())

    cdef int append(self, object data) except -1:
        cdef Py_ssize_t n, had = self.unread()
        if had == 0 and not self.exposed:
            self.store = data if type(data) is bytes else bytearray(data)
            self.pos = 0
            return 0
        if type(self.store) is bytes:
            self.store = bytearray(self.peek(had))
            self.pos = 0
        elif self.pos > had:
            del (<bytearray>self.store)[:self.pos]
            self.pos = 0
        if type(data) is not bytes:
            self.store.extend(data)
            return 0
        had += self.pos
        n = PyBytes_GET_SIZE(<bytes>data)
        PyByteArray_Resize(self.store, had + n)
        memcpy(PyByteArray_AS_STRING(self.store) + had, PyBytes_AS_STRING(<bytes>data), n)
        return 0

    cdef Py_ssize_t find(self, object sep, Py_ssize_t offset) except -2:
        """Where `sep` begins among the unread bytes, from `offset` on; -1: nowhere."""
        cdef Py_ssize_t n = self.unread()
        cdef const char *begin
        cdef const char *found
        if n <= offset:
            return -1
        if type(sep) is bytes and PyBytes_GET_SIZE(<bytes>sep) == 1:
            begin = self.start()
            found = <const char *>memchr(
                begin + offset, PyBytes_AS_STRING(<bytes>sep)[0], n - offset)
            return -1 if found == NULL else found - begin
        at = self.store.find(sep, self.pos + offset)
        return -1 if at < 0 else at - self.pos

    # -- the side of the transport ---------------------------------------------------

    def set_transport(self, transport):
        """Tell which transport feeds this reader; once."""
        if self._transport is not None:
            raise AssertionError("Transport already set")
        self._transport = transport

    def feed_data(self, data):
        """Append to the buffer, and wake the read that waits if that is enough for it."""
        if self._eof:
            raise AssertionError("feed_data after feed_eof")
        if not data:
            return
        self.append(data)
        if self.waiter is not None:
            if self.unread() < self.want:
                return
            self.wake()
        if (self._transport is not None and not self._paused
                and self.unread() - self.limit > self.limit):
            try:
                self._transport.pause_reading()
            except NotImplementedError:
                self._transport = None  # it cannot: so do not try each time
            else:
                self._paused = True

    def feed_eof(self):
        """No more data will come."""
        self._eof = True
        self.wake()

    def at_eof(self):
        """Whether feed_eof() was called and everything was read."""
        return self._eof and self.unread() == 0

    def exception(self):
        """What set_exception() was given, else None."""
        return self._exception

    def set_exception(self, exc):
        """Let the read that waits, and those to come, fail."""
        self._exception = exc
        waiter = self.waiter
        if waiter is not None:
            self.waiter = None
            if not waiter.done():
                waiter.set_exception(exc)

    cdef int wake(self) except -1:
        waiter = self.waiter
        if waiter is not None:
            self.waiter = None
            if not waiter.done():
                waiter.set_result(None)
        return 0

    cdef int maybe_resume(self) except -1:
        if self._paused and self.unread() <= self.limit:
            self._paused = False
            self._transport.resume_reading()
        return 0

    # -- the side of the reads -------------------------------------------------------

    cdef object wait(self, str who, Py_ssize_t want):
        """What to await until `want` bytes, EOF or an exception are there."""
        cdef Wait wait
        if self.waiter is not None:
            raise RuntimeError(f"{who}() called while another coroutine is "
                               "already waiting for incoming data")
        if self._exception is not None:
            raise self._exception  # it came between the wake-up and this step
        if self._eof:
            raise AssertionError("_wait_for_data after EOF")
        if self._paused:
            # A read of more than the limit must not wait for a transport that waits for it.
            self._paused = False
            self._transport.resume_reading()
        self.waiter = self._loop.create_future() if self.core is None else new_future(self.core)
        self.want = want
        wait = <Wait>Wait.__new__(Wait)
        wait.future = self.waiter
        return wait

    def _wait_step(self, who):
        return self.wait(who, self.unread() + 1)

    cdef int check(self) except -1:
        if self._exception is not None:
            raise self._exception
        return 0

    def _read(self, n, bint again=False):
        """The first or a later step of read()."""
        cdef Py_ssize_t have = self.unread()
        if not again:
            self.check()
            if n == 0:
                return b""
        self.skipping = False
        if n < 0:
            if not self._eof:
                return self.wait("read", EVERYTHING)
            n = have
        elif have == 0 and not self._eof:
            return self.wait("read", 1)
        data = self.take(have if n > have else n)
        if self._paused:
            self.maybe_resume()
        return data

    def _exactly(self, Py_ssize_t n, bint again=False):
        """The first or a later step of readexactly()."""
        if not again:
            if n < 0:
                raise ValueError("readexactly size can not be less than zero")
            self.check()
            if n == 0:
                return b""
        self.skipping = False
        if self.unread() < n:
            if self._eof:
                raise IncompleteReadError(self.take_all(), n)
            return self.wait("readexactly", n)
        data = self.take(n)
        if self._paused:
            self.maybe_resume()
        return data

    def _until(self, tuple separators, bint again=False):
        """The first or a later step of readuntil(); the shortest separator goes first."""
        cdef Py_ssize_t at
        cdef Py_ssize_t begin = -1
        cdef Py_ssize_t end = 0
        if not again:
            self.check()
            self.scanned = 0
        self.skipping = False
        for sep in separators:
            at = self.find(sep, self.scanned)
            if at >= 0 and (begin < 0 or at + len(sep) < end):
                begin = at
                end = at + len(sep)
        if begin < 0:
            self.scanned = max(0, self.unread() + 1 - <Py_ssize_t>len(separators[-1]))
            if self.scanned > self.limit:
                raise LimitOverrunError(
                    "Separator is not found, and chunk exceed the limit", self.scanned)
            if self._eof:
                raise IncompleteReadError(self.take_all(), None)
            return self.wait("readuntil", self.unread() + 1)
        if begin > self.limit:
            raise LimitOverrunError(
                "Separator is found, but chunk is longer than limit", begin)
        data = self.take(end)
        if self._paused:
            self.maybe_resume()
        return data

    def _line(self, bint again=False):
        """The first or a later step of readline()."""
        cdef Py_ssize_t at
        if not again:
            self.check()
            self.scanned = 0
        if self.skipping:
            at = self.find(b"\n", 0)
            self.drop(self.unread() if at < 0 else at + 1)
            if at >= 0:
                self.skipping = False
            elif not self._eof:
                return self.wait("readuntil", 1)
        at = self.find(b"\n", self.scanned)
        if at < 0:
            self.scanned = self.unread()
            if self.scanned > self.limit:
                self.drop(self.scanned)
                self.skipping = True
                self.maybe_resume()
                raise ValueError("Separator is not found, and chunk exceed the limit")
            if not self._eof:
                return self.wait("readuntil", self.scanned + 1)
            return self.take_all()
        if at > self.limit:
            self.drop(at + 1)
            self.maybe_resume()
            raise ValueError("Separator is found, but chunk is longer than limit")
        data = self.take(at + 1)
        if self._paused:
            self.maybe_resume()
        return data
