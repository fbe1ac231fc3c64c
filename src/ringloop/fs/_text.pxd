from ringloop.fs._buffers cimport Buffers, Step
from ringloop.fs._file cimport BinaryFile

# What a TextCall does.
cdef enum:
    READ, READLINE, WRITE, SEEK, TELL, TRUNC, FLUSH


cdef class TextFile:
    cdef object __weakref__
    cdef readonly BinaryFile buffer
    cdef readonly str mode, encoding, errors
    cdef readonly bint line_buffering
    cdef str newline             # as given to open()
    cdef object decoder, encoder
    cdef bint plain_utf8         # can be encoded without the encoder
    cdef str chars               # decoded and not all read: from `used` on
    cdef Py_ssize_t used
    cdef object flags            # the decoder's state before `fed`, and what it was fed
    cdef object fed              # to give `chars`; None: unknown, `chars` is empty
    cdef Py_ssize_t last         # where in `chars` the last chunk begins, and its state
    cdef object last_flags
    cdef bytes last_fed
    cdef bint simple_lines       # only \n ends a line
    cdef TextLine line           # the last anext(), used again when nobody has it

    cdef int check_read(self) except -1
    cdef int forget(self) except -1
    cdef str decode(self, bytes chunk, bint final, object pending, object flags)
    cdef object more(self)
    cdef int settle(self) except -1
    cdef Py_ssize_t line_end(self, Py_ssize_t start) except -2
    cdef object step_read(self, Py_ssize_t n)
    cdef object step_readline(self, Py_ssize_t limit)
    cdef object step_write(self, TextCall call)
    cdef object step_tell(self)
    cdef object step_seek(self, Step call, object cookie, int whence)
    cdef int rewind_encoder(self, bint at_start) except -1
    cdef int start(self) except -1


cdef class TextCall(Step):
    cdef TextFile file
    cdef int code
    cdef Py_ssize_t length       # of the text that was encoded into `arg`; -1 before
    cdef bint flushes            # when that is written


cdef class TextLine(Step):
    cdef TextFile file


cdef TextFile new_text(BinaryFile buffer, str mode, object encoding, object errors,
                       object newline, bint line_buffering)
