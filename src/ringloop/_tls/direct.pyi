import ssl
from typing import final

from ringloop._tls.engine import Engine

@final
class DirectEngine(Engine):
    def __init__(
        self,
        ssl_object: ssl.SSLObject,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool,
    ) -> None: ...
