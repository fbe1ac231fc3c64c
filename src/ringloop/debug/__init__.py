"""Who holds up a loop, with the stack, while it happens: `watch_stalls()`.

Works on any asyncio event loop; see docs/debugging.md.
"""

from ringloop.debug._stalls import Stall, watch_stalls

__all__ = ["Stall", "watch_stalls"]
