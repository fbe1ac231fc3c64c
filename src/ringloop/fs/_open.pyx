"""`open()`: from the dentry cache where that knows the path, else on the ring or in a thread.

`openat2(RESOLVE_CACHED)` walks the path without waiting for a disk, but opening what
it finds may wait for ever: a FIFO, for its other end. So it is opened with O_NONBLOCK,
which regular files ignore and which is then taken off. The end of a FIFO that was got this
way is held until the waiting open has succeeded: a writer that saw it must not
find it gone.
"""
from libc.stdint cimport uint64_t

import asyncio
import io
import os
import warnings

from ringloop._sys.errno cimport (
    EAGAIN, EINVAL, EISDIR, ENOSYS, ENXIO, EPERM, errno,
)
from ringloop._sys.files cimport (
    AT_FDCWD, F_SETFL, O_ACCMODE, O_APPEND, O_CLOEXEC, O_CREAT, O_EXCL, O_NONBLOCK, O_PATH,
    O_RDONLY, O_RDWR, O_TRUNC, O_WRONLY, RL_OP_OPENAT, S_ISBLK, S_ISCHR, S_ISDIR, S_ISFIFO,
    S_ISREG, fcntl,
    fstat, known_stat, rl_open_cached, stat_t,
)
from ringloop._sys.posix cimport close as close_fd
from ringloop.fs import _threads
from ringloop.fs._call cimport PENDING, charge, make_sendable
from ringloop.fs._create cimport CreateOp
from ringloop.fs._far cimport is_far, may_be_far
from ringloop.fs._file cimport BinaryFile, new_file
from ringloop._driver.base cimport Completion
from ringloop.fs._text cimport new_text

cdef extern from "Python.h":
    int PySys_Audit(const char *event, const char *format, ...) except -1

cdef object _Unsupported = io.UnsupportedOperation
cdef bint _can_open_cached = True


cdef object os_error(int number, object name):
    return OSError(number, os.strerror(number), name)


cdef class _OpenOp(CreateOp):
    """Owns the descriptor that it opened until somebody takes it."""

    cdef bint taken

    def __dealloc__(self):
        if self.op.opcode == RL_OP_OPENAT and self.res >= 0 and self.done and not self.taken:
            close_fd(self.res)

    cdef void completed(self, Completion *c) noexcept:
        self.done = True  # the descriptor is here, also if nobody is told any more
        CreateOp.completed(self, c)

    def _execute(self):
        CreateOp._execute(self)
        self.done = True


class _Partner:
    """A writer for the open of a FIFO that waits for one.

    A real one that found the held end may have written and gone before the thread got to
    its open(), which would wait for ever for the next.
    """

    def __init__(self, loop, held, path):
        self._loop, self._held, self._path = loop, held, path
        self._fd = -1
        loop.add_reader(held, self._was_here)

    def _was_here(self):
        self._loop.remove_reader(self._held)
        try:
            self._fd = os.open(self._path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            pass  # renamed or removed: then the open ends by itself

    def close(self):
        self._loop.remove_reader(self._held)
        if self._fd >= 0:
            os.close(self._fd)


cdef int open_now(bytes path, int flags, stat_t *st, bint *fifo) noexcept:
    """A descriptor from the caches, with O_NONBLOCK, and its stat.

    -EAGAIN or FAR where that may block, or the error. A FIFO's descriptor may come, too.
    """
    global _can_open_cached
    cdef int fd
    cdef bint far
    fifo[0] = False
    if not _can_open_cached:
        return -EAGAIN
    if may_be_far():
        fd = rl_open_cached(path, O_PATH | O_CLOEXEC)
        if fd >= 0:
            far = known_stat(fd, st) < 0 or is_far(st.st_dev)
            close_fd(fd)
            if far:
                return FAR
    fd = rl_open_cached(path, flags | O_NONBLOCK)
    charge(0)
    if fd == -EINVAL or fd == -ENOSYS or fd == -EPERM:
        # An old kernel, or a sandbox that does not know the call; else the way that
        # blocks says the same.
        _can_open_cached = fd == -EPERM
        return -EAGAIN
    if fd == -ENXIO:
        fifo[0] = True  # nobody reads it yet, or a device that is not there
        return -EAGAIN
    if fd < 0:
        return fd
    if fstat(fd, st) < 0:
        close_fd(fd)
        return -EAGAIN
    fifo[0] = S_ISFIFO(st.st_mode)
    return fd


cdef bint is_there(bytes path) noexcept:
    """Whether the dentry cache knows the path."""
    cdef int fd = rl_open_cached(path, O_PATH | O_CLOEXEC)
    if fd < 0:
        return False
    close_fd(fd)
    return True


cdef class OpenCall(Call):
    """What `open()` gives: to be awaited, or entered with `async with`."""

    cdef object attempt(self):
        cdef int fd
        cdef stat_t st
        if self.path is None or self.opener is not None:
            if self.opener is not None:
                return PENDING
            return self.from_fd(self.file, NULL)
        PySys_Audit("open", "OOi", <void *>self.file, <void *>self.mode, self.flags)
        if self.flags & O_CREAT:  # never done from the caches
            self.creates = not is_there(self.path)
            return PENDING
        fd = open_now(self.path, self.flags, &st, &self.fifo)
        if fd == -EAGAIN or fd == FAR:
            self.far = fd == FAR
            return PENDING
        if fd < 0:
            raise os_error(-fd, self.file)
        if self.fifo:
            self.held = fd
            return PENDING
        fcntl(fd, F_SETFL, self.flags & O_APPEND)
        return self.from_fd(fd, &st)

    cdef object slow(self):
        return self.from_opener() if self.opener is not None else self.from_path()

    async def from_path(self):
        cdef int fd = -EAGAIN
        cdef stat_t st
        if not self.fifo:
            fd = await self.open_path(O_NONBLOCK)
            if (fd >= 0 and self.flags & O_ACCMODE == O_RDONLY
                    and known_stat(fd, &st) == 0 and S_ISFIFO(st.st_mode)):
                self.held = fd  # it does not say whether there is a writer
                fd = -EAGAIN
        if fd == -EAGAIN or fd == -ENXIO:  # a FIFO, or another process has a lease on the file
            self.fifo = True
            fd = await self.open_fifo()
        elif fd >= 0:
            fcntl(fd, F_SETFL, self.flags & O_APPEND)
        if fd < 0:
            raise os_error(-fd, self.file)
        return self.from_fd(fd, NULL)

    async def open_path(self, int more_flags):
        """Open on the ring or in a thread; a descriptor or -errno."""
        cdef _OpenOp op = _OpenOp.__new__(_OpenOp)
        op.keep = self.path
        op.alone = self.fifo
        op.in_thread = self.fifo or self.far
        op.op.opcode = RL_OP_OPENAT
        op.op.fd = AT_FDCWD
        op.op.addr = <uint64_t><char *>self.path
        op.op.len = 0o666
        op.op.flags = self.flags | more_flags
        if self.creates and not self.fifo:
            op.start_in_folder(self.path)
        else:
            op.start()
        try:
            await op.wait()
        except BaseException:
            op.cancel()
            raise
        op.taken = True
        return op.res

    async def open_fifo(self):
        """Wait for the other end."""
        partner = None
        try:
            if self.held >= 0:
                partner = _Partner(asyncio.get_running_loop(), self.held, self.path)
            return await self.open_path(0)
        finally:
            if partner is not None:
                partner.close()
            if self.held >= 0:
                close_fd(self.held)
                self.held = -1

    async def from_opener(self):
        fd = await _threads.run(self.opener, self.file, self.flags, dropped=_close_dropped)
        if not isinstance(fd, int):
            raise TypeError("expected integer from opener")
        if fd < 0:
            raise ValueError(f"opener returned {fd}")
        os.set_inheritable(fd, False)
        return self.from_fd(fd, NULL)

    cdef object from_fd(self, int fd, stat_t *known):
        cdef BinaryFile f
        cdef stat_t own_st
        cdef stat_t *st = &own_st if known == NULL else known
        cdef bint own = self.closefd
        cdef int error = 0
        try:
            if known == NULL and known_stat(fd, st) < 0:
                error = errno
                own = False  # it is no descriptor
            elif S_ISDIR(st.st_mode):
                error = EISDIR
            if error:
                raise os_error(error, self.file)
            f = new_file(fd, self.file, self.mode, self.buffering, self.closefd,
                         st.st_size if self.opener is None and self.path is not None
                         and S_ISREG(st.st_mode) else -1)
            if known == NULL:
                may_be_far()  # looks, too, whether there is a new mount
            f.far = is_far(st.st_dev)
            if f.far:
                f.nowait_read = f.nowait_write = False
            f.late_close = f.far or S_ISBLK(st.st_mode)
            self.opened = f
            try:
                if f.can_read and f.can_write and not f.can_seek and not f.raw:
                    raise _Unsupported("File or stream is not seekable.")
                if self.text is not None:
                    mode, encoding, errors, newline = self.text
                    lines = self.buffering == 1 or (
                        self.buffering < 0 and S_ISCHR(st.st_mode) and os.isatty(fd))
                    self.opened = new_text(f, mode, encoding, errors, newline, lines)
            except BaseException:
                f.fd = -1
                raise
        except BaseException:
            if own and self.path is not None:
                close_fd(fd)
            raise
        return self.opened

    def __aenter__(self):
        return self

    def __aexit__(self, *exc):
        return self.opened.close()


def _close_dropped(fd):
    if isinstance(fd, int) and fd >= 0:
        close_fd(fd)


# Flags of each of the four ways, and how io.FileIO calls the mode with and without "+".
_WAYS = {
    "r": (0, "rb", "rb+"),
    "w": (O_CREAT | O_TRUNC, "wb", "rb+"),
    "a": (O_CREAT | O_APPEND, "ab", "ab+"),
    "x": (O_CREAT | O_EXCL, "xb", "xb+"),
}
_MODES = {}  # parsed: (flags, binary mode, is text)


def _parse(mode):
    if not isinstance(mode, str):
        raise TypeError(f"open() argument 'mode' must be str, not {type(mode).__name__}")
    chars = set(mode)
    if chars - set("rwaxbt+") or len(mode) > len(chars):
        raise ValueError(f"invalid mode: {mode!r}")
    if "t" in chars and "b" in chars:
        raise ValueError("can't have text and binary mode at once")
    ways = chars & set("rwax")
    if len(ways) != 1:
        raise ValueError("must have exactly one of create/read/write/append mode")
    way = ways.pop()
    flags, plain, plus = _WAYS[way]
    if "+" in chars:
        flags |= O_RDWR
    else:
        flags |= O_RDONLY if way == "r" else O_WRONLY
    parsed = flags | O_CLOEXEC, plus if "+" in chars else plain, "b" not in chars
    _MODES[mode] = parsed
    return parsed


def open(file, mode="r", buffering=-1, encoding=None, errors=None, newline=None, closefd=True,
         opener=None):
    """Open a file: `await open(...)`, or `async with open(...) as f`.

    The arguments are those of the builtin `open()`, and so are the errors. `opener` is
    called in a thread. Gives a `BinaryFile` or a `TextFile`.
    """
    cdef OpenCall call
    cdef bytes path = None
    parsed = _MODES.get(mode) if type(mode) is str else None
    if parsed is None:
        parsed = _parse(mode)
    flags, binary_mode, text = parsed
    if isinstance(file, int):
        if isinstance(file, bool):
            warnings.warn("bool is used as a file descriptor", RuntimeWarning, stacklevel=2)
        if file < 0:
            raise ValueError("negative file descriptor")
    else:
        file = os.fspath(file)
        path = os.fsencode(file)
        if b"\0" in path:
            raise ValueError("embedded null byte")
        if not closefd:
            raise ValueError("Cannot use closefd=False with file name")
    if text:
        if buffering == 0:
            raise ValueError("can't have unbuffered text I/O")
        if newline is not None and not isinstance(newline, str):
            raise TypeError(f"open() argument 'newline' must be str or None, "
                            f"not {type(newline).__name__}")
        if newline not in (None, "", "\n", "\r", "\r\n"):
            raise ValueError(f"illegal newline value: {newline!r}")
    else:
        for name, value in (("encoding", encoding), ("errors", errors), ("newline", newline)):
            if value is not None:
                raise ValueError(f"binary mode doesn't take an {name} argument")
        if buffering == 1:
            warnings.warn("line buffering (buffering=1) isn't supported in binary mode, the "
                          "default buffer size will be used", RuntimeWarning, stacklevel=2)
    call = OpenCall.__new__(OpenCall)
    call.held = -1
    call.file = file
    call.path = path
    call.flags = flags
    call.mode = binary_mode
    call.buffering = buffering
    call.closefd = closefd
    call.opener = opener
    if text:
        call.text = mode, encoding, errors, newline
    return call


make_sendable(OpenCall)
