CREATE: int
MODIFY: int
DELETE: int
DELETE_SELF: int
MOVE_SELF: int
MOVED_FROM: int
MOVED_TO: int
IGNORED: int
OVERFLOW: int
ISDIR: int

def init() -> int: ...
def add_watch(fd: int, path: bytes, mask: int) -> int: ...
