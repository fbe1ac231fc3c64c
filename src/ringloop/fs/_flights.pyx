"""What brings a file's steps further: one operation in flight, on the ring or in a thread.

A step that would block gets what it needs as a *flight* and is run once more. There is
one flight a file; it lands in the file whether or not the call that wanted it still
waits. So a cancelled call loses no byte, of a pipe neither, and no memory is the kernel's
and a user's at once.

Calls on a file are served first come first served. Those that cannot finish at once wait
for a lock. Behind one that yields to the loop before it tries, those that come meanwhile
yield, too: the loop resumes them in that order. Only the task that was resumed goes on with
its next calls until its turn is over: to let each of them wait for all others would make it
one call a task and iteration as soon as two tasks use a file (1.5 million calls a second
became 5,000 beside a task that keeps the loop busy). A call that yielded and is dropped
stays in the count: for it others yield once more, and nobody waits.
"""
from cpython.bytes cimport (
    PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE,
)
from libc.stdint cimport uint64_t
from libc.stdlib cimport free
from libc.string cimport memcpy

import asyncio

from ringloop._sys.errno cimport EAGAIN, ECANCELED, errno
from ringloop._sys.files cimport (
    RL_OP_CLOSE, RL_OP_FSYNC, RL_OP_FTRUNCATE, RL_OP_LSEEK, RL_OP_READ, RL_OP_WRITE, SEEK_SET,
    lseek,
)
from ringloop._sys.posix cimport close as close_fd
from ringloop.fs._aligned cimport AlignedBuffer, new_aligned
from ringloop.fs._buffers cimport (
    DIRECT, DRAIN, FILL, INLINE_MAX, INTO, SEEK, SYNC, TRUNCATE, TURN, Step, os_error,
)
from ringloop.fs._call cimport PENDING
from ringloop.fs._op cimport new_op
from ringloop.fs._wait import one_turn

cdef enum:
    FLIGHT_MAX = 1048576       # most that one flight reads
    RAW_FLIGHT_MAX = 1 << 26   # of a raw file, where it is all that a read gives


cdef class _Fill(Op):
    """Bytes for the read-ahead buffer."""

    cdef Flights file
    cdef char *p

    cdef int land(self) except -1:
        cdef Flights f = self.file
        f.flight = None
        if self.res > 0:
            memcpy(f.room(self.res), self.p, self.res)
            f.rend += self.res
        f.eof = self.res == 0
        self.keep = None
        return 0


cdef class _Drain(Op):
    """What waited to be written."""

    cdef Flights file

    cdef int land(self) except -1:
        self.file.flight = None
        if self.res > 0:
            self.file.drained(self.res)
        self.keep = None
        return 0


cdef class _Other(Op):
    """A flight with nothing to take in: a write past the buffer, a sync, a truncate, a seek."""

    cdef Flights file

    cdef int land(self) except -1:
        self.file.flight = None
        self.keep = None
        return 0


cdef class Flights(Buffers):
    cdef bint begin_now(self) noexcept:
        if not self.is_free():
            return False
        self.eof = False
        if self.stale or (self.raw and self.can_seek):
            self.stale = False
            self.drop_ahead()  # of a call that was cancelled; a raw file keeps nothing
        return True

    cdef int wrote_beside(self) except -1:
        """What was read ahead may be old. A call that is under way may give it, none after it."""
        if not self.can_seek:
            return 0
        if self.is_free():
            self.drop_ahead()
        else:
            self.stale = True  # what is in flight goes behind what is there
        return 0

    cdef Op begin(self):
        """Start what the last step asked for."""
        cdef _Fill fill
        cdef _Drain drain
        cdef _Other other
        cdef Op op
        cdef AlignedBuffer aligned
        cdef Py_ssize_t n
        if self.need == FILL:
            n = min(max(self.need_n, 1), RAW_FLIGHT_MAX if self.raw else FLIGHT_MAX)
            fill = _Fill.__new__(_Fill)
            fill.file = self
            if self.direct:
                n = (n + 4095) & ~4095  # it ends where the file ends
                aligned = new_aligned(n)
                fill.keep = aligned
                fill.p = aligned.p
            else:
                fill.keep = PyBytes_FromStringAndSize(NULL, n)
                fill.p = PyBytes_AS_STRING(fill.keep)
            fill.op.opcode = RL_OP_READ
            fill.op.addr = <uint64_t>fill.p
            fill.op.len = n
            fill.op.off = self.pos + self.rend - self.rpos if self.can_seek else <uint64_t>-1
            op = fill
        elif self.need == DRAIN:
            n = self.wend - self.wpos
            drain = _Drain.__new__(_Drain)
            drain.file = self
            drain.keep = self.wbuf
            drain.op.opcode = RL_OP_WRITE
            drain.op.addr = <uint64_t>(PyBytes_AS_STRING(self.wbuf) + self.wpos)
            drain.op.len = n
            drain.op.off = <uint64_t>self.place(n)
            op = drain
        else:
            other = _Other.__new__(_Other)
            other.file = self
            op = other
            if self.need == DIRECT:
                op.keep = self.need_data
                op.op.opcode = RL_OP_WRITE
                op.op.addr = <uint64_t>PyBytes_AS_STRING(self.need_data)
                op.op.len = min(PyBytes_GET_SIZE(self.need_data), 0x7ffff000)
                op.op.off = self.need_n
                # The ring would copy much at once, too, where that does not wait for a disk.
                op.in_thread = (self.can_seek and not self.direct
                                and PyBytes_GET_SIZE(self.need_data) > INLINE_MAX)
                self.need_data = None
            elif self.need == INTO:
                op.keep = self.need_data
                op.op.opcode = RL_OP_READ
                op.op.addr = <uint64_t>(PyBytes_AS_STRING(self.need_data) + self.need_n)
                op.op.len = min(PyBytes_GET_SIZE(self.need_data) - self.need_n, FLIGHT_MAX)
                op.op.off = self.pos + self.need_n
                self.need_data = None
            elif self.need == SYNC:
                op.op.opcode = RL_OP_FSYNC
                op.op.flags = self.need_n
            elif self.need == SEEK:
                # The descriptor's own position; then it is known where that is.
                op.op.opcode = RL_OP_LSEEK
                op.op.off = self.need_n
                op.op.flags = self.need_data
                op.in_thread = True
            else:
                op.op.opcode = RL_OP_FTRUNCATE
                op.op.off = self.need_n
                op.in_thread = True  # an opcode since 6.9 only
        op.op.fd = self.fd
        op.in_thread = op.in_thread or self.far  # which the ring reads at once, and waits
        op.stream = not self.can_seek and op.op.opcode in (RL_OP_READ, RL_OP_WRITE)
        self.flight = op
        try:
            op.start()
        except BaseException:
            self.flight = None
            raise
        return op

    async def run(self, Step call):
        """Finish a call that could not at once; one at a time, first come first served."""
        cdef Op op
        self.slow_calls += 1
        if self.lock is None:
            self.lock = asyncio.Lock()
        try:
            async with self.lock:
                while self.flight is not None:
                    await self.flight.wait()  # of a call that was cancelled
                if self.stale:
                    self.stale = False
                    self.drop_ahead()
                self.eof = False
                while True:
                    value = call.step()
                    if value is not PENDING:
                        self.eof = False
                        return value
                    if self.need == TURN:
                        await one_turn()
                        continue
                    if self.closer is not None and not self.can_seek:
                        raise ValueError("I/O operation on closed file.")  # it may wait for ever
                    need = self.need
                    op = self.begin()
                    await op.wait()
                    if op.res < 0:
                        if op.res == -EAGAIN and need == FILL:
                            return None  # O_NONBLOCK, as io has it
                        if op.res == -ECANCELED and self.closer is not None:
                            raise ValueError("I/O operation on closed file.")
                        raise os_error(-op.res, self.name)
                    if need == DIRECT:
                        call.n = op.res
                    elif need == INTO:
                        call.filled += op.res
                        self.eof = op.res == 0
                    call.asked = need in (DIRECT, SYNC, TRUNCATE, SEEK)
        except BaseException:
            if call.moved:
                self.pos -= call.moved
                self.stale = True  # what is ahead, or comes yet, belongs elsewhere
            raise
        finally:
            self.slow_calls -= 1

    cdef int close_now(self) except -1:
        cdef int fd = self.fd
        cdef int r = 0
        self.fd = -1
        self.drop_ahead()
        free(self.rbuf)
        self.rbuf = NULL
        self.rcap = 0
        self.wbuf = None
        if self.closefd:
            r = close_fd(fd)
        elif self.can_seek:
            lseek(fd, self.pos, SEEK_SET)
        if r < 0:
            raise os_error(errno, self.name)
        return 0

    async def _close(self):
        if self.closer is None:
            self.closer = asyncio.get_running_loop().create_task(self._close_surely())
        await asyncio.shield(self.closer)

    async def _close_surely(self):
        """Write out what waits, let all that is in flight land, close. Cannot be cancelled."""
        cdef Op op
        cancelled = None
        if self.lock is None:
            self.lock = asyncio.Lock()
        while not self.closing:
            if self.flight is not None and not self.can_seek:
                self.flight.cancel()  # a pipe may never say anything
            try:
                await self.lock.acquire()
                self.closing = True
            except asyncio.CancelledError as exc:
                cancelled = exc
        while self.flight is not None or self.inflight:
            self.landed = asyncio.get_running_loop().create_future()
            try:
                await (self.flight.wait() if self.flight is not None else self.landed)
            except asyncio.CancelledError as exc:
                cancelled = exc
        try:
            while self.wend > self.wpos and not self.drain_now():
                self.need = DRAIN
                op = self.begin()
                while not op.done:
                    try:
                        await op.wait()
                    except asyncio.CancelledError as exc:
                        cancelled = exc
                if op.res < 0:
                    raise os_error(-op.res, self.name)
        finally:
            op = None
            fd = -1
            if self.closefd and self.closes_late():
                fd = self.fd
                self.closefd = False
            try:
                self.close_now()
            finally:
                self.lock.release()  # whoever waits for it finds the file closed
            if fd >= 0:
                op = new_op(RL_OP_CLOSE, fd)
                op.in_thread = True
                op.start()
        while op is not None and not op.done:
            try:
                await op.wait()
            except asyncio.CancelledError as exc:
                cancelled = exc
        if op is not None and op.res < 0:
            raise os_error(-op.res, self.name)
        if cancelled is not None:
            raise cancelled
