"""One file operation in flight: on the ring of a ringloop, else in a thread.

An `Op` owns its memory and its descriptor until it has *landed*, whoever still waits:
the caller may be cancelled, the kernel goes on. What landing means is for the
subclass: a file takes in what was read although nobody asks any more, an open closes
what it opened.
"""
import asyncio
import os

from ringloop._core.loop cimport CoreLoop, new_future
from ringloop._driver.base cimport Completion
from ringloop._sys.errno cimport EAGAIN, ECANCELED
from ringloop._sys.files cimport RL_OP_READ, rl_file_call, rl_stream_call
from ringloop.fs import _threads

cdef object _get_running_loop = asyncio.get_running_loop


cdef class Op(Sink):
    cdef int start(self) except -1:
        """Begin, on the running loop; `finish` is called there, later."""
        cdef CoreLoop core
        self.loop = _get_running_loop()
        if isinstance(self.loop, CoreLoop):
            core = <CoreLoop>self.loop
            if core.driver.has_file_ops and not self.in_thread and not self.to_terminal():
                self.driver = core.driver
                self.token = core.driver.file_op(self, &self.op, self.keep)
                return 0
        if self.stream and self.watch():
            return 0
        if self.alone:
            _threads.submit_alone(self.loop, self._execute, self._finish)
        else:
            _threads.submit(self.loop, self._execute, self._finish)
        return 0

    cdef bint to_terminal(self) except -1:
        """A terminal's driver waits for room though the ring asks it not to."""
        return self.stream and self.op.opcode != RL_OP_READ and os.isatty(self.op.fd)

    cdef bint watch(self) except -1:
        """Have the loop say when a stream is ready: no thread can be stuck in it then."""
        try:
            if self.op.opcode == RL_OP_READ:
                self.loop.add_reader(self.op.fd, self._ready)
            else:
                self.loop.add_writer(self.op.fd, self._ready)
        except PermissionError:
            return False  # what epoll refuses does not wait
        self.watching = True
        return True

    cdef int unwatch(self) except -1:
        self.watching = False
        if self.op.opcode == RL_OP_READ:
            self.loop.remove_reader(self.op.fd)
        else:
            self.loop.remove_writer(self.op.fd)
        return 0

    def _ready(self):
        cdef ssize_t r = rl_stream_call(&self.op)
        if r != -EAGAIN:
            self.res = r
            self.unwatch()
            self.finish()

    cdef void completed(self, Completion *c) noexcept:
        self.token = 0
        self.res = c.res
        self.driver.to_dispatch(self)

    cdef int dispatch(self) except -1:
        if self.res == -EAGAIN and self.stream and self.watch():
            return 0  # with O_NONBLOCK the ring does not wait
        return self.finish()

    def _execute(self):
        cdef int res
        with nogil:
            res = rl_file_call(&self.op)
        self.res = res

    def _finish(self):
        self.finish()

    cdef int finish(self) except -1:
        self.done = True
        self.land()
        waiters = self.waiters
        self.waiters = None
        if waiters is not None:
            for future in waiters:
                if not future.done():
                    future.set_result(None)
        return 0

    cdef int land(self) except -1:
        """Take in the result, whether or not somebody waits."""
        return 0

    cdef int cancel(self) except -1:
        """Ask for the end; threads cannot be asked."""
        self.stream = False  # it waits no more
        if self.watching:
            self.unwatch()
            self.res = -ECANCELED
            self.loop.call_soon(self._finish)
        if self.token:
            self.driver.cancel(self.token)
        return 0

    async def wait(self):
        """Until it has landed; may be cancelled, which leaves the operation alone."""
        if not self.done:
            await self.waiter()

    cdef object create_future(self):
        return (new_future(<CoreLoop>self.loop) if self.driver is not None
                else self.loop.create_future())

    cdef object waiter(self):
        """A future that resolves, with None, when it has landed."""
        future = self.create_future()
        if self.waiters is None:
            self.waiters = [future]
        else:
            self.waiters.append(future)
        return future


cdef Op new_op(int opcode, int fd):
    cdef Op op = Op.__new__(Op)
    op.op.opcode = opcode
    op.op.fd = fd
    return op
