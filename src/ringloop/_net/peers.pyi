from typing import final

@final
class Peer: ...
