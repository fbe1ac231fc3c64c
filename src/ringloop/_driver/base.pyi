from enum import IntEnum

FORKED: str

class OpKind(IntEnum):
    OP_NONE = 0
    OP_WAKE = 1
    OP_RECV = 2
    OP_SEND = 3
    OP_SENDV = 4
    OP_ACCEPT = 5
    OP_POLL = 6
    OP_WATCH = 7
    OP_EPOLL = 8
    OP_FILE = 9

class Sink: ...

class Driver:
    @property
    def name(self) -> str: ...
    @property
    def closed(self) -> bool: ...
    @property
    def abandoned(self) -> bool: ...
    @property
    def has_file_ops(self) -> bool: ...
    @property
    def live(self) -> int: ...
    def features(self) -> dict[str, bool | int]: ...
