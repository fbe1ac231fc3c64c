"""loop.sock_*: the calls on plain non-blocking sockets.

Each tries at once; only when the kernel says EAGAIN does it wait for readiness and
try again. Waiting for readiness rather than receiving through the driver is what
makes cancellation safe: no byte can have been taken by a call that was given up.
After each wait the fd is asked from the socket anew: if the socket was closed
meanwhile, its number may belong to somebody else.

sock_recv and sock_sendall, the hot two, go straight to the system call.
"""
cimport cython
from cpython.buffer cimport (
    PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer,
)
from cpython.bytes cimport PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from ringloop._sys.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport uint32_t

import os
import socket
import warnings
from asyncio import base_events

from ringloop._core.handles cimport raise_pending
from ringloop._core.loop cimport CoreLoop
from ringloop._core.sendable cimport (
    PYGEN_NEXT, PYGEN_RETURN, rl_make_sendable, send_or_stop,
)
from ringloop._net.watch cimport Ready, spare_ready, wait_ready
from ringloop._sys cimport posix
from ringloop._sys.posix cimport (
    MSG_DONTWAIT, MSG_NOSIGNAL, POLLIN, POLLOUT,
)

cdef extern from *:
    """
    /* The function behind a method without arguments, which saves looking it up; or NULL. */
    static PyCFunction rl_function_of(PyObject *method) {
        PyMethodDef *def;
        if (!Py_IS_TYPE(method, &PyMethodDescr_Type))
            return NULL;
        def = ((PyMethodDescrObject *)method)->d_method;
        return def->ml_flags == METH_NOARGS ? def->ml_meth : NULL;
    }
    """
    ctypedef object (*NoArgs "PyCFunction")(PyObject *, PyObject *)
    NoArgs rl_function_of(object method)

cdef object _socket_type = socket.socket
cdef NoArgs _fileno = rl_function_of(_socket_type.fileno)

# The size asked for is the most the caller can take, not what will come: receive
# here, then allocate what came. Used between two Python statements only, under the GIL.
cdef enum:
    SCRATCH_SIZE = 262144
cdef char _scratch[SCRATCH_SIZE]

# By fd: the last sock_recv there got less than it asked for, so nothing is left and
# trying at once would only cost a system call; the poll that follows notices if there
# is something after all. A hint: wrong for a reused number, it costs one iteration.
cdef enum:
    HINTS = 65536
cdef unsigned char _drained[HINTS]


cdef int _check(CoreLoop loop, object sock, bint plain) except -1:
    if not plain:
        base_events._check_ssl_socket(sock)
    if loop._debug and sock.gettimeout() != 0:
        raise ValueError("the socket must be non-blocking")
    return 0


cdef object _recv_by_socket(object sock, object n):
    """What the socket has now; None if nothing."""
    try:
        return sock.recv(n)
    except (BlockingIOError, InterruptedError):
        return None


cdef object _try_recv(int fd, Py_ssize_t size):
    """The same by the system call, for a `size` of 1 to SCRATCH_SIZE."""
    cdef ssize_t r
    if 0 <= fd < HINTS and _drained[fd]:
        _drained[fd] = 0
        return None
    while True:
        r = posix.recv(fd, _scratch, size, MSG_DONTWAIT)
        if r >= 0:
            if fd < HINTS:
                _drained[fd] = 0 < r < size
            return PyBytes_FromStringAndSize(_scratch, r)
        if errno == EAGAIN:
            return None
        if errno != EINTR:
            raise OSError(errno, os.strerror(errno))


cdef Py_ssize_t _send_by_socket(object sock, object data, Py_ssize_t offset) except -1:
    """How many bytes the socket took now."""
    try:
        return sock.send(memoryview(data).cast("B")[offset:])
    except (BlockingIOError, InterruptedError):
        return 0


cdef Py_ssize_t _try_send(int fd, object data, Py_ssize_t offset) except -1:
    """The same by the system call."""
    cdef Py_buffer view
    cdef ssize_t r
    cdef int err
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    while True:
        r = posix.send(fd, <char *>view.buf + offset, view.len - offset,
                       MSG_DONTWAIT | MSG_NOSIGNAL)
        err = errno
        if r >= 0 or err != EINTR:
            break
    PyBuffer_Release(&view)
    if r >= 0:
        return r
    if err == EAGAIN:
        return 0
    raise OSError(err, os.strerror(err))


@cython.freelist(64)
cdef class _Call:
    """A coroutine made by hand: try, wait until ready, try again.

    A generator costs as much as the rest of a small receive (measured: with compiled
    `async def`, an echo by sock_recv and sock_sendall took 0.8 us more). All fields are
    here, as kinds of calls share the list of spare ones only if they are of one size.
    """

    cdef CoreLoop loop
    cdef object sock
    cdef object data       # what was received, or is to be sent
    cdef object n          # the most to receive, as the caller gave it
    cdef Py_ssize_t sent
    cdef Py_ssize_t size   # of what is to be sent
    cdef Ready ready       # what it waits for
    cdef int fd            # of `sock`, asked for anew before each try
    cdef bint plain        # not a subclass of socket: system calls do
    cdef bint started
    cdef bint done

    cdef bint attempt(self) except -1:
        """Try; True when there is a result."""
        raise NotImplementedError

    cdef object result(self):
        return None

    cdef uint32_t mask(self) noexcept:
        return POLLIN

    cdef str name(self):
        raise NotImplementedError

    cdef int finish(self) except -1:
        self.done = self.started = True
        if self.ready is not None:
            self.ready.stop()
            self.ready = None
        self.data = None
        return 0

    def __await__(self):
        return self

    def __iter__(self):
        return self

    def __next__(self):
        return self.send(None)

    def send(self, value):
        return send_or_stop(self, _send, value)

    def throw(self, kind, value=None, traceback=None):
        self.finish()
        if value is None:
            value = kind if isinstance(kind, BaseException) else kind()
        raise value.with_traceback(traceback) if traceback is not None else value

    def close(self):
        self.finish()

    def __dealloc__(self):
        # Not __del__, which costs as much as making the object.
        if not self.started:
            warnings.warn(f"coroutine {self.name()!r} was never awaited", RuntimeWarning)


cdef object _step(_Call self):
    """The future to wait for; None when it is done."""
    cdef Ready waited
    if self.done:
        raise RuntimeError("cannot reuse already awaited coroutine")
    if not self.started:
        self.started = True
        self.plain = type(self.sock) is _socket_type
        _check(self.loop, self.sock, self.plain)
    elif self.ready is not None:
        waited = self.ready
        self.ready = None  # before the references are counted
        spare_ready(waited)
    if self.plain and _fileno != NULL:
        self.fd = _fileno(<PyObject *>self.sock, NULL)
    else:
        self.fd = self.sock.fileno()
    if self.attempt():
        return None
    self.ready = wait_ready(self.loop, self.fd, self.mask())
    future = self.ready.future
    # What Future.__await__ does before it yields itself to the task.
    future._asyncio_future_blocking = True
    return future


cdef int _failed(_Call self) except -1:
    """After _step(), which left the error set."""
    try:
        raise_pending()
    except BaseException:
        self.finish()
        raise
    return 0


# An error is looked at in _failed(): a `try` costs each call as much as a small step.
ctypedef PyObject *(*StepRaw)(_Call) noexcept


cdef int _send(PyObject *p, PyObject *arg, PyObject **result) except -1:
    cdef PyObject *future = (<StepRaw>_step)(<_Call>p)
    if future == NULL:
        _failed(<_Call>p)
    if future != <PyObject *>None:
        result[0] = future
        return PYGEN_NEXT
    Py_DECREF(None)
    (<_Call>p).done = True
    value = (<_Call>p).result()
    (<_Call>p).data = None
    Py_INCREF(value)
    result[0] = <PyObject *>value
    return PYGEN_RETURN


cdef class _RecvCall(_Call):
    cdef bint attempt(self) except -1:
        cdef Py_ssize_t n = self.n if type(self.n) is int else -1
        if self.plain and 0 < n <= SCRATCH_SIZE:
            self.data = _try_recv(self.fd, n)
        else:
            self.data = _recv_by_socket(self.sock, self.n)
        return self.data is not None

    cdef object result(self):
        return self.data

    cdef str name(self):
        return "sock_recv"


cdef class _SendAllCall(_Call):
    cdef bint attempt(self) except -1:
        if self.sent == 0:
            if type(self.data) is bytes:
                self.size = PyBytes_GET_SIZE(self.data)
            else:
                # Held until all is sent: a bytearray must not be resized meanwhile.
                self.data = memoryview(self.data)
                self.size = self.data.nbytes
        if self.plain:
            self.sent += _try_send(self.fd, self.data, self.sent)
        else:
            self.sent += _send_by_socket(self.sock, self.data, self.sent)
        return self.sent >= self.size

    cdef uint32_t mask(self) noexcept:
        return POLLOUT

    cdef str name(self):
        return "sock_sendall"


rl_make_sendable(_RecvCall, _send)
rl_make_sendable(_SendAllCall, _send)


class SocketMethods:
    """The sock_* methods of the event loop."""

    async def _wait_for_fd(self, sock, uint32_t mask):
        cdef Ready ready = wait_ready(self, sock.fileno(), mask)
        try:
            await ready.future
        finally:
            ready.stop()

    async def _retry(self, sock, mask, method, *args):
        """Call a method of `sock` until it does not block."""
        _check(self, sock, type(sock) is _socket_type)
        while True:
            try:
                return getattr(sock, method)(*args)
            except (BlockingIOError, InterruptedError):
                pass
            await self._wait_for_fd(sock, mask)

    def sock_recv(self, sock, n):
        """Receive up to `n` bytes from `sock`. A coroutine."""
        cdef _RecvCall call = _RecvCall.__new__(_RecvCall)
        call.loop = self
        call.sock = sock
        call.n = n
        return call

    async def sock_recv_into(self, sock, buf):
        """Receive into a writable buffer; gives the number of bytes."""
        return await self._retry(sock, POLLIN, "recv_into", buf)

    async def sock_recvfrom(self, sock, bufsize):
        """Receive a datagram; gives (bytes, address)."""
        return await self._retry(sock, POLLIN, "recvfrom", bufsize)

    async def sock_recvfrom_into(self, sock, buf, nbytes=0):
        """Receive a datagram into a writable buffer; gives (number of bytes, address)."""
        return await self._retry(sock, POLLIN, "recvfrom_into", buf, nbytes or len(buf))

    def sock_sendall(self, sock, data):
        """Send all of `data`; after an error nobody knows how much has left. A coroutine."""
        cdef _SendAllCall call = _SendAllCall.__new__(_SendAllCall)
        call.loop = self
        call.sock = sock
        call.data = data
        return call

    async def sock_sendto(self, sock, data, address):
        """Send a datagram to `address`; gives the number of bytes sent."""
        return await self._retry(sock, POLLOUT, "sendto", data, address)

    async def sock_accept(self, sock):
        """Accept a connection; gives (socket, address), the socket non-blocking."""
        conn, address = await self._retry(sock, POLLIN, "accept")
        conn.setblocking(False)
        return conn, address

    async def sock_connect(self, sock, address):
        """Connect `sock` to `address`, resolving its host name if it has one."""
        _check(self, sock, type(sock) is _socket_type)
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            resolved = await self._ensure_resolved(
                address, family=sock.family, type=sock.type, proto=sock.proto, loop=self)
            address = resolved[0][4]
        try:
            # At once rather than with the next submission: code that runs before the
            # loop does (a blocking accept, say) may count on the attempt being made.
            sock.connect(address)
            return
        except InterruptedError:
            pass  # goes on in the background
        except BlockingIOError as exc:
            if exc.errno == EAGAIN:
                raise  # a Unix socket's backlog is full; it will never become ready
            # Else the attempt goes on: this one, or an earlier one that was given up.
        await self._wait_for_fd(sock, POLLOUT)
        error = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error:
            raise OSError(error, f"Connect call failed {address}")
