"""The compiled halves of StreamReaderProtocol and StreamWriter."""
from ringloop._core.loop cimport CoreLoop
from ringloop._net.stream cimport StreamTransport
from ringloop.streams.reader cimport ReaderCore


cdef class ProtocolCore:
    """What runs for each piece of data, and the flags that drain() looks at."""

    cdef public object _stream_reader_wr
    cdef public bint _paused
    cdef public bint _connection_lost

    def data_received(self, data):
        """Feed the reader, if there still is one."""
        if self._stream_reader_wr is not None:
            reader = self._stream_reader_wr()
            if reader is not None:
                reader.feed_data(data)


cdef class WriterCore:
    """What runs for each message."""

    cdef public object _transport
    cdef public object _protocol
    cdef public object _reader
    cdef public object _loop

    def write(self, data):
        """Send `data`, or queue what the socket does not take; see drain()."""
        self._transport.write(data)

    def writelines(self, data):
        """Send a list (or any iterable) of buffers."""
        self._transport.writelines(data)

    cdef bint is_open(self) except -1:
        if type(self._transport) is StreamTransport:
            return not (<StreamTransport>self._transport).closing
        return not self._transport.is_closing()

    cdef bint is_drained(self) except -1:
        """Whether drain() has nothing to wait for and nothing to raise."""
        cdef ProtocolCore protocol
        if not isinstance(self._reader, ReaderCore) or not isinstance(self._protocol, ProtocolCore):
            return False
        protocol = self._protocol
        return not (protocol._paused or protocol._connection_lost
                    or (<ReaderCore>self._reader)._exception is not None
                    or not self.is_open())

    def drain(self):
        """Wait until the transport's buffer has room again.

        Raises the exception with which the connection was lost, or ConnectionResetError.
        """
        # In debug mode always a coroutine: it warns if nobody awaits it.
        if (isinstance(self._loop, CoreLoop) and not (<CoreLoop>self._loop)._debug
                and self.is_drained()):
            return _NOTHING
        return self._drain()


cdef class _Nothing:
    """A coroutine with nothing to do, for anybody and any number of times."""

    def __await__(self):
        return self

    def __iter__(self):
        return self

    def __next__(self):
        raise StopIteration

    def send(self, value):
        raise StopIteration

    def throw(self, kind, value=None, traceback=None):
        raise kind if value is None else value

    def close(self):
        pass


cdef _Nothing _NOTHING = _Nothing()
