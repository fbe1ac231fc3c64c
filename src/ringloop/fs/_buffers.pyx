"""A binary file's descriptor and buffers: what was read ahead, what waits to be written.

Each operation is a *step* that can be run again: it takes from the buffers or from the
caches of the kernel what is there, and changes nothing before it can finish. Where it
would block it says what it needs (`pend`): more bytes, the buffer written out, a sync.
What gets that is in `_flights.pyx`.

Files that can seek are read and written at explicit offsets: `pos` is ours, and the
kernel's is set where somebody could look (`fileno`, `flush`). Appending and streams go
by the kernel's.
"""
from cpython.buffer cimport (
    PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer,
)
from cpython.bytes cimport (
    PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE,
)
from cpython.object cimport PyObject
from cpython.ref cimport Py_INCREF
from libc.stdint cimport int64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memchr, memcpy, memmove

import asyncio
import io
import os

from ringloop._sys.bytes cimport shortened
from ringloop._sys.errno cimport EAGAIN, EINVAL, EOPNOTSUPP, ESPIPE, errno
from ringloop._sys.files cimport (
    S_ISREG, SEEK_CUR, SEEK_END, SEEK_SET, fstat, known_stat, lseek, rl_in_memory, rl_read_at,
    rl_read_cached,
    rl_write_at, rl_write_cached, stat_t,
)
from ringloop.fs._call cimport BEHIND, PENDING, charge

cdef object _Unsupported = io.UnsupportedOperation


cdef object os_error(int number, object name):
    return OSError(number, os.strerror(number), name)


cdef object _current_task():
    try:
        return asyncio.current_task()
    except RuntimeError:
        return None  # driven by hand


cdef class Step(Call):
    """A call on a file of which each step can be run again.

    Who keeps its place among the others, and why: see `_flights.pyx`.
    """

    cdef object step(self):
        raise NotImplementedError

    cdef Buffers buffers(self):
        """The file; of a text, what is below."""
        raise NotImplementedError

    cdef object refused(self):
        """The attempt, when begin_call() said no."""
        cdef Buffers f = self.buffers()
        if f.yielded and f.served is not _current_task():
            return BEHIND
        return self.step() if f.begin_now() else PENDING

    cdef void yields(self) noexcept:
        cdef Buffers f = self.buffers()
        f.yielded += 1

    cdef void resumed(self) noexcept:
        cdef Buffers f = self.buffers()
        f.yielded -= 1
        f.served = _current_task() if f.yielded else None


cdef class Buffers:
    def __cinit__(self):
        self.fd = -1

    def __dealloc__(self):
        free(self.rbuf)

    cdef bint begin_now(self) noexcept:
        """False if a call that is under way has the file."""
        return False

    # -- checks ----------------------------------------------------------------------

    cdef int check(self) except -1:
        if self.fd < 0 or self.closing:
            raise ValueError("I/O operation on closed file.")
        return 0

    cdef int check_read(self) except -1:
        if self.fd < 0 or self.closing:
            if self.can_read or self.raw:  # what io asks first
                self.check()
        if not self.can_read:
            raise _Unsupported("not readable")
        return 0

    cdef int check_write(self) except -1:
        if self.fd < 0 or self.closing:
            if self.can_write or self.raw:
                self.check()
        if not self.can_write:
            raise _Unsupported("not writable")
        return 0

    # -- the buffers -----------------------------------------------------------------

    cdef object pend(self, int need, int64_t n):
        self.need = need
        self.need_n = n
        return PENDING

    cdef void drop_ahead(self) noexcept:
        self.rpos = self.rend = 0
        if self.rcap > INLINE_MAX:
            free(self.rbuf)
            self.rbuf = NULL
            self.rcap = 0

    cdef char *room(self, Py_ssize_t n) except NULL:
        """Where `n` more bytes can be read ahead to; `rend` is for the caller to move."""
        cdef Py_ssize_t have = self.rend - self.rpos
        cdef Py_ssize_t cap
        cdef char *p
        if self.rend + n > self.rcap:
            if self.rpos:
                memmove(self.rbuf, self.rbuf + self.rpos, have)
                self.rpos = 0
                self.rend = have
            if have + n > self.rcap:
                cap = max(have + n, min(self.rcap * 2, have + (1 << 26)))
                p = <char *>realloc(self.rbuf, cap)
                if p == NULL:
                    raise MemoryError
                self.rbuf = p
                self.rcap = cap
        return self.rbuf + self.rend

    cdef bytes take(self, Py_ssize_t n):
        """The next `n` bytes that were read ahead."""
        cdef bytes data = PyBytes_FromStringAndSize(self.rbuf + self.rpos, n)
        self.rpos += n
        self.pos += n
        if self.rpos == self.rend:
            self.drop_ahead()
        return data

    cdef ssize_t read_now(self, char *p, Py_ssize_t n, int64_t off) except? -100:
        """Read from the caches: bytes, 0 at the end, -EAGAIN where that would block."""
        cdef ssize_t r
        if self.nowait_read:
            r = rl_read_cached(self.fd, p, n, off)
            if r == -EOPNOTSUPP:
                self.nowait_read = False
                self.in_memory = rl_in_memory(self.fd)
        if not self.nowait_read:
            if not self.in_memory:
                return -EAGAIN
            r = rl_read_at(self.fd, p, n, off)
        charge(max(r, 0))
        if r < 0 and r != -EAGAIN:
            raise os_error(-r, self.name)
        return r

    cdef ssize_t fill_now(self, Py_ssize_t n) except? -100:
        """Read ahead from the caches, about `n` bytes."""
        cdef char *p
        cdef ssize_t r
        n = max(n, self.fill_size)
        p = self.room(n)
        r = self.read_now(p, n, self.pos + self.rend - self.rpos if self.can_seek else -1)
        if r > 0:
            self.rend += r
            if self.fill_size < self.bufsize:
                self.fill_size = min(self.fill_size * 2, self.bufsize)
        return r

    cdef int64_t place(self, Py_ssize_t n) noexcept:
        """Where the `n` bytes that end at `pos` are written to; -1: where the kernel is."""
        if self.append or not self.can_seek:
            return -1
        if self.no_pwrite:
            lseek(self.fd, self.pos - n, SEEK_SET)
            return -1
        return self.pos - n

    cdef bint refuses_pwrite(self, ssize_t r) noexcept:
        """True if the write was refused because of its offset; now it can be tried again."""
        if r != -ESPIPE or self.no_pwrite or not self.can_seek:
            return False
        self.no_pwrite = True  # a file of /proc that is written like a stream
        return True

    cdef int drained(self, Py_ssize_t n) except -1:
        self.wpos += n
        if self.append:
            self.pos = lseek(self.fd, 0, SEEK_CUR) + self.wend - self.wpos
        if self.wpos == self.wend:
            self.wpos = self.wend = 0
        return 0

    cdef ssize_t drain_now(self) except -1:
        """Write out what waits, if that cannot block. 1 when nothing is left, else 0."""
        cdef ssize_t r
        cdef Py_ssize_t n
        cdef int64_t off
        while self.wend > self.wpos:
            n = self.wend - self.wpos
            off = self.place(n)
            r = -EAGAIN
            if self.nowait_write:
                r = rl_write_cached(self.fd, PyBytes_AS_STRING(self.wbuf) + self.wpos, n, off)
                if r == -EOPNOTSUPP:
                    self.nowait_write = False
                    self.in_memory = rl_in_memory(self.fd)
                    r = -EAGAIN
            if self.in_memory:
                r = rl_write_at(self.fd, PyBytes_AS_STRING(self.wbuf) + self.wpos, n, off)
            charge(n)
            if self.refuses_pwrite(r):
                continue
            if r == -EAGAIN:
                return 0
            if r < 0:
                raise os_error(-r, self.name)
            self.drained(r)
        return 1

    # -- steps: reading --------------------------------------------------------------

    cdef object step_read(self, Py_ssize_t n):
        cdef Py_ssize_t have = self.rend - self.rpos
        cdef ssize_t r
        if self.wend > self.wpos and not self.drain_now():
            return self.pend(DRAIN, 0)
        if self.raw and have == 0 and not self.eof:
            return self.step_read1(n) if n >= 0 else self.step_read_all()
        if n < 0:
            return self.step_read_all()
        if n > have and not self.eof and self.can_seek and not self.direct:
            if self.fill_size <= n - have <= INLINE_MAX:
                return self.step_read_direct(n)
        while self.rend - self.rpos < n and not self.eof:
            if self.raw and self.rend > self.rpos:
                break
            have = self.rend - self.rpos
            r = self.fill_now(min(n - have, INLINE_MAX))
            if r == 0:
                break
            if r == -EAGAIN:
                return self.pend(FILL, n - have)
            if n - have > INLINE_MAX:
                return self.pend(TURN, 0)
        return self.take(min(n, self.rend - self.rpos))

    cdef object step_read_direct(self, Py_ssize_t n):
        """Much at once: past the buffer, into what the caller gets."""
        cdef Py_ssize_t got = self.rend - self.rpos
        cdef Py_ssize_t had = got
        cdef bytes data = PyBytes_FromStringAndSize(NULL, n)
        cdef char *p = PyBytes_AS_STRING(data)
        cdef ssize_t r
        if got:  # else there may be no buffer: a copy of nothing from NULL is undefined
            memcpy(p, self.rbuf + self.rpos, got)
        while got < n:
            r = self.read_now(p + got, n - got, self.pos + got)
            if r == 0:
                break
            if r == -EAGAIN:
                return self.pend(FILL, n - had)
            got += r
        self.drop_ahead()
        self.pos += got
        return data if got == n else data[:got]

    cdef object step_read_all(self):
        cdef ssize_t r
        cdef stat_t st
        cdef Py_ssize_t moved = 0
        cdef Py_ssize_t n = 0
        if self.can_seek and self.rend == self.rpos and not self.direct and not self.eof:
            # Right after the open its size is known; later it may have changed.
            st.st_size = self.size_hint
            self.size_hint = -1
            if st.st_size < 0 and known_stat(self.fd, &st) < 0:
                raise os_error(errno, self.name)
            if 0 < st.st_size - self.pos < INLINE_MAX:
                n = st.st_size - self.pos
                data = self.step_read_direct(n + 1)
                if data is PENDING or PyBytes_GET_SIZE(data) <= n:
                    return data
                # It has grown.
                self.pos -= n + 1
        while not self.eof:
            r = self.fill_now(max(n, self.bufsize))
            if r == 0:
                break
            if r == -EAGAIN:
                if known_stat(self.fd, &st) == 0:
                    n = max(0, st.st_size - self.pos - (self.rend - self.rpos))
                return self.pend(FILL, max(n + 1, self.bufsize))
            moved += r
            if moved > INLINE_MAX:
                return self.pend(TURN, 0)
        return self.take(self.rend - self.rpos)

    cdef bint is_big(self, Py_ssize_t n) except -1:
        """Whether to read `n` bytes (negative: all) would keep others waiting."""
        cdef stat_t st
        if not self.can_seek or self.direct:
            return False
        if n >= 0:
            return n > INLINE_MAX
        if self.size_hint < 0:
            if known_stat(self.fd, &st) < 0:
                raise os_error(errno, self.name)
            self.size_hint = st.st_size
        return self.size_hint - self.pos >= INLINE_MAX

    cdef object step_read_big(self, Step call):
        """Straight into the result, a part at a time: nothing is copied at the end."""
        cdef ssize_t r = 1
        cdef Py_ssize_t size
        cdef PyObject *result
        if call.arg is None:
            if self.wend > self.wpos and not self.drain_now():
                return self.pend(DRAIN, 0)
            size = call.n if call.n >= 0 else self.size_hint - self.pos + 1
            self.size_hint = -1
            call.arg = PyBytes_FromStringAndSize(NULL, size)
            call.filled = min(size, self.rend - self.rpos)
            if call.filled:
                memcpy(PyBytes_AS_STRING(call.arg), self.rbuf + self.rpos, call.filled)
        size = PyBytes_GET_SIZE(call.arg)
        if call.filled < size and not self.eof:
            r = self.read_now(PyBytes_AS_STRING(call.arg) + call.filled,
                              min(size - call.filled, INLINE_MAX), self.pos + call.filled)
            if r == -EAGAIN:
                self.need_data = call.arg
                return self.pend(INTO, call.filled)
            call.filled += r
        if call.filled == size and call.n < 0:
            call.arg += bytes(INLINE_MAX)  # the file has grown
        elif r and call.filled < size and not self.eof:
            return self.pend(TURN, 0)
        elif r == 0 or self.eof or call.filled == size:
            self.drop_ahead()
            self.pos += call.filled
            result = <PyObject *>call.arg
            Py_INCREF(<object>result)
            call.arg = None
            return shortened(result, call.filled)
        return self.pend(TURN, 0)

    cdef object step_read1(self, Py_ssize_t n):
        """What one read gives, at most `n`."""
        if self.wend > self.wpos and not self.drain_now():
            return self.pend(DRAIN, 0)
        if n < 0:
            n = io.DEFAULT_BUFFER_SIZE
        if self.can_seek and not self.direct:
            n = min(n, <Py_ssize_t>INLINE_MAX)
        if n and self.rend == self.rpos and not self.eof:
            if self.raw and self.can_seek and not self.direct:
                # No more than was asked for, and nothing is kept; but also no less because
                # the caches had only a part: then all of it is read in one flight.
                return self.step_read_direct(n)
            if self.raw or self.fill_now(n) == -EAGAIN:
                return self.pend(FILL, n)
        return self.take(min(n, self.rend - self.rpos))

    cdef object step_readline(self, Py_ssize_t limit):
        cdef Py_ssize_t have, seen = 0
        cdef char *p
        cdef char *end
        cdef ssize_t r
        if self.wend > self.wpos and not self.drain_now():
            return self.pend(DRAIN, 0)
        while True:
            have = self.rend - self.rpos
            p = self.rbuf + self.rpos
            if have > seen:
                end = <char *>memchr(p + seen, c"\n", have - seen)
                if end != NULL:
                    have = end - p + 1
                    return self.take(have if limit < 0 else min(have, limit))
            if 0 <= limit <= have or self.eof:
                return self.take(have if limit < 0 else min(have, limit))
            seen = have
            r = self.fill_now(1)
            if r == 0:
                return self.take(have)
            if r == -EAGAIN:
                if self.raw and not self.can_seek:
                    return self.pend(FILL, 1)
                return self.pend(FILL, max(have, self.fill_size))  # what is there is searched again
            if have > INLINE_MAX:
                return self.pend(TURN, 0)

    cdef object step_readinto(self, Step call, bint once):
        """A part at a time: each is copied twice."""
        cdef Py_buffer view
        cdef Py_ssize_t n, got
        PyObject_GetBuffer(call.arg, &view, PyBUF_SIMPLE | PyBUF_WRITABLE)
        try:
            n = max(view.len - call.moved, 0)
            if self.can_seek:
                n = min(n, <Py_ssize_t>INLINE_MAX)
            data = self.step_read1(n) if once else self.step_read(n)
            if data is PENDING:
                return PENDING
            got = PyBytes_GET_SIZE(data)
            if got:
                memcpy(<char *>view.buf + call.moved, PyBytes_AS_STRING(data), got)
            call.moved += got
            if once or got < n or call.moved >= view.len:
                return call.moved
            return self.pend(TURN, 0)
        finally:
            PyBuffer_Release(&view)

    cdef object step_peek(self):
        cdef ssize_t r
        if self.wend > self.wpos and not self.drain_now():
            return self.pend(DRAIN, 0)
        if self.rend == self.rpos and not self.eof:
            r = self.fill_now(1)
            if r == -EAGAIN:
                return self.pend(FILL, self.fill_size)
        return PyBytes_FromStringAndSize(self.rbuf + self.rpos, self.rend - self.rpos)

    # -- steps: writing --------------------------------------------------------------

    cdef object step_write(self, Step call):
        """`call.n` is how much of the data was taken already."""
        cdef Py_buffer view
        cdef Py_ssize_t n
        cdef Py_ssize_t moved = 0
        cdef int need
        cdef bint exported = False
        if self.raw:
            return self.step_write_raw(call)
        if type(call.arg) is bytes:
            view.buf = PyBytes_AS_STRING(call.arg)
            view.len = PyBytes_GET_SIZE(call.arg)
        else:
            PyObject_GetBuffer(call.arg, &view, PyBUF_SIMPLE)
            exported = True
        try:
            if self.rend:
                self.drop_ahead()
            if self.wbuf is None:
                self.wbuf = PyBytes_FromStringAndSize(NULL, self.bufsize)
            while True:
                n = min(view.len - call.n, self.bufsize - self.wend)
                if n:
                    memcpy(PyBytes_AS_STRING(self.wbuf) + self.wend, <char *>view.buf + call.n, n)
                self.wend += n
                self.pos += n
                call.n += n
                if call.n == view.len:
                    return view.len
                moved += n
                if self.drain_now():
                    if moved <= INLINE_MAX:
                        continue
                    need = TURN
                else:
                    need = DRAIN
                if exported:
                    call.arg = bytes(memoryview(call.arg))  # the rest of what it is now
                return self.pend(need, 0)
        finally:
            if exported:
                PyBuffer_Release(&view)

    cdef object step_write_raw(self, Step call):
        """One write, which may be short; the flight's result comes back in `call.n`."""
        cdef bytes data
        cdef ssize_t r = -EAGAIN
        cdef int64_t off
        if call.asked:
            n = call.n
            self.pos = lseek(self.fd, 0, SEEK_CUR) if self.append else self.pos + n
            return n
        data = call.arg if type(call.arg) is bytes else bytes(memoryview(call.arg))
        if self.can_seek:
            self.drop_ahead()
        off = self.place(0)
        if self.can_seek and PyBytes_GET_SIZE(data) > INLINE_MAX:
            self.need_data = data
            return self.pend(DIRECT, off)
        if self.nowait_write:
            r = rl_write_cached(self.fd, PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data), off)
            if r == -EOPNOTSUPP:
                self.nowait_write = False
                self.in_memory = rl_in_memory(self.fd)
                r = -EAGAIN
        if self.in_memory:
            r = rl_write_at(self.fd, PyBytes_AS_STRING(data), PyBytes_GET_SIZE(data), off)
        charge(PyBytes_GET_SIZE(data))
        if self.refuses_pwrite(r):
            return self.step_write_raw(call)
        if r == -EAGAIN:
            self.need_data = data
            return self.pend(DIRECT, off)
        if r < 0:
            raise os_error(-r, self.name)
        self.pos = lseek(self.fd, 0, SEEK_CUR) if self.append else self.pos + r
        return r

    cdef object step_flush(self):
        if self.wend > self.wpos and not self.drain_now():
            return self.pend(DRAIN, 0)
        if self.can_seek and self.can_write:
            lseek(self.fd, self.pos, SEEK_SET)  # for whoever shares the descriptor
        return None

    # -- steps: position -------------------------------------------------------------

    cdef object step_seek(self, Step call, object offset, int whence):
        cdef int64_t new, by = offset
        cdef stat_t st
        if not self.raw and not 0 <= whence <= 4:
            raise ValueError(f"whence value {whence} unsupported")
        if not self.can_seek:
            raise _Unsupported("underlying stream is not seekable")
        if self.wend > self.wpos and not self.drain_now():
            return self.pend(DRAIN, 0)
        if whence == SEEK_SET:
            new = by
        elif whence == SEEK_CUR:
            new = self.pos + by
        elif whence == SEEK_END and not self.far:
            if fstat(self.fd, &st) < 0:
                raise os_error(errno, self.name)
            new = st.st_size + by
            if not S_ISREG(st.st_mode):  # then st_size says nothing
                new = lseek(self.fd, by, SEEK_END)
                if new < 0:
                    raise os_error(errno, self.name)
        elif not call.asked:
            self.need_data = whence
            return self.pend(SEEK, by)  # asks the server, or the disk where the data is
        else:
            new = lseek(self.fd, 0, SEEK_CUR)
        if new < 0:
            raise os_error(EINVAL, self.name)
        if self.pos <= new <= self.pos + self.rend - self.rpos:
            self.rpos += new - self.pos
        else:
            self.drop_ahead()
            self.fill_size = min(<Py_ssize_t>FIRST_FILL, self.bufsize)
        self.pos = new
        if self.append or self.raw:
            lseek(self.fd, new, SEEK_SET)
        return new

    cdef object step_truncate(self, Step call):
        cdef int64_t size
        if self.wend > self.wpos and not self.drain_now():
            return self.pend(DRAIN, 0)
        size = self.pos if call.arg is None else call.arg
        if call.asked:
            return size
        if size < 0:
            raise os_error(EINVAL, self.name)
        self.drop_ahead()
        return self.pend(TRUNCATE, size)
