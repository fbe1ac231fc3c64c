"""Error numbers; Cython's own list stops before the ones that sockets need."""
cdef extern from "<errno.h>" nogil:
    int errno
    enum:
        EAGAIN, EBADF, EBUSY, ECANCELED, ECONNABORTED, EEXIST, EINTR, EINVAL
        EIO, EISDIR, EMFILE, ENFILE, ENOBUFS, ENOENT, ENOMEM, ENOSYS, ENOTSOCK, ENXIO, EOPNOTSUPP
        EPERM, ESPIPE, ETIME
