"""Readiness for user code: add_reader and its kin, and one-off waits for sock_*."""
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF, Py_REFCNT
from libc.stdint cimport uint32_t, uint64_t

import asyncio
import os
import sys
import weakref
from asyncio import InvalidStateError, format_helpers

from ringloop._core.handles cimport Handle, new_handle
from ringloop._core.loop cimport CoreLoop, new_future
from ringloop._driver.base cimport Completion, Sink
from ringloop._sys.errno cimport EBADF
from ringloop._sys.posix cimport POLLIN, POLLOUT


cdef class Watch(Sink):
    """One direction of one fd, with the handle that runs each time it is ready."""

    def __init__(self, CoreLoop loop not None, int fd, uint32_t mask, handle, fileobj):
        self.loop = loop
        self.driver = loop.driver
        self.fd = fd
        self.fileobj = fileobj
        self.handle = handle
        self.token = self.driver.watch_start(self, fd, mask)

    def stop(self):
        self.handle.cancel()
        # The kernel must let go of the file now: the caller is about to close it.
        self.driver.cancel_now(self.token)

    cdef void completed(self, Completion *c) noexcept:
        if not self.handle._cancelled:
            if c.res == -EBADF:
                return  # closed by its callback, and no error: as on epoll, it ends
            if not c.more and c.res < 0:
                self.error = -c.res
            self.driver.to_dispatch(self)

    cdef int dispatch(self) except -1:
        if self.handle._cancelled:
            return 0
        if self.error:
            self.loop.call_exception_handler({
                "message": f"watching file descriptor {self.fd} failed",
                "exception": OSError(self.error, os.strerror(self.error)),
                "handle": self.handle,
            })
            return 0
        return self.handle.run()

    def __repr__(self):
        return repr(self.handle)  # for the log of slow callbacks


cdef class WeakWatch(Sink):
    """Calls a function with a loop while `fd` is readable, without keeping the loop alive.

    For what a loop watches all its life: a loop that nobody closed must be collected,
    and say so.
    """

    cdef object loop
    cdef object function
    cdef readonly uint64_t token

    def __init__(self, CoreLoop loop not None, int fd, function):
        self.loop = weakref.ref(loop)
        self.function = function
        self.token = loop.driver.watch_start(self, fd, POLLIN)

    cdef void completed(self, Completion *c) noexcept:
        cdef CoreLoop loop = self.loop()
        if loop is not None and c.res >= 0:
            loop.driver.to_dispatch(self)

    cdef int dispatch(self) except -1:
        loop = self.loop()
        if loop is not None:
            self.function(loop)
        return 0


cdef class Ready(Sink):
    """A future that resolves when an fd is ready, once; maybe spuriously."""

    cdef int stop(self) except -1:
        """Take it back; nothing to do when it has resolved."""
        if self.token:
            self.driver.cancel_now(self.token)  # as for Watch.stop()
        return 0

    cdef void completed(self, Completion *c) noexcept:
        self.token = 0
        self.driver.to_dispatch(self)

    cdef int dispatch(self) except -1:
        # An error is found by the call that waited for this.
        try:
            _set_result(self.future, None)
        except InvalidStateError:
            pass  # cancelled
        return 0


cdef enum:
    SPARE = 64

cdef object _set_result = asyncio.Future.set_result  # not looked up each time
cdef PyObject *_spare[SPARE]  # owned Ready objects, for the next waits; under the GIL
cdef int _nspare


cdef Ready wait_ready(CoreLoop loop, int fd, uint32_t mask):
    global _nspare
    cdef Ready ready
    if fd < 0:
        raise OSError(EBADF, os.strerror(EBADF))
    loop.refuse_transport(fd)
    if _nspare:
        _nspare -= 1
        ready = <Ready>_spare[_nspare]
        Py_DECREF(ready)  # the list's reference; `ready` holds its own
    else:
        ready = Ready.__new__(Ready)
    ready.driver = loop.driver
    ready.future = new_future(loop)
    ready.token = ready.driver.poll(ready, fd, mask)
    return ready


cdef int spare_ready(Ready ready) noexcept:
    """Keep for another wait what has resolved, if only the caller refers to it.

    One that was on its way when its loop was closed says so for ever: it would not be told.
    """
    global _nspare
    if Py_REFCNT(ready) > 1 or ready.in_dispatch:
        return 0
    ready.driver = None
    ready.future = None  # destructors may run here, and fill the list
    if _nspare < SPARE:
        Py_INCREF(ready)
        _spare[_nspare] = <PyObject *>ready
        _nspare += 1
    return 0


def _fileno(fd):
    if isinstance(fd, int):
        n = fd
    else:
        try:
            n = int(fd.fileno())
        except (AttributeError, TypeError, ValueError):
            raise ValueError(f"Invalid file object: {fd!r}") from None
    if n < 0:
        raise ValueError(f"Invalid file descriptor: {n}")
    return n


def _number_before_close(watches, fileobj):
    """The number of a socket that was closed first and is removed now, as asyncio allows."""
    cdef Watch watch
    for watch in watches.values():
        if watch.fileobj is fileobj:
            return watch.fd
    raise ValueError(f"Invalid file descriptor: {fileobj!r} is closed and was not watched")


class WatchMethods:
    """add_reader, add_writer and the private forms that the standard library calls."""

    def _init_watches(self):
        self._readers = {}
        self._writers = {}

    def _add_watch(self, watches, fd, mask, callback, args):
        cdef Handle handle
        self._check_closed()
        n = _fileno(fd)
        handle = new_handle(self, callback, args, None)
        if self.get_debug():
            handle._source_traceback = format_helpers.extract_stack(sys._getframe(0))
        watch = watches.pop(n, None)
        if watch is not None:
            # Begin anew rather than change the handle: if the fd was closed without a
            # removal (libpq does that), the old operation is over or on another file.
            watch.stop()
        watches[n] = Watch(self, n, mask, handle, fd)
        return handle

    def _remove_watch(self, watches, fd):
        if self.is_closed():
            return False
        try:
            n = _fileno(fd)
        except ValueError:
            n = _number_before_close(watches, fd)
        watch = watches.pop(n, None)
        if watch is None:
            return False
        watch.stop()
        return True

    def _add_reader(self, fd, callback, *args):
        return self._add_watch(self._readers, fd, POLLIN, callback, args)

    def _remove_reader(self, fd):
        return self._remove_watch(self._readers, fd)

    def _add_writer(self, fd, callback, *args):
        return self._add_watch(self._writers, fd, POLLOUT, callback, args)

    def _remove_writer(self, fd):
        return self._remove_watch(self._writers, fd)

    def add_reader(self, fd, callback, *args):
        """Call `callback(*args)` whenever `fd` is ready for reading (level-triggered)."""
        self._ensure_fd_no_transport(fd)
        self._add_reader(fd, callback, *args)

    def remove_reader(self, fd):
        """Stop it; True if there was one. Do so before `fd` is closed."""
        self._ensure_fd_no_transport(fd)
        return self._remove_reader(fd)

    def add_writer(self, fd, callback, *args):
        """Call `callback(*args)` whenever `fd` is ready for writing (level-triggered)."""
        self._ensure_fd_no_transport(fd)
        self._add_writer(fd, callback, *args)

    def remove_writer(self, fd):
        """Stop it; True if there was one. Do so before `fd` is closed."""
        self._ensure_fd_no_transport(fd)
        return self._remove_writer(fd)
