"""Whole files at once: `read_bytes`, and `read_many` for very many.

From warm caches a file is opened, read and closed in one go, without a file object.
"""
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.object cimport PyObject
from cpython.ref cimport Py_INCREF

import asyncio
import os
from collections import deque

from ringloop._sys.bytes cimport shortened
from ringloop._sys.errno cimport EAGAIN, EISDIR
from ringloop._sys.files cimport (
    O_CLOEXEC, O_RDONLY, S_ISDIR, S_ISREG, rl_read_cached, stat_t,
)
from ringloop._sys.posix cimport close as close_fd
from ringloop.fs._call cimport PENDING, Call, charge, make_sendable
from ringloop.fs._open cimport FAR, open_now
from ringloop.fs._open import open as open_file

cdef extern from "Python.h":
    bytes PyUnicode_EncodeFSDefault(object text)
    int PySys_Audit(const char *event, const char *format, ...) except -1

cdef enum:
    INLINE_MAX = 1048576


cdef object os_error(int number, object name):
    return OSError(number, os.strerror(number), name)


cdef object _read_now(object path):
    """The contents from the caches, or PENDING."""
    cdef object shown = path if type(path) is str else os.fspath(path)
    cdef bytes name = (PyUnicode_EncodeFSDefault(shown) if type(shown) is str
                       else os.fsencode(shown))
    cdef bint fifo
    cdef stat_t st
    cdef Py_ssize_t n, got = 0
    cdef ssize_t r
    cdef PyObject *resized
    cdef bytes data
    cdef int fd
    if b"\0" in name:
        raise ValueError("embedded null byte")
    PySys_Audit("open", "Osi", <void *>shown, <const char *>"rb", O_RDONLY | O_CLOEXEC)
    fd = open_now(name, O_RDONLY | O_CLOEXEC, &st, &fifo)
    if fd == -EAGAIN or fd == FAR:
        return PENDING
    if fd < 0:
        raise os_error(-fd, shown)
    try:
        if fifo or st.st_size > INLINE_MAX:
            return PENDING
        if S_ISDIR(st.st_mode):
            raise os_error(EISDIR, shown)
        if not S_ISREG(st.st_mode):
            return PENDING
        n = st.st_size + 1
        data = PyBytes_FromStringAndSize(NULL, n)
        while True:
            r = rl_read_cached(fd, PyBytes_AS_STRING(data) + got, n - got, got)
            if r < 0:
                return PENDING  # the way that waits tells errors
            charge(r)
            got += r
            if got == n:
                return PENDING  # it grows
            # It ends where it ended when it was opened, though a byte more was asked for: what
            # is beyond, if anything, came in between.
            if r == 0 or got == st.st_size:
                break
        resized = <PyObject *>data
        Py_INCREF(data)
        data = None
        return shortened(resized, got)
    finally:
        close_fd(fd)


async def _read_slowly(path):
    async with open_file(path, "rb") as f:
        return await f.read()


cdef class ReadCall(Call):
    cdef object path

    cdef object attempt(self):
        return _read_now(self.path)

    cdef object slow(self):
        return _read_slowly(self.path)


def read_bytes(path):
    """The contents of a file, as bytes. OSError as `open()` and `read()` raise it."""
    cdef ReadCall call = ReadCall.__new__(ReadCall)
    call.path = path
    return call


cdef class ReadMany:
    """The files one after the other as they are read: an async iterator of (path, bytes)."""

    cdef object paths            # an iterator; None when it is exhausted
    cdef Py_ssize_t concurrency
    cdef bint give_errors
    cdef object ready            # (path, bytes or error) that tasks have brought
    cdef set tasks
    cdef list waiters
    cdef bint closed

    def __aiter__(self):
        return self

    def __anext__(self):
        cdef NextCall call = NextCall.__new__(NextCall)
        call.many = self
        return call

    cdef object give(self, object path, object result):
        if isinstance(result, BaseException) and not self.give_errors:
            raise result
        return path, result

    cdef object step(self):
        """The next one, or PENDING when all that may be in flight is."""
        while True:
            if self.ready:
                path, result = self.ready.popleft()
                return self.give(path, result)
            if self.paths is None:
                if self.tasks:
                    return PENDING
                raise StopAsyncIteration
            if len(self.tasks) >= self.concurrency:
                return PENDING
            try:
                path = next(self.paths)
            except StopIteration:
                self.paths = None
                continue
            try:
                result = _read_now(path)
            except Exception as exc:
                return self.give(path, exc)
            if result is not PENDING:
                return path, result
            task = asyncio.get_running_loop().create_task(self._read(path))
            self.tasks.add(task)
            task.add_done_callback(self._landed)

    async def _read(self, path):
        try:
            return path, await _read_slowly(path)
        except Exception as exc:
            return path, exc

    def _landed(self, task):
        self.tasks.discard(task)
        if not task.cancelled() and not self.closed:
            self.ready.append(task.result())
        self.wake()

    cdef int wake(self) except -1:
        """All of them: whoever finds nothing waits again."""
        waiters, self.waiters = self.waiters, []
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
        return 0

    async def _next(self):
        while True:
            value = self.step()
            if value is not PENDING:
                return value
            waiter = asyncio.get_running_loop().create_future()
            self.waiters.append(waiter)
            await waiter

    async def aclose(self):
        """Stop: nothing is opened any more, and what is in flight is cancelled."""
        self.closed = True
        self.paths = None
        self.ready.clear()
        tasks = list(self.tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.wake()

    async def __aenter__(self):
        return self

    def __aexit__(self, *exc):
        return self.aclose()


cdef class NextCall(Call):
    cdef ReadMany many

    cdef object attempt(self):
        return self.many.step()

    cdef object slow(self):
        return self.many._next()


def read_many(paths, concurrency=64, *, errors="raise"):
    """Read many files, up to `concurrency` at a time: an async iterator of (path, bytes).

    They come in the order in which they are read. With errors="raise" a file that cannot
    be read raises its OSError, after which the iteration can go on; with "return" the
    exception stands in the place of the bytes. If the loop is left early, `aclose()` or
    `async with` stops what is in flight.
    """
    cdef ReadMany many = ReadMany.__new__(ReadMany)
    if concurrency < 1:
        raise ValueError("concurrency must be at least 1")
    if errors not in ("raise", "return"):
        raise ValueError("errors must be 'raise' or 'return'")
    many.paths = iter(paths)
    many.concurrency = concurrency
    many.give_errors = errors == "return"
    many.ready = deque()
    many.tasks = set()
    many.waiters = []
    return many


make_sendable(ReadCall)
make_sendable(NextCall)
