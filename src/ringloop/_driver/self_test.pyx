"""Whether io_uring works here, by trying what cannot be asked for."""
from ringloop._sys.errno cimport EOPNOTSUPP, errno

from ringloop._driver.base cimport Completion, Sink, os_error
from ringloop._driver.uring cimport UringDriver
from ringloop._sys.posix cimport (
    AF_UNIX, SOCK_CLOEXEC, SOCK_STREAM, close as close_fd, socketpair, write,
)


cdef class _TestSink(Sink):
    cdef bytes got

    cdef void completed(self, Completion *c) noexcept:
        if c.res > 0 and self.got is None:
            self.got = c.data[:c.res]


def self_test() -> list:
    """Try what cannot be probed for: multishot receive into provided buffers.

    Gives the names of missing operations; OSError where set-up or the trial fails.
    """
    cdef UringDriver driver = UringDriver()
    cdef _TestSink sink = _TestSink()
    cdef int fds[2]
    cdef int _try
    missing = driver.missing_opcodes()
    if missing:
        return missing
    if socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, fds) < 0:
        raise os_error(errno, "socketpair")
    try:
        driver.attach()
        driver.recv_start(sink, fds[0])
        driver.run(0)
        write(fds[1], b"ringloop", 8)
        for _try in range(10):
            driver.run(0.1)
            if sink.got is not None:
                break
        driver.close()
    finally:
        close_fd(fds[0])
        close_fd(fds[1])
    if sink.got != b"ringloop":
        raise os_error(EOPNOTSUPP, "self-test of multishot receive")
    return []
