"""`TextFile`: a binary file, a decoder and an encoder. The meaning is `io.TextIOWrapper`'s.

Chunks of the binary file are decoded as a whole, and lines cut out of that. Like those of
binary files, steps can be run again: a step that needs another chunk appends it, and
only when it is finished are the chunks before it forgotten (`settle`).

A position in a text is what `io` makes of it: a number with the decoder's state in it. To
compute one inside of a chunk, the chunk is given to a real TextIOWrapper.
"""
from cpython.bytes cimport PyBytes_GET_SIZE
from cpython.object cimport PyObject

import codecs
import io
import locale
import sys
import warnings

from ringloop.fs._buffers cimport INLINE_MAX, TURN
from ringloop.fs._call cimport NEW, PENDING, make_sendable

cdef extern from "Python.h":
    Py_ssize_t Py_REFCNT(PyObject *o)
    Py_ssize_t PyUnicode_FindChar(str s, Py_UCS4 c, Py_ssize_t start, Py_ssize_t end,
                                  int direction) except -2
    str PyUnicode_Substring(str s, Py_ssize_t start, Py_ssize_t end)
    Py_ssize_t PyUnicode_GET_LENGTH(str s)
    bytes PyUnicode_AsUTF8String(str s)

cdef enum:
    CHUNK = 8192  # io's: where reading and writing alternate, it decides what is read
    LONG = 65536  # a text or line of which more is read at once

cdef object _Unsupported = io.UnsupportedOperation
cdef object _NewlineDecoder = io.IncrementalNewlineDecoder


class _Chunk(io.BytesIO):
    """A part of a file, at its place in the whole."""

    def __init__(self, start, data):
        super().__init__(data)
        self.start = start

    def seek(self, offset, whence=0):
        return super().seek(offset - self.start if whence == 0 else offset, whence) + self.start

    def tell(self):
        return super().tell() + self.start


cdef object _pack(object position, object flags):
    """A position whose decoder has state but no bytes."""
    return position | (flags << 64)


cdef class TextFile:
    """A file opened by `ringloop.fs.open()` in text mode.

    The methods are those of `io.TextIOWrapper` as awaitables.
    """

    def __init__(self):
        raise TypeError("use ringloop.fs.open()")

    def __repr__(self):
        return (f"<ringloop.fs.TextFile name={self.name!r} mode={self.mode!r} "
                f"encoding={self.encoding!r}>")

    # -- decoding --------------------------------------------------------------------

    cdef int start(self) except -1:
        """Make decoder and encoder, as far as the file can be read and written."""
        info = codecs.lookup(self.encoding)
        if not info._is_text_encoding:
            raise LookupError(f"{self.encoding!r} is not a text encoding; "
                              "use codecs.open() to handle arbitrary codecs")
        if self.buffer.can_read:
            self.decoder = info.incrementaldecoder(self.errors)
            if not self.newline:
                self.decoder = _NewlineDecoder(self.decoder, self.newline is None)
        if self.buffer.can_write:
            self.encoder = info.incrementalencoder(self.errors)
            self.plain_utf8 = info.name == "utf-8" and self.errors == "strict"
            if self.buffer.can_seek and self.buffer.pos:
                self.rewind_encoder(False)
        return 0

    cdef int rewind_encoder(self, bint at_start) except -1:
        """Make the next write begin with a byte order mark, or not."""
        if self.encoder is not None:
            if at_start:
                self.encoder.reset()
            else:
                self.encoder.setstate(0)
        return 0

    cdef int check_read(self) except -1:
        self.buffer.check()
        if self.decoder is None:
            raise _Unsupported("not readable")
        return 0

    cdef int forget(self) except -1:
        """Drop what was decoded and not read."""
        self.chars = ""
        self.used = self.last = 0
        self.fed = None
        return 0

    cdef str decode(self, bytes chunk, bint final, object pending, object flags):
        """Decode what was just read. What cannot be decoded was not read, except from streams."""
        cdef BinaryFile f = self.buffer
        try:
            return self.decoder.decode(chunk, final)
        except BaseException:
            if f.can_seek:
                self.decoder.setstate((pending, flags))
                f.drop_ahead()
                f.pos -= PyBytes_GET_SIZE(chunk)
            raise

    cdef object more(self):
        """Decode another chunk: True, False at the end, or PENDING."""
        cdef bytes pending, chunk
        cdef str text, chars
        cdef Py_ssize_t unread = PyUnicode_GET_LENGTH(self.chars) - self.used
        data = self.buffer.step_read1(CHUNK if unread < LONG else unread)
        if data is PENDING:
            return PENDING
        chunk = data
        flags = pending = None
        if self.buffer.can_seek:
            pending, flags = self.decoder.getstate()
        text = self.decode(chunk, not chunk, pending, flags)
        if self.used == PyUnicode_GET_LENGTH(self.chars):
            self.chars = text
            self.used = self.last = 0
            if pending is not None:
                self.flags = flags
                self.fed = pending + chunk if pending else chunk
        else:
            self.last = PyUnicode_GET_LENGTH(self.chars)
            chars = self.chars
            self.chars = ""  # so that it can grow in place
            try:
                chars += text
            finally:
                self.chars = chars
            if pending is not None:
                self.last_flags = flags
                self.last_fed = pending + chunk
                if self.fed is not None:
                    if type(self.fed) is bytes:
                        self.fed = bytearray(self.fed)
                    self.fed += chunk
        return bool(chunk or text)

    cdef int settle(self) except -1:
        """A step is finished: forget the chunks that it has read to the end."""
        if self.last and self.used >= self.last:
            self.chars = PyUnicode_Substring(self.chars, self.last,
                                             PyUnicode_GET_LENGTH(self.chars))
            self.used -= self.last
            self.flags = self.last_flags
            self.fed = self.last_fed
            self.last = 0
        return 0

    # -- steps -----------------------------------------------------------------------

    cdef object step_read(self, Py_ssize_t n):
        cdef Py_ssize_t end
        cdef Py_ssize_t unread = PyUnicode_GET_LENGTH(self.chars) - self.used
        cdef Py_ssize_t had = unread
        cdef str text
        if n < 0:
            data = self.buffer.step_read(-1)
            if data is PENDING:
                return PENDING
            pending, flags = self.decoder.getstate()
            text = self.decode(data, True, pending, flags)
            text = self.chars[self.used:] + text
            self.forget()
            return text
        while unread < n:
            if unread - had > INLINE_MAX:
                return self.buffer.pend(TURN, 0)
            found = self.more()
            if found is PENDING:
                return PENDING
            if not found:
                break
            unread = PyUnicode_GET_LENGTH(self.chars) - self.used
        end = min(self.used + n, PyUnicode_GET_LENGTH(self.chars))
        text = PyUnicode_Substring(self.chars, self.used, end)
        self.used = end
        self.settle()
        return text

    cdef Py_ssize_t line_end(self, Py_ssize_t start) except -2:
        """Where the line ends that `chars` has from `used` on; -1 if further on."""
        cdef Py_ssize_t size = PyUnicode_GET_LENGTH(self.chars)
        cdef Py_ssize_t a, b
        if self.simple_lines:
            a = PyUnicode_FindChar(self.chars, c"\n", start, size, 1)
            return a + 1 if a >= 0 else -1
        if self.newline:
            a = self.chars.find(self.newline, max(self.used, start - 1))
            return a + PyUnicode_GET_LENGTH(self.newline) if a >= 0 else -1
        # Each of \n, \r and \r\n; the decoder does not part the last.
        a = PyUnicode_FindChar(self.chars, c"\n", start, size, 1)
        b = PyUnicode_FindChar(self.chars, c"\r", start, size if a < 0 else a, 1)
        if b < 0:
            return a + 1 if a >= 0 else -1
        return b + 2 if b + 1 == a else b + 1

    cdef object step_readline(self, Py_ssize_t limit):
        cdef Py_ssize_t end, size
        cdef Py_ssize_t start = self.used
        cdef Py_ssize_t had = PyUnicode_GET_LENGTH(self.chars) - start
        cdef str text
        if limit < 0 and self.simple_lines:
            end = PyUnicode_FindChar(self.chars, c"\n", start, PyUnicode_GET_LENGTH(self.chars), 1)
            if end >= 0:
                self.used = end + 1
                text = PyUnicode_Substring(self.chars, start, end + 1)
                if self.last:
                    self.settle()
                return text
        while True:
            size = PyUnicode_GET_LENGTH(self.chars)
            end = self.line_end(start) if start < size else -1
            if limit >= 0 and size - self.used >= limit and (limit or size > self.used):
                end = self.used + limit if end < 0 else min(end, self.used + limit)
            if end >= 0:
                break
            start = size - self.used
            if start - had > INLINE_MAX:
                return self.buffer.pend(TURN, 0)
            found = self.more()
            if found is PENDING:
                return PENDING
            start += self.used
            if not found:
                text = self.chars[self.used:]
                self.forget()
                return text
        text = PyUnicode_Substring(self.chars, self.used, end)
        self.used = end
        if self.last:
            self.settle()
        return text

    cdef object step_write(self, TextCall call):
        cdef str text
        if call.length < 0:
            self.buffer.check()
            self.buffer.check_write()
            if not isinstance(call.arg, str):
                raise TypeError(f"write() argument must be str, not {type(call.arg).__name__}")
            text = call.arg
            call.length = PyUnicode_GET_LENGTH(text)
            call.flushes = self.line_buffering and ("\n" in text or "\r" in text)
            if self.newline and self.newline != "\n":
                text = text.replace("\n", self.newline)
            if self.plain_utf8:
                call.arg = PyUnicode_AsUTF8String(text)
            else:
                call.arg = self.encoder.encode(text)
            if self.chars or self.fed is not None:
                self.forget()
            if self.decoder is not None:
                self.decoder.reset()
        if call.n < PyBytes_GET_SIZE(call.arg):
            if self.buffer.step_write(call) is PENDING:
                return PENDING
        if call.flushes and self.buffer.step_flush() is PENDING:
            return PENDING
        return call.length

    cdef object step_tell(self):
        if not self.buffer.can_seek:
            raise _Unsupported("underlying stream is not seekable")
        if self.buffer.step_flush() is PENDING:
            return PENDING
        position = self.buffer.pos
        if self.decoder is None or self.fed is None:
            return position
        position -= len(self.fed)
        if self.used == 0:
            return _pack(position, self.flags)
        chunk = io.TextIOWrapper(_Chunk(position, self.fed), self.encoding, self.errors,
                                 self.newline)
        chunk.seek(_pack(position, self.flags))
        chunk.read(self.used)
        return chunk.tell()

    cdef object step_seek(self, Step call, object cookie, int whence):
        cdef BinaryFile f = self.buffer
        if not f.can_seek:
            raise _Unsupported("underlying stream is not seekable")
        if whence == 1:
            if cookie != 0:
                raise _Unsupported("can't do nonzero cur-relative seeks")
            cookie = self.step_tell()
            if cookie is PENDING:
                return PENDING
        elif whence == 2:
            if cookie != 0:
                raise _Unsupported("can't do nonzero end-relative seeks")
            position = f.step_seek(call, 0, 2)
            if position is not PENDING:
                self.forget()
                if self.decoder is not None:
                    self.decoder.reset()
                self.rewind_encoder(position == 0)
            return position
        elif whence != 0:
            raise ValueError(f"invalid whence ({whence}, should be 0, 1 or 2)")
        if cookie < 0:
            raise ValueError(f"negative seek position {cookie!r}")
        mask = (1 << 64) - 1
        position = cookie & mask
        flags = cookie >> 64 & mask
        to_feed = cookie >> 128 & mask
        to_skip = cookie >> 192 & mask
        need_eof = bool(cookie >> 256)
        if f.step_seek(call, position, 0) is PENDING:
            return PENDING
        self.forget()
        if self.decoder is not None:
            if cookie == 0:
                self.decoder.reset()
            else:
                self.decoder.setstate((b"", flags))
                self.flags = flags
                self.fed = b""
            if to_skip:
                data = f.step_read(to_feed)
                if data is PENDING:
                    return PENDING
                self.chars = self.decoder.decode(data, need_eof)
                self.fed = data
                if len(self.chars) < to_skip:
                    self.forget()
                    raise OSError("can't restore logical file position")
                self.used = to_skip
        self.rewind_encoder(cookie == 0)
        return cookie

    # -- what users call -------------------------------------------------------------

    def read(self, n=-1):
        """Up to `n` characters, fewer only at the end; all that is left if negative or None."""
        return new_call(self, READ, None, -1 if n is None else n)

    def readline(self, limit=-1):
        """A line with its newline; cut after `limit` characters; "" at the end."""
        return new_call(self, READLINE, None, limit)

    async def readlines(self, hint=-1):
        """The lines up to the end, or until they have more than `hint` characters."""
        lines = []
        size = 0
        while line := await self.readline():
            lines.append(line)
            size += len(line)
            if hint is not None and 0 < hint < size:
                break
        return lines

    def write(self, text):
        """Take `text` to be written; gives its length. See `BinaryFile.write`."""
        return new_call(self, WRITE, text, 0)

    async def writelines(self, lines):
        """Write each of them."""
        for line in lines:
            await self.write(line)

    def seek(self, cookie, whence=0):
        """Move to a position that `tell` gave, or to the start (0, 0) or end (0, 2)."""
        return new_call(self, SEEK, cookie, whence)

    def tell(self):
        """The position: a number to give to `seek`."""
        return new_call(self, TELL, None, 0)

    def truncate(self, size=None):
        """Make the file `size` bytes long; gives the size."""
        return new_call(self, TRUNC, size, 0)

    def flush(self):
        """Write out what waits."""
        return new_call(self, FLUSH, None, 0)

    def fsync(self):
        """flush(), and then until the device has it."""
        return self.buffer.fsync()

    def fdatasync(self):
        """fsync() without metadata that reading does not need."""
        return self.buffer.fdatasync()

    def close(self):
        """As `BinaryFile.close`."""
        return self.buffer.close()

    def aclose(self):
        """The same as `close`."""
        return self.close()

    def fileno(self):
        """The descriptor."""
        return self.buffer.fileno()

    @property
    def name(self):
        return self.buffer.name

    @property
    def closed(self):
        return self.buffer.closed

    @property
    def newlines(self):
        """The newlines seen so far: None, a string or a tuple of strings."""
        return getattr(self.decoder, "newlines", None)

    def readable(self):
        """True if it was opened for reading."""
        return self.buffer.readable()

    def writable(self):
        """True if it was opened for writing."""
        return self.buffer.writable()

    def seekable(self):
        """True if it has positions."""
        return self.buffer.seekable()

    def isatty(self):
        """True if it is a terminal."""
        return self.buffer.isatty()

    def __aiter__(self):
        return self

    def __anext__(self):
        if self.line is None or Py_REFCNT(<PyObject *>self.line) > 1:
            self.line = TextLine.__new__(TextLine)
        self.line.state = NEW
        self.line.file = self
        return self.line

    async def __aenter__(self):
        self.buffer.check()
        return self

    def __aexit__(self, *exc):
        return self.buffer.close()


cdef class TextCall(Step):
    cdef object attempt(self):
        return self.step() if self.file.buffer.begin_call() else self.refused()

    cdef object slow(self):
        return self.file.buffer.run(self)

    cdef Buffers buffers(self):
        return self.file.buffer

    cdef object step(self):
        cdef TextFile f = self.file
        cdef int code = self.code
        if code == WRITE:
            return f.step_write(self)
        if code == READLINE:
            f.check_read()
            return f.step_readline(self.n)
        if code == READ:
            f.check_read()
            return f.step_read(self.n)
        f.buffer.check()
        if code == SEEK:
            return f.step_seek(self, self.arg, self.n)
        if code == TELL:
            return f.step_tell()
        if code == TRUNC:
            f.buffer.check_write()
            return f.buffer.step_truncate(self)
        return f.buffer.step_flush()


cdef class TextLine(Step):
    """What `async for` awaits. Without the file when it is over, so no cycle is left."""

    cdef object attempt(self):
        return self.step() if self.file.buffer.begin_call() else self.refused()

    cdef object slow(self):
        return self.file.buffer.run(self)

    cdef Buffers buffers(self):
        return self.file.buffer

    cdef object step(self):
        cdef str line
        self.file.check_read()
        result = self.file.step_readline(-1)
        if result is PENDING:
            return PENDING
        self.file = None
        line = result
        if not line:
            raise StopAsyncIteration
        return line


cdef TextCall new_call(TextFile file, int code, object arg, Py_ssize_t n):
    cdef TextCall call = TextCall.__new__(TextCall)
    call.file = file
    call.code = code
    call.arg = arg
    call.n = n
    call.length = -1
    return call


cdef TextFile new_text(BinaryFile buffer, str mode, object encoding, object errors,
                       object newline, bint line_buffering):
    """A text file over `buffer`, which is its own from here on."""
    cdef TextFile f = TextFile.__new__(TextFile)
    f.buffer = buffer
    f.mode = mode
    if encoding is None:
        if sys.flags.warn_default_encoding:
            warnings.warn("'encoding' argument not specified", EncodingWarning, stacklevel=2)
        encoding = "locale"
    if encoding == "locale":
        encoding = "utf-8" if sys.flags.utf8_mode else locale.getencoding()
    f.encoding = encoding
    f.errors = "strict" if errors is None else errors
    f.newline = newline
    f.simple_lines = newline is None or newline == "\n"
    f.line_buffering = line_buffering
    f.forget()
    f.start()
    return f


make_sendable(TextCall)
make_sendable(TextLine)
