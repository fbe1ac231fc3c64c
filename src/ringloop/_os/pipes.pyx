"""Transports of pipes, FIFOs, terminals and other character devices; sockets, too.

Who owns what: the fd belongs to the file object `pipe`, and the transport closes that,
once, after connection_lost(). Before, the transport has stopped its watches at once
(`cancel_now`), so that the kernel holds nothing of the file. It does not deregister
the number: another transport may watch the same terminal through it.

Both ways wait for readiness, as io_uring receives and sends on sockets only. What is
read is 64 KiB at most, what a pipe holds: the 256 KiB that asyncio asks for come from
fresh pages each time, whose faults cost several times the copy. There is one read for
each report: a terminal is shared, and somebody may have made it blocking meanwhile.
"""
cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.contextvars cimport PyContext_CopyCurrent, PyContext_Enter, PyContext_Exit
from cpython.object cimport PyObject
from cpython.ref cimport Py_INCREF
from libc.stdint cimport uint64_t

import asyncio
import logging
import os
import stat
import warnings
from asyncio import constants
from asyncio.futures import _set_result_unless_cancelled

from ringloop._core.loop cimport CoreLoop
from ringloop._driver.base cimport Completion, Driver, Sink
from ringloop._net.flow cimport without_dict
from ringloop._net.writing cimport WriteHalf
from ringloop._sys.bytes cimport shortened
from ringloop._sys.errno cimport EAGAIN, ECANCELED, EIO, EINTR, errno
from ringloop._sys.posix cimport POLLIN, POLLOUT, iovec, poll, pollfd, read, writev

cdef object logger = logging.getLogger("asyncio")
cdef object _ReadTransport = asyncio.ReadTransport
cdef object _Transport = asyncio.transports._FlowControlMixin

cdef enum:
    READ_MAX = 65536        # bytes of a read
    IN_PLACE_MIN = 16384    # after a read of so much, the next goes straight into its bytes
    IOV_MAX = 64            # pieces of a write, as `gather` has it

# Small reads land here and are copied; in use under the GIL, within one function.
cdef char _scratch[READ_MAX]


cdef int open_mode(object pipe, str what) except -1:
    """What kind of file it is; made non-blocking. ValueError for those that never block."""
    cdef int fd = pipe.fileno()
    cdef int mode = os.fstat(fd).st_mode
    if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or stat.S_ISCHR(mode)):
        raise ValueError(what)
    os.set_blocking(fd, False)
    return mode


cdef object error_of(int number):
    return OSError(number, os.strerror(number))


@cython.final
cdef class ReadPipeTransport(Sink):
    """An asyncio.ReadTransport."""

    cdef CoreLoop loop
    cdef Driver driver
    cdef public object _pipe    # None: closed
    cdef int fd
    cdef object protocol
    cdef object context        # every callback of the protocol runs in it
    cdef dict extra
    cdef object __weakref__
    cdef dict __dict__         # attributes can be set, as on asyncio's
    cdef uint64_t token        # the watch
    cdef bint stopping         # its cancel was sent
    cdef bint readable
    cdef bint started          # connection_made() was called
    cdef bint paused
    cdef bint closing
    cdef int error
    cdef ssize_t last          # bytes of the last read

    def __init__(self, CoreLoop loop not None, pipe, protocol, waiter=None, extra=None):
        without_dict(self)
        open_mode(pipe, "Pipe transport is for pipes/sockets only.")
        self.loop = loop
        self.driver = loop.driver
        self._pipe = pipe
        self.fd = pipe.fileno()
        self.protocol = protocol
        self.context = PyContext_CopyCurrent()
        self.extra = dict(extra) if extra else {}
        self.extra["pipe"] = pipe
        loop.schedule(self._connection_made, (), self.context)
        if waiter is not None:
            loop.schedule(_set_result_unless_cancelled, (waiter, None), None)

    @property
    def __class__(self):
        # asyncio.ReadTransport has slots of its own, which no C type can inherit.
        return _ReadTransport

    def __del__(self):
        # Only a loop that was closed lets go of a transport that watches.
        if self._pipe is not None:
            text = f"unclosed transport {self!r}"
            self._pipe.close()
            warnings.warn(text, ResourceWarning, source=self)  # last: it may raise

    def __repr__(self):
        state = ("closed" if self._pipe is None else "closing" if self.closing
                 else "paused" if self.paused else "open")
        return f"<ReadPipeTransport {state} fd={self.fd}>"

    # -- life ------------------------------------------------------------------------

    def _connection_made(self):
        try:
            self.protocol.connection_made(self)
        finally:
            self.started = True
            self.start()

    cdef int start(self) except -1:
        if self.token or self.paused or self.closing or not self.started:
            return 0
        try:
            self.token = self.driver.watch_start(self, self.fd, POLLIN)
        except OSError as exc:
            self.fail(exc)  # a device that cannot be waited for
        return 0

    cdef int stop(self) except -1:
        if self.token and not self.stopping:
            self.stopping = True
            self.driver.cancel(self.token)
        return 0

    cdef int end(self, object exc) except -1:
        """Call connection_lost() soon; the kernel has let go of the file by then."""
        self.closing = True
        if self.token:
            self.driver.cancel_now(self.token)
        self.loop.schedule(self._call_connection_lost, (exc,), self.context)
        return 0

    cdef int fail(self, OSError exc) except -1:
        if self.closing:
            return 0
        if exc.errno != EIO:  # what a terminal says when its other side is closed
            self.loop.call_exception_handler({
                "message": "Fatal read error on pipe transport", "exception": exc,
                "transport": self, "protocol": self.protocol,
            })
        elif self.loop._debug:
            logger.debug("%r: read error on pipe transport", self, exc_info=exc)
        return self.end(exc)

    def _call_connection_lost(self, exc):
        try:
            self.protocol.connection_lost(exc)
        finally:
            self.protocol = None
            pipe = self._pipe
            self._pipe = None
            pipe.close()

    def close(self):
        """Read no more and call connection_lost(None) soon."""
        if not self.closing:
            self.end(None)

    def is_closing(self):
        return self.closing

    # -- reading ---------------------------------------------------------------------

    def is_reading(self):
        return not self.closing and not self.paused

    def pause_reading(self):
        """Deliver nothing until resume_reading()."""
        # The watch is stopped when it reports something: a short pause costs nothing.
        if not self.closing and not self.paused:
            self.paused = True
            if self.loop._debug:
                logger.debug("%r pauses reading", self)

    def resume_reading(self):
        if self.closing or not self.paused:
            return
        self.paused = False
        self.start()
        if self.loop._debug:
            logger.debug("%r resumes reading", self)

    cdef void completed(self, Completion *c) noexcept:
        if not c.more:
            self.token = 0
            if c.res < 0 and not (self.stopping and c.res == -ECANCELED):
                self.error = -c.res
            self.stopping = False
        elif self.paused:
            try:
                self.stop()  # level-triggered: it would tell of the same bytes for ever
            except BaseException:
                pass  # no memory; the next report tries again
            return
        else:
            self.readable = True
        if not self.closing:
            self.driver.to_dispatch(self)

    cdef int dispatch(self) except -1:
        if self.closing:
            return 0
        PyContext_Enter(self.context)
        try:
            if self.error:
                self.fail(error_of(self.error))
            elif self.readable and not self.paused:
                self.read_once()
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self.loop.call_exception_handler({
                "message": f"Exception in a callback of {self!r}", "exception": exc,
                "transport": self, "protocol": self.protocol,
            })
        finally:
            self.readable = False
            PyContext_Exit(self.context)
            self.start()  # if it was stopped in a pause that is over
        return 0

    cdef int read_once(self) except -1:
        cdef bytes data = None
        cdef PyObject *p
        cdef ssize_t n
        if self.last >= IN_PLACE_MIN:
            data = PyBytes_FromStringAndSize(NULL, READ_MAX)
            n = read(self.fd, PyBytes_AS_STRING(data), READ_MAX)
        else:
            n = read(self.fd, _scratch, READ_MAX)
        if n < 0:
            if errno != EAGAIN and errno != EINTR:
                self.fail(error_of(errno))
            return 0
        if n == 0:
            if self.loop._debug:
                logger.info("%r was closed by peer", self)
            self.loop.schedule(self.protocol.eof_received, (), self.context)
            return self.end(None)
        self.last = n
        if data is None:
            data = PyBytes_FromStringAndSize(_scratch, n)
        elif n < READ_MAX:
            p = <PyObject *>data
            Py_INCREF(data)
            data = None
            data = shortened(p, n)
        self.protocol.data_received(data)
        return 0

    # -- what asyncio asks of a transport --------------------------------------------

    def get_extra_info(self, name, default=None):
        """'pipe': the file object; what a layer above has put there."""
        return self.extra.get(name, default)

    def set_protocol(self, protocol):
        self.protocol = protocol

    def get_protocol(self):
        return self.protocol


@cython.final
cdef class WritePipeTransport(WriteHalf):
    """An asyncio.WriteTransport. What it can, write() writes at once."""

    cdef public object _pipe    # None: closed
    cdef object context        # every callback of the protocol runs in it
    cdef dict extra
    cdef object __weakref__
    cdef dict __dict__         # attributes can be set, as on asyncio's
    cdef uint64_t reader_token  # the watch that notices when nobody reads any more
    cdef uint64_t room_token    # the watch for room, while something waits
    cdef bint reader_gone
    cdef bint room
    cdef int error
    cdef bint has_reader       # a device has none that could go away
    cdef bint lost             # connection_lost() was called
    cdef int late              # writes after close()

    def __init__(self, CoreLoop loop not None, pipe, protocol, waiter=None, extra=None):
        cdef int mode = open_mode(
            pipe, "Pipe transport is only for pipes, sockets and character devices")
        without_dict(self)
        self.loop = loop
        self.driver = loop.driver
        self._pipe = pipe
        self._sock_fd = pipe.fileno()
        self.protocol = protocol
        self.context = PyContext_CopyCurrent()
        self.extra = dict(extra) if extra else {}
        self.extra["pipe"] = pipe
        self.has_reader = not stat.S_ISCHR(mode)
        loop.schedule(self._connection_made, (), self.context)
        if waiter is not None:
            loop.schedule(_set_result_unless_cancelled, (waiter, None), None)

    @property
    def __class__(self):
        # asyncio.WriteTransport has slots of its own, which no C type can inherit.
        return _Transport

    def __del__(self):
        if self._pipe is not None:
            text = f"unclosed transport {self!r}"
            self._pipe.close()
            warnings.warn(text, ResourceWarning, source=self)  # last: it may raise

    def __repr__(self):
        state = ("closed" if self._pipe is None else "closing" if self.closing else "open")
        return f"<WritePipeTransport {state} fd={self._sock_fd} bufsize={self.wsize}>"

    # -- life ------------------------------------------------------------------------

    def _connection_made(self):
        try:
            self.protocol.connection_made(self)
        finally:
            if self.has_reader and not self.closing:
                self.reader_token = self.driver.watch_start(self, self._sock_fd, POLLIN)

    cdef int stop(self) except -1:
        """End both watches at once: the file may be closed next."""
        if self.reader_token:
            self.driver.cancel_now(self.reader_token)
        if self.room_token:
            self.driver.cancel_now(self.room_token)
        return 0

    cdef int end(self, object exc) except -1:
        """Drop what is buffered and call connection_lost() soon."""
        if self.conn_lost:
            return 0
        self.closing = True
        self.conn_lost += 1
        self.drop_unsent()
        self.stop()
        self.loop.schedule(self._call_connection_lost, (exc,), self.context)
        return 0

    def _call_connection_lost(self, exc):
        self.lose(exc)

    cdef int lose(self, object exc) except -1:
        if self.lost:
            return 0
        self.lost = True
        self.stop()
        try:
            self.protocol.connection_lost(exc)
        finally:
            self.protocol = None
            pipe = self._pipe
            self._pipe = None
            pipe.close()
        return 0

    def close(self):
        """Write what is buffered, then call connection_lost(None) and close the pipe."""
        self.write_eof()

    def write_eof(self):
        """The same: a pipe has nothing else to say that no more comes."""
        if self.closing:
            return
        self.closing = True
        if self.wsize == 0:
            self.end(None)

    def abort(self):
        """Drop what is buffered and call connection_lost(None) soon."""
        self.end(None)

    def is_closing(self):
        return self.closing

    # -- writing ---------------------------------------------------------------------

    cdef int queue(self, bytes data) except -1:
        if not self.closing:
            return WriteHalf.queue(self, data)
        if self.late >= constants.LOG_THRESHOLD_FOR_CONNLOST_WRITES:
            logger.warning("pipe closed by peer or os.write(pipe, data) raised exception.")
        self.late += 1
        return 0

    cdef int after_queue(self) except -1:
        if not self.send_blocked:
            self.send_now()
        if self.wsize > self.high and not self.protocol_paused:
            self.pause_protocol()
        return 0

    cdef int send_now(self) except -1:
        cdef iovec iov[IOV_MAX]
        cdef ssize_t n, asked
        cdef int i, pieces
        while self.wsize:
            pieces = self.gather(iov)
            asked = 0
            for i in range(pieces):
                asked += iov[i].iov_len
            n = writev(self._sock_fd, iov, pieces)
            if n < 0 and errno != EAGAIN:
                if errno == EINTR:
                    continue
                return self.fail(error_of(errno))
            if n > 0:
                self.consume(n)
            if n < asked:
                self.send_blocked = True
                if self.room_token == 0:
                    self.room_token = self.driver.watch_start(self, self._sock_fd, POLLOUT)
                return 0
        self.send_blocked = False
        if self.room_token:
            self.driver.cancel(self.room_token)
        return 0

    cdef int fail(self, OSError exc) except -1:
        if self.loop._debug:
            logger.debug("%r: write error on pipe transport", self, exc_info=exc)
        return self.end(exc)

    cdef void completed(self, Completion *c) noexcept:
        if c.token == self.reader_token:
            if not c.more:
                self.reader_token = 0
            self.reader_gone = self.reader_gone or c.more
        else:
            if not c.more and c.token == self.room_token:
                self.room_token = 0
            self.room = True
        if not c.more and c.res < 0 and c.res != -ECANCELED:
            self.error = -c.res
        if not self.lost:
            self.driver.to_dispatch(self)

    cdef int dispatch(self) except -1:
        if self.conn_lost:
            return 0
        PyContext_Enter(self.context)
        try:
            self.tell()
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self.loop.call_exception_handler({
                "message": f"Exception in a callback of {self!r}", "exception": exc,
                "transport": self, "protocol": self.protocol,
            })
        finally:
            PyContext_Exit(self.context)
        return 0

    cdef int tell(self) except -1:
        if self.error:
            return self.fail(error_of(self.error))
        if self.room:
            self.room = False
            if self.wsize:
                self.send_now()
        if self.reader_gone and not self.conn_lost:
            self.reader_gone = False
            if self.is_reader_gone():
                if self.loop._debug:
                    logger.info("%r was closed by peer", self)
                return self.end(BrokenPipeError() if self.wsize else None)
        if self.conn_lost:
            return 0
        if self.protocol_paused and self.wsize <= self.low:
            self.resume_protocol()  # may write
        if self.closing and self.wsize == 0 and not self.conn_lost:
            self.conn_lost += 1
            self.lose(None)
        return 0

    cdef bint is_reader_gone(self) noexcept:
        """Reports of readiness may be spurious. A socket that has data counts, as in asyncio."""
        cdef pollfd p
        p.fd = self._sock_fd
        p.events = POLLIN
        p.revents = 0
        return poll(&p, 1, 0) > 0

    # -- what asyncio asks of a transport --------------------------------------------

    def get_extra_info(self, name, default=None):
        """'pipe': the file object; what a layer above has put there."""
        return self.extra.get(name, default)

    def set_protocol(self, protocol):
        self.protocol = protocol

    def get_protocol(self):
        return self.protocol


class PipeMethods:
    """What connect_read_pipe() and connect_write_pipe() of the base class call."""

    def _make_read_pipe_transport(self, pipe, protocol, waiter=None, extra=None):
        return ReadPipeTransport(self, pipe, protocol, waiter, extra)

    def _make_write_pipe_transport(self, pipe, protocol, waiter=None, extra=None):
        return WritePipeTransport(self, pipe, protocol, waiter, extra)
