"""Listening sockets: accepted fds become transports with the server's protocols."""
from cpython.contextvars cimport (
    PyContext_Copy, PyContext_CopyCurrent, PyContext_Enter, PyContext_Exit,
)
from ringloop._sys.errno cimport (
    EBADF, ECANCELED, EINVAL, EMFILE, ENFILE, ENOBUFS, ENOMEM, ENOTSOCK, EOPNOTSUPP,
)
from libc.stdint cimport uint64_t

import os
from asyncio import constants, trsock

from ringloop._core.loop cimport CoreLoop
from ringloop._driver.base cimport Completion, Driver, Sink
from ringloop._net.stream cimport StreamTransport, new_transport
from ringloop._net.writing cimport set_nodelay
from ringloop._sys.posix cimport close as close_fd


cdef class Listener(Sink):
    """Accepts on one listening socket until `stop()`; owns accepted fds until then."""

    cdef CoreLoop loop
    cdef Driver driver
    cdef object sock
    cdef int family               # of `sock`, whose own attribute is Python code
    cdef object factory
    cdef object sslcontext
    cdef object tls_transport     # the class; only where it is used, as Python may lack ssl
    cdef object server
    cdef dict ssl_timeouts
    cdef object context
    cdef uint64_t token
    cdef list accepted
    cdef int error
    cdef bint stopped
    cdef object retry

    def __init__(self, CoreLoop loop not None, sock, factory, sslcontext, server, ssl_timeouts):
        self.loop = loop
        self.driver = loop.driver
        self.sock = sock
        self.family = sock.family
        self.factory = factory
        self.sslcontext = sslcontext
        if sslcontext is not None:
            from ringloop._tls.transport import TLSTransport
            self.tls_transport = TLSTransport
        self.server = server
        self.ssl_timeouts = ssl_timeouts
        self.context = PyContext_CopyCurrent()
        self.accepted = []
        # Linux hands it down to accepted sockets: one call less for each.
        set_nodelay(sock.fileno(), self.family)

    def __del__(self):
        for fd in self.accepted or ():  # the loop was closed before it told of them
            close_fd(fd)

    def __repr__(self):
        return f"<Listener {self.sock!r}>"

    def start(self):
        self.retry = None
        if not self.stopped and not self.token:
            self.token = self.driver.accept_start(self, self.sock.fileno())

    def stop(self):
        """Accept no more. The socket may be closed when this returns."""
        self.stopped = True
        if self.retry is not None:
            self.retry.cancel()
            self.retry = None
        if self.token:
            self.driver.cancel_now(self.token)
        self.driver.release_fd(self.sock.fileno())

    cdef void completed(self, Completion *c) noexcept:
        if not c.more:
            self.token = 0
        if c.res >= 0:
            if self.stopped:
                close_fd(c.res)
                return
            try:
                self.accepted.append(c.res)
                self.driver.to_dispatch(self)
            except MemoryError:
                close_fd(c.res)
        elif not (self.stopped and c.res == -ECANCELED):
            self.error = -c.res
            try:
                self.driver.to_dispatch(self)
            except MemoryError:
                pass

    cdef int dispatch(self) except -1:
        cdef int fd
        cdef Py_ssize_t i = 0
        cdef list accepted = self.accepted
        self.accepted = []
        try:
            while i < len(accepted):
                fd = accepted[i]
                i += 1
                if self.stopped:
                    close_fd(fd)
                else:
                    self.connected(fd)
        finally:
            # After a SystemExit or KeyboardInterrupt the others wait for the next run.
            if i < len(accepted):
                self.accepted = accepted[i:] + self.accepted
                self.driver.to_dispatch(self)
        if self.error and not self.stopped:
            self.failed()
        return 0

    cdef int connected(self, int fd) except -1:
        """Make the protocol and the transport of a new connection."""
        cdef StreamTransport t
        cdef object context = PyContext_Copy(self.context)
        PyContext_Enter(context)
        try:
            try:
                protocol = self.factory()
                if self.sslcontext is not None:
                    protocol = self.tls_transport(
                        self.loop, protocol, self.sslcontext, self.waiter(),
                        server_side=True, **self.ssl_timeouts)
            except BaseException:
                close_fd(fd)
                raise
            t = new_transport(self.loop, None, fd, self.family, protocol, self.server,
                              context, None)
            t.made()
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self.loop.call_exception_handler({
                "message": "Error on transport creation for incoming connection",
                "exception": exc,
            })
        finally:
            PyContext_Exit(context)
        return 0

    cdef object waiter(self):
        """A future for the TLS handshake, whose failure only debug mode reports."""
        future = self.loop.create_future()
        future.add_done_callback(self._handshake_done)
        return future

    def _handshake_done(self, future):
        if not future.cancelled() and future.exception() is not None and self.loop._debug:
            self.loop.call_exception_handler({
                "message": "Error on transport creation for incoming connection",
                "exception": future.exception(),
            })

    cdef int failed(self) except -1:
        error = OSError(self.error, os.strerror(self.error))
        cdef bint resources = self.error in (EMFILE, ENFILE, ENOBUFS, ENOMEM)
        # It is no listening socket, or not any more.
        cdef bint lasting = self.error in (EBADF, EINVAL, ENOTSOCK, EOPNOTSUPP)
        self.error = 0
        self.loop.call_exception_handler({
            "message": "socket.accept() out of system resource" if resources
                       else "socket.accept() failed",
            "exception": error,
            "socket": trsock.TransportSocket(self.sock),
        })
        if lasting:
            return 0
        # Of what is short, or of one connection. The others wait in the backlog meanwhile;
        # trying at once might spin.
        self.retry = self.loop.call_later(constants.ACCEPT_RETRY_DELAY, self.start)
        return 0
