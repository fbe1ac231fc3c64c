from libc.stdint cimport int64_t

from ringloop.fs._call cimport Call

cdef enum:
    DEFAULT_BUFFER = 131072    # most that is read ahead or kept before it is written
    FIRST_FILL = 8192          # what a first small read fetches; doubles while it goes on
    INLINE_MAX = 1048576       # most that one step moves without giving others a turn
    SLOW_CLOSE = 1 << 24       # a file of that size is closed by a thread if it was written

# What a step may need.
cdef enum:
    FILL, DRAIN, DIRECT, SYNC, TRUNCATE, TURN, INTO, SEEK


cdef class Buffers


cdef class Step(Call):
    cdef object arg
    cdef Py_ssize_t n
    cdef bint asked              # what this call needs, and only it, has landed
    cdef Py_ssize_t filled       # of `arg`, the result of a big read
    cdef Py_ssize_t moved        # how far this call has moved `pos` before it is finished

    cdef object step(self)
    cdef Buffers buffers(self)
    cdef object refused(self)


cdef class Buffers:
    cdef readonly object name
    cdef readonly str mode
    cdef int fd                  # -1 once closed
    cdef bint closefd, closing
    cdef bint can_read, can_write, can_seek, append, raw, direct
    cdef bint far                # on a file system that asks another machine or process
    cdef bint late_close         # its close() may wait, however little was written
    cdef bint nowait_read, nowait_write, in_memory, no_pwrite
    cdef int64_t pos             # of the next byte that the user reads or writes
    cdef char *rbuf              # what was read ahead: [rpos, rend), from `pos` on
    cdef Py_ssize_t rcap, rpos, rend
    cdef bint eof                # the last fill found the end
    cdef bytes wbuf              # what waits to be written: [wpos, wend), up to `pos`
    cdef Py_ssize_t wpos, wend
    cdef Py_ssize_t bufsize
    cdef Py_ssize_t fill_size
    cdef int64_t size_hint       # the size when it was opened; -1 when it must be asked
    cdef int need                # why a step is pending, and how much it asks for
    cdef int64_t need_n
    cdef object need_data
    cdef int yielded             # calls that are to try yet
    cdef object served           # the task whose turn it is, as long as there are such calls

    cdef inline bint begin_call(self) noexcept:
        # True if a call may try at once; False: others may come first.
        return self.yielded == 0 and self.begin_now()
    cdef bint begin_now(self) noexcept
    cdef int check(self) except -1
    cdef int check_read(self) except -1
    cdef int check_write(self) except -1
    cdef object pend(self, int need, int64_t n)
    cdef void drop_ahead(self) noexcept
    cdef ssize_t read_now(self, char *p, Py_ssize_t n, int64_t off) except? -100
    cdef ssize_t fill_now(self, Py_ssize_t n) except? -100
    cdef char *room(self, Py_ssize_t n) except NULL
    cdef bytes take(self, Py_ssize_t n)
    cdef int64_t place(self, Py_ssize_t n) noexcept
    cdef bint refuses_pwrite(self, ssize_t r) noexcept
    cdef ssize_t drain_now(self) except -1
    cdef int drained(self, Py_ssize_t n) except -1
    cdef object step_read(self, Py_ssize_t n)
    cdef object step_read_all(self)
    cdef bint is_big(self, Py_ssize_t n) except -1
    cdef object step_read_big(self, Step call)
    cdef object step_read_direct(self, Py_ssize_t n)
    cdef object step_read1(self, Py_ssize_t n)
    cdef object step_readline(self, Py_ssize_t limit)
    cdef object step_readinto(self, Step call, bint once)
    cdef object step_peek(self)
    cdef object step_write(self, Step call)
    cdef object step_write_raw(self, Step call)
    cdef object step_seek(self, Step call, object offset, int whence)
    cdef object step_truncate(self, Step call)
    cdef object step_flush(self)


cdef object os_error(int number, object name)
