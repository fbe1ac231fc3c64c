from typing import Self

from ringloop._driver.readiness import ReadinessDriver

RECV_BUFFERS: int
RECV_BUFFER_SIZE: int

class UringDriver(ReadinessDriver):
    def __new__(
        cls,
        sq_entries: int = 512,
        cq_entries: int = 8192,
        buffers: int = ...,
        buffer_size: int = ...,
    ) -> Self: ...
    def missing_opcodes(self) -> list[str]: ...

def kernel_version() -> tuple[int, int]: ...
