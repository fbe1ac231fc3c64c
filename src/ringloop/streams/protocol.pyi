from collections.abc import Coroutine, Iterable
from typing import Any

class ProtocolCore:
    _stream_reader_wr: Any
    _paused: bool
    _connection_lost: bool
    def data_received(self, data: bytes) -> None: ...

class WriterCore:
    _transport: Any
    _protocol: Any
    _reader: Any
    _loop: Any
    def write(self, data: bytes | bytearray | memoryview) -> None: ...
    def writelines(self, data: Iterable[bytes | bytearray | memoryview]) -> None: ...
    def drain(self) -> Coroutine[Any, Any, None]: ...
