import ssl

class Engine:
    @property
    def ssl_object(self) -> ssl.SSLObject: ...

class MemoryEngine(Engine):
    def __init__(
        self, ssl_object: ssl.SSLObject, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO
    ) -> None: ...
