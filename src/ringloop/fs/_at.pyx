"""pread and pwrite: at places of their own, beside a file's position and buffers.

Any number at once. The file counts them, and closes when the last has landed.
"""
from cpython.bytes cimport (
    PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE,
)
from libc.stdint cimport int64_t, uint64_t

from ringloop._sys.errno cimport EAGAIN, EINVAL
from ringloop._sys.files cimport RL_OP_READ, RL_OP_WRITE
from ringloop.fs._aligned cimport AlignedBuffer, new_aligned
from ringloop.fs._buffers cimport INLINE_MAX, os_error
from ringloop.fs._call cimport PENDING, Call, make_sendable
from ringloop.fs._op cimport Op


cdef class _AtOp(Op):
    cdef Flights file
    cdef char *p
    cdef object future  # of a read: gets what was read

    cdef int land(self) except -1:
        if self.op.opcode == RL_OP_WRITE:
            self.file.wrote_beside()  # also if nobody waits for it any more
        self.file.inflight -= 1
        if self.file.inflight == 0 and self.file.landed is not None:
            if not self.file.landed.done():
                self.file.landed.set_result(None)
        if self.future is not None:
            future = self.future
            self.future = None
            if not future.done():
                try:
                    future.set_result(self.read())
                except BaseException as error:
                    future.set_exception(error)
        self.keep = None  # whoever waited may be there long after
        return 0

    cdef bytes read(self):
        cdef bytes data
        if self.res < 0:
            raise os_error(-self.res, self.file.name)
        if self.file.direct:
            return PyBytes_FromStringAndSize(self.p, self.res)
        data = self.keep
        return data if self.res == PyBytes_GET_SIZE(data) else data[:self.res]


cdef class AtCall(Call):
    """pread and pwrite."""

    cdef Flights file
    cdef bytes data          # to write; None: read
    cdef Py_ssize_t n
    cdef int64_t offset
    cdef _AtOp op            # the last that was begun

    cdef object attempt(self):
        cdef Flights f = self.file
        cdef Py_ssize_t got = 0
        cdef bytes data
        cdef char *p
        cdef ssize_t r
        f.check()
        if self.data is not None:
            f.check_write()
        else:
            f.check_read()
        if self.offset < 0 or self.n < 0:
            raise os_error(EINVAL, f.name)
        if self.data is not None or f.direct or f.wend > f.wpos or self.n > INLINE_MAX:
            return PENDING
        data = PyBytes_FromStringAndSize(NULL, self.n)
        p = PyBytes_AS_STRING(data)
        while got < self.n:
            r = f.read_now(p + got, self.n - got, self.offset + got)
            if r == -EAGAIN:
                return PENDING
            if r == 0:
                return data[:got]
            got += r
        return data

    cdef object slow(self):
        if self.data is not None:
            return self.write()
        if self.file.wend > self.file.wpos:
            return self.read_what_was_written()
        # Not a coroutine, which would be a tenth of a direct read's instructions. asyncio's own
        # futures give the same iterator by iter(), without looking for a method.
        future = self.read()
        return iter(future) if self.op.driver is not None else future.__await__()

    cdef int given_up(self) except -1:
        if self.op is None:
            return 0
        self.op.future = None  # an error that nobody waits for is none
        return self.op.cancel()

    cdef _AtOp begin(self, int opcode, object keep, char *p, Py_ssize_t n, int64_t offset):
        cdef _AtOp op = _AtOp.__new__(_AtOp)
        self.file.check()
        op.file = self.file
        op.keep = keep
        op.p = p
        op.op.opcode = opcode
        op.op.fd = self.file.fd
        op.op.addr = <uint64_t>p
        op.op.len = min(n, 0x7ffff000)
        op.op.off = offset
        op.in_thread = self.file.far
        op.start()
        self.op = op
        self.file.inflight += 1
        return op

    cdef object read(self):
        cdef _AtOp op
        cdef AlignedBuffer aligned
        if self.file.direct:
            aligned = new_aligned(self.n)
            op = self.begin(RL_OP_READ, aligned, aligned.p, self.n, self.offset)
        else:
            data = PyBytes_FromStringAndSize(NULL, self.n)
            op = self.begin(RL_OP_READ, data, PyBytes_AS_STRING(data), self.n, self.offset)
        op.future = op.create_future()
        return op.future

    async def read_what_was_written(self):
        await self.file.flush()
        return await self.read()

    async def write(self):
        cdef _AtOp op
        cdef Py_ssize_t done = 0
        cdef Py_ssize_t n = PyBytes_GET_SIZE(self.data)
        if self.file.wend > self.file.wpos:
            await self.file.flush()
        while done < n:
            op = self.begin(RL_OP_WRITE, self.data, PyBytes_AS_STRING(self.data) + done, n - done,
                            self.offset + done)
            await op.waiter()
            if op.res < 0:
                raise os_error(-op.res, self.file.name)
            done += op.res
        return n


cdef object new_at(Flights file, object data, Py_ssize_t n, object offset):
    cdef AtCall call
    cdef int64_t place = offset
    cdef bytes taken = data if data is None or type(data) is bytes else bytes(memoryview(data))
    call = AtCall.__new__(AtCall)  # not before what may raise: it wants to be awaited
    call.file = file
    call.data = taken
    call.n = n
    call.offset = place
    return call


make_sendable(AtCall)
