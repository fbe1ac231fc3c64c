"""Names and what is known of them: stat from the caches, changes on the ring or in a thread.

There is no stat that never waits, but an O_PATH descriptor from the dentry cache has
its inode in memory: opening it, fstat and close are three calls that answer at once.
"""
from libc.stdint cimport uint64_t

import os

from ringloop._sys.errno cimport EAGAIN, EINVAL, EMFILE, ENFILE, ENOMEM, ENOSYS, EPERM
from ringloop._sys.files cimport (
    AT_FDCWD, AT_REMOVEDIR, O_CLOEXEC, O_NOFOLLOW, O_PATH, RL_OP_LINKAT, RL_OP_MKDIRAT,
    RL_OP_RENAMEAT, RL_OP_SYMLINKAT, RL_OP_UNLINKAT, known_stat, rl_open_cached, stat_t,
)
from ringloop._sys.posix cimport close as close_fd
from ringloop.fs import _threads
from ringloop.fs._call cimport PENDING, Call, charge, make_sendable
from ringloop.fs._create cimport CreateOp
from ringloop.fs._far cimport is_far, may_be_far


cdef bytes _encode(object path):
    cdef bytes name = os.fsencode(path)
    if b"\0" in name:
        raise ValueError("embedded null byte")
    return name


async def _change(int opcode, path, other, unsigned int length, unsigned int flags):
    """One operation on one or two names."""
    cdef CreateOp op = CreateOp.__new__(CreateOp)
    cdef bytes one = _encode(path)
    cdef bytes two = None if other is None else _encode(other)
    op.keep = (one, two)
    op.op.opcode = opcode
    op.op.fd = AT_FDCWD
    op.op.addr = <uint64_t><char *>one
    if two is not None:
        op.op.off = <uint64_t><char *>two
    op.op.len = length
    op.op.flags = flags
    if opcode == RL_OP_MKDIRAT or opcode == RL_OP_SYMLINKAT:
        op.start_in_folder(one if two is None else two)
    else:
        op.start()
    try:
        await op.wait()
    except BaseException:
        op.cancel()
        raise
    if op.res < 0:
        names = (os.fspath(path),) if other is None else (os.fspath(path), None, os.fspath(other))
        raise OSError(-op.res, os.strerror(-op.res), *names)


def unlink(path):
    """Remove a file or a symbolic link."""
    return _change(RL_OP_UNLINKAT, path, None, 0, 0)


def remove(path):
    """The same as `unlink`."""
    return _change(RL_OP_UNLINKAT, path, None, 0, 0)


def rmdir(path):
    """Remove an empty directory."""
    return _change(RL_OP_UNLINKAT, path, None, 0, AT_REMOVEDIR)


def mkdir(path, mode=0o777):
    """Create a directory."""
    return _change(RL_OP_MKDIRAT, path, None, mode, 0)


def rename(src, dst):
    """Rename a file or directory; a file that has the name `dst` is replaced."""
    return _change(RL_OP_RENAMEAT, src, dst, <unsigned int>AT_FDCWD, 0)


def replace(src, dst):
    """The same as `rename`."""
    return _change(RL_OP_RENAMEAT, src, dst, <unsigned int>AT_FDCWD, 0)


def symlink(src, dst):
    """Create a symbolic link `dst` that points to `src`."""
    return _change(RL_OP_SYMLINKAT, src, dst, 0, 0)


def link(src, dst):
    """Create a hard link `dst` to the file `src`."""
    return _change(RL_OP_LINKAT, src, dst, <unsigned int>AT_FDCWD, 0)


cdef class StatCall(Call):
    cdef object path
    cdef bint follow

    cdef object attempt(self):
        cdef int fd
        cdef stat_t st
        if isinstance(self.path, int):
            if may_be_far() and known_stat(self.path, &st) == 0 and is_far(st.st_dev):
                return PENDING
            return os.fstat(self.path)
        fd = rl_open_cached(_encode(self.path),
                            O_PATH | O_CLOEXEC | (0 if self.follow else O_NOFOLLOW))
        charge(0)
        if fd == -EAGAIN or fd == -EINVAL or fd == -ENOSYS or fd == -EPERM:
            return PENDING
        if fd == -EMFILE or fd == -ENFILE or fd == -ENOMEM:
            return PENDING  # stat(2) needs no descriptor
        if fd < 0:
            raise OSError(-fd, os.strerror(-fd), os.fspath(self.path))
        try:
            if may_be_far() and (known_stat(fd, &st) < 0 or is_far(st.st_dev)):
                return PENDING
            return os.fstat(fd)
        finally:
            close_fd(fd)

    cdef object slow(self):
        if isinstance(self.path, int):
            return _threads.run(os.fstat, self.path)
        return _threads.run(os.stat if self.follow else os.lstat, self.path)


def stat(path, *, follow_symlinks=True):
    """An os.stat_result of a path or descriptor."""
    cdef StatCall call = StatCall.__new__(StatCall)
    call.path = path
    call.follow = follow_symlinks
    return call


def lstat(path):
    """The same without following a symbolic link."""
    return stat(path, follow_symlinks=False)


make_sendable(StatCall)
