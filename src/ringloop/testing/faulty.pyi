from ringloop._driver.epoll import EpollDriver

class FaultyDriver(EpollDriver):
    def __init__(self, seed: int = 1, rate: float = 0.3) -> None: ...
    @property
    def faults(self) -> int: ...
    accept_error: int
