"""Who is measured: event loops, and C echo servers as the limit."""

from __future__ import annotations

import importlib.metadata
import platform
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ringloop.bench.cells import UDP

if TYPE_CHECKING:
    from ringloop.bench.cells import Cell


@dataclass(frozen=True)
class Peer:
    name: str
    module: str | None = None
    """An event loop's module, with a `new_event_loop()`."""
    driver: str | None = None
    """RINGLOOP_DRIVER."""
    program: str | None = None
    """A C echo server instead: its name in `csrc`, without the ending."""
    udp_program: str | None = None
    """The same for UDP; a C peer without one sits those cells out."""
    patched_by: str | None = None
    """A module that puts its own transports into the loop; measured with TLS only."""

    def takes_part(self, cell: Cell) -> bool:
        """Whether it has a program of this kind."""
        if self.patched_by:
            return cell.kind.tls
        if self.program is None:
            return True
        return self.udp_program is not None if cell.name == UDP else cell.kind.in_c

    @property
    def is_loop(self) -> bool:
        """An event loop as it is: neither C nor patched."""
        return self.module is not None and self.patched_by is None

    @property
    def is_ringloop(self) -> bool:
        return self.module == "ringloop"

    @property
    def version(self) -> str | None:
        """None if it is not installed."""
        if self.program:
            return "C"
        if self.module == "asyncio":
            return platform.python_version()
        assert self.module
        try:
            version = importlib.metadata.version(self.module)
            if self.patched_by:
                version += " + " + importlib.metadata.version(self.patched_by)
            return version
        except importlib.metadata.PackageNotFoundError:
            return None


C_URING = "c-uring"
URING = "ringloop-uring"
EPOLL = "ringloop-epoll"
UVLOOP = "uvloop"

PEERS = {
    peer.name: peer
    for peer in [
        Peer(C_URING, program="echo_uring"),
        Peer("c-epoll", program="echo_epoll", udp_program="echo_udp"),
        Peer(URING, module="ringloop", driver="uring"),
        Peer(EPOLL, module="ringloop", driver="epoll"),
        Peer(UVLOOP, module="uvloop"),
        Peer("uvloop+aiofastnet", module="uvloop", patched_by="aiofastnet"),
        Peer("rloop", module="rloop"),
        Peer("asyncio", module="asyncio"),
    ]
}
"""In the order of tables and plots."""
