"""Flow control of what a transport writes: asyncio's water marks.

pause_writing() is called from inside the call that goes over the high mark,
resume_writing() once what waits is down to the low mark. When that is looked at,
and what is counted in `wsize`, is the transport's business.
"""
from ringloop._driver.base cimport Sink


cdef class FlowControl(Sink):
    """The buffer limits of a transport, and the two callbacks."""

    def __cinit__(self):
        self.high = 65536
        self.low = 16384

    @property
    def _loop(self):
        # asyncio's fallback of sendfile() makes futures of it.
        return self.loop

    def get_write_buffer_size(self):
        return self.wsize

    def get_write_buffer_limits(self):
        return (self.low, self.high)

    def set_write_buffer_limits(self, high=None, low=None):
        if high is None:
            high = 64 * 1024 if low is None else 4 * low
        if low is None:
            low = high // 4
        if not high >= low >= 0:
            raise ValueError(f"high ({high!r}) must be >= low ({low!r}) must be >= 0")
        self.high = high
        self.low = low
        if self.wsize > self.high and not self.protocol_paused:
            self.pause_protocol()

    cdef int pause_protocol(self) except -1:
        self.protocol_paused = True
        try:
            self.protocol.pause_writing()
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self.loop.call_exception_handler({
                "message": "protocol.pause_writing() failed", "exception": exc,
                "transport": self, "protocol": self.protocol,
            })
        return 0

    cdef int resume_protocol(self) except -1:
        self.protocol_paused = False
        try:
            self.protocol.resume_writing()
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as exc:
            self.loop.call_exception_handler({
                "message": "protocol.resume_writing() failed", "exception": exc,
                "transport": self, "protocol": self.protocol,
            })
        return 0
