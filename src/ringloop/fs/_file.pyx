"""`BinaryFile`: what users of binary files call."""
from cpython.bytes cimport PyBytes_AS_STRING
from cpython.object cimport PyObject
from libc.stdint cimport int64_t

import io
import os
import warnings

from ringloop._sys.files cimport (
    F_GETFL, O_DIRECT, RL_FSYNC_DATASYNC, SEEK_CUR, SEEK_END, SEEK_SET, fcntl, lseek,
    rl_write_at,
)
from ringloop._sys.errno cimport EBADF
from ringloop._sys.posix cimport close as close_fd
from ringloop.fs._at cimport new_at
from ringloop.fs._buffers cimport DEFAULT_BUFFER, FIRST_FILL, SYNC, os_error
from ringloop.fs._call cimport NEW, PENDING, Call, make_sendable

cdef extern from "Python.h":
    Py_ssize_t Py_REFCNT(PyObject *o)

cdef object _Unsupported = io.UnsupportedOperation


cdef class BinaryFile:
    """A file opened by `ringloop.fs.open()` in binary mode.

    The methods are those of `io.BufferedReader`, `BufferedWriter` and `BufferedRandom`,
    or of `io.FileIO` with `buffering=0`, as awaitables.
    """

    def __init__(self):
        raise TypeError("use ringloop.fs.open()")

    def __del__(self):
        if self.fd < 0:
            return
        if self.closefd:
            warnings.warn(f"unclosed file {self!r}", ResourceWarning, source=self)
        # As io does: what was written is not lost, if nothing goes wrong.
        self.write_out()
        if self.closefd:
            close_fd(self.fd)
        self.fd = -1

    cdef ssize_t write_out(self) noexcept:
        """Write what waits, blocking; negative: the error."""
        cdef ssize_t r = 1
        while self.wend > self.wpos and (r > 0 or self.refuses_pwrite(r)):
            r = rl_write_at(self.fd, PyBytes_AS_STRING(self.wbuf) + self.wpos,
                            self.wend - self.wpos, self.place(self.wend - self.wpos))
            self.wpos += max(r, 0)
        return min(r, 0)

    def __repr__(self):
        return f"<ringloop.fs.BinaryFile name={self.name!r} mode={self.mode!r}>"

    def read(self, n=-1):
        """Up to `n` bytes, fewer only at the end; all that is left if `n` is negative or None."""
        return new_call(self, READ, None, -1 if n is None else n)

    def read1(self, n=-1):
        """Up to `n` bytes with at most one read of the file."""
        return new_call(self, READ1, None, n)

    def readline(self, limit=-1):
        """A line with its newline; cut after `limit` bytes; b"" at the end."""
        return new_call(self, READLINE, None, -1 if limit is None else limit)

    async def readlines(self, hint=-1):
        """The lines up to the end, or until they have more than `hint` bytes."""
        self.check()
        lines = []
        size = 0
        while line := await self.readline():
            lines.append(line)
            size += len(line)
            if hint is not None and 0 < hint < size:
                break
        return lines

    def readinto(self, buffer):
        """Read into a writable buffer; gives the number of bytes."""
        return new_call(self, READINTO, buffer, 0)

    def readinto1(self, buffer):
        """The same with at most one read of the file."""
        return new_call(self, READINTO1, buffer, 0)

    def peek(self, n=0):
        """What was read ahead, after at most one read; the position stays."""
        return new_call(self, PEEK, None, 0)

    def readall(self):
        """All that is left."""
        return new_call(self, READALL, None, -1)

    def write(self, data):
        """Take `data` to be written; gives its length (of a raw file: what was written).

        It leaves when the buffer is full, on flush() and on close(). After a cancelled
        call nobody knows how much of `data` was taken.
        """
        return new_call(self, WRITE, data, 0)

    async def writelines(self, lines):
        """Write each of them."""
        for line in lines:
            await self.write(line)

    def seek(self, offset, whence=0):
        """Move to `offset` from the start (0), here (1) or the end (2); gives the position."""
        return new_call(self, SEEK, offset, whence)

    def tell(self):
        """The position."""
        return new_call(self, TELL, None, 0)

    def truncate(self, size=None):
        """Make the file `size` bytes long (default: the position); gives the size."""
        return new_call(self, TRUNC, size, 0)

    def flush(self):
        """Write out what waits."""
        return new_call(self, FLUSH, None, 0)

    def fsync(self):
        """flush(), and then until the device has it."""
        return new_call(self, FSYNC, None, 0)

    def fdatasync(self):
        """fsync() without metadata that reading does not need."""
        return new_call(self, FDATASYNC, None, 0)

    def pread(self, Py_ssize_t n, offset):
        """Up to `n` bytes from `offset`; neither needs nor moves the position.

        Any number of tasks may do so at once.
        """
        return new_at(self, None, n, offset)

    def pwrite(self, data, offset):
        """Write all of `data` at `offset`; gives its length. See `pread`."""
        return new_at(self, data, 0, offset)

    def close(self):
        """Write out what waits, wait for what is in flight, close. More than once is no error.

        It completes even if the caller is cancelled; then in a task of its own.
        """
        cdef CloseCall call = CloseCall.__new__(CloseCall)
        call.file = self
        call.urgent = True  # a cancellation must find it closed, or on the way
        return call

    def aclose(self):
        """The same as `close`."""
        return self.close()

    def detach(self):
        """Give the descriptor away: an io.FileIO at the same place. This file is closed then.

        What waits to be written is written, which blocks. ValueError if a call is under way.
        """
        self.check()
        if not self.is_free() or self.inflight:
            raise ValueError("cannot detach: a call on the file is under way")
        r = self.write_out()
        if r < 0:
            raise os_error(-r, self.name)
        if self.can_seek:
            lseek(self.fd, self.pos, SEEK_SET)
        raw = io.FileIO(self.fd, self.mode, closefd=self.closefd)
        raw.name = self.name
        self.closefd = False
        self.close_now()
        return raw

    def fileno(self):
        """The descriptor. Its own position is set to the file's."""
        self.check()
        if self.can_seek and not self.append and self.wend == self.wpos:
            lseek(self.fd, self.pos, SEEK_SET)
        return self.fd

    @property
    def closed(self):
        return self.fd < 0 or self.closing

    def readable(self):
        """True if it was opened for reading."""
        self.check()
        return bool(self.can_read)

    def writable(self):
        """True if it was opened for writing."""
        self.check()
        return bool(self.can_write)

    def seekable(self):
        """True if it has positions."""
        self.check()
        return bool(self.can_seek)

    def isatty(self):
        """True if it is a terminal."""
        self.check()
        return os.isatty(self.fd)

    def __aiter__(self):
        return self

    def __anext__(self):
        if self.line is None or Py_REFCNT(<PyObject *>self.line) > 1:
            self.line = FileLine.__new__(FileLine)
        self.line.state = NEW
        self.line.file = self
        return self.line

    async def __aenter__(self):
        self.check()
        return self

    def __aexit__(self, *exc):
        return self.close()


cdef class FileCall(Step):
    cdef object attempt(self):
        return self.step() if self.file.begin_call() else self.refused()

    cdef object slow(self):
        return self.file.run(self)

    cdef Buffers buffers(self):
        return self.file

    cdef object step(self):
        cdef BinaryFile f = self.file
        cdef int code = self.code
        if code == WRITE:
            if isinstance(self.arg, str) and (f.raw or f.can_write):
                raise TypeError("a bytes-like object is required, not 'str'")
            f.check_write()
            return f.step_write(self)
        if code <= PEEK:
            if code == READALL and f.raw and not f.can_read:
                f.check()
                raise os_error(EBADF, f.name)  # as io has it
            f.check_read()
            if code == READ or code == READALL:
                if self.n < -1 and not f.raw:
                    raise ValueError("read length must be non-negative or -1")
                if self.arg is not None or f.is_big(self.n):
                    return f.step_read_big(self)
                return f.step_read(self.n)
            if code == READLINE:
                return f.step_readline(self.n)
            if code == READ1:
                return f.step_read1(self.n)
            if code == PEEK:
                return f.step_peek()
            return f.step_readinto(self, code == READINTO1)
        f.check()
        if code == SEEK:
            return f.step_seek(self, self.arg, self.n)
        if code == TELL:
            if not f.can_seek:
                raise _Unsupported("underlying stream is not seekable")
            return f.pos
        if code == TRUNC:
            f.check_write()
            return f.step_truncate(self)
        if code == FLUSH:
            return f.step_flush()
        if self.asked:
            return None
        value = f.step_flush()
        if value is PENDING:
            return value
        return f.pend(SYNC, RL_FSYNC_DATASYNC if code == FDATASYNC else 0)


cdef class FileLine(Step):
    """What `async for` awaits. Without the file when it is over, so no cycle is left."""

    cdef object attempt(self):
        return self.step() if self.file.begin_call() else self.refused()

    cdef object slow(self):
        return self.file.run(self)

    cdef Buffers buffers(self):
        return self.file

    cdef object step(self):
        cdef bytes line
        self.file.check_read()
        result = self.file.step_readline(-1)
        if result is PENDING:
            return PENDING
        self.file = None
        line = result
        if not line:
            raise StopAsyncIteration
        return line


cdef FileCall new_call(BinaryFile file, int code, object arg, Py_ssize_t n):
    cdef FileCall call = FileCall.__new__(FileCall)
    call.file = file
    call.code = code
    call.arg = arg
    call.n = n
    return call


cdef class CloseCall(Call):
    cdef BinaryFile file

    cdef object attempt(self):
        cdef BinaryFile f = self.file
        if f.fd < 0:
            return None
        if not f.is_free() or f.inflight or f.closing or f.closes_late():
            return PENDING
        if f.wend > f.wpos:
            try:
                if not f.drain_now():
                    return PENDING
            except BaseException:
                f.close_now()
                raise
        f.close_now()

    cdef object slow(self):
        return self.file._close()


cdef BinaryFile new_file(int fd, object name, str mode, Py_ssize_t buffering, bint closefd,
                         int64_t size):
    """A file object for an open descriptor, which is its own from here on.

    `size` is that of a regular file which was just opened, plainly; else -1.
    """
    cdef BinaryFile f = BinaryFile.__new__(BinaryFile)
    cdef int flags = fcntl(fd, F_GETFL) if size < 0 else 0
    f.name = name
    f.mode = mode
    f.closefd = closefd
    f.can_read = "r" in mode or "+" in mode
    f.can_write = mode[0] != "r" or "+" in mode
    f.append = mode[0] == "a"
    f.raw = buffering == 0
    f.direct = flags >= 0 and flags & O_DIRECT
    f.bufsize = DEFAULT_BUFFER if buffering <= 1 else buffering
    f.fill_size = min(<Py_ssize_t>FIRST_FILL, f.bufsize)
    f.nowait_read = f.nowait_write = not f.direct
    f.size_hint = size
    if size < 0:
        f.pos = lseek(fd, 0, SEEK_END if f.append else SEEK_CUR)
    else:
        # Not SEEK_END: a network file system would ask its server, and wait.
        f.pos = lseek(fd, size, SEEK_SET) if f.append else 0
    f.can_seek = f.pos >= 0
    if not f.can_seek:
        f.pos = 0
    f.fd = fd
    return f


make_sendable(FileCall)
make_sendable(FileLine)
make_sendable(CloseCall)
