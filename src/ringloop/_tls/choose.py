"""Which TLS engine a connection gets, and the words for why not the direct one."""

from __future__ import annotations

import os
import ssl
from functools import lru_cache
from typing import TYPE_CHECKING

from ringloop._tls.direct import DirectEngine
from ringloop._tls.engine import MemoryEngine
from ringloop._tls.openssl import why_not_direct

if TYPE_CHECKING:
    from ringloop._tls.engine import Engine

NAMES = ("auto", "direct", "memory")


@lru_cache(maxsize=1)
def _chosen() -> tuple[str, str | None]:
    wanted = os.environ.get("RINGLOOP_TLS") or "auto"
    if wanted not in NAMES:
        raise ValueError(f"RINGLOOP_TLS must be one of {', '.join(NAMES)}, not {wanted!r}")
    if wanted == "memory":
        return "memory", "RINGLOOP_TLS asks for it"
    reason = why_not_direct()
    if reason is None:
        return "direct", None
    if wanted == "direct":
        raise RuntimeError(f"libssl cannot be called directly: {reason}")
    return "memory", reason


def engine_info() -> tuple[str, str | None]:
    """The name of the engine, "direct" or "memory", and why it is not the direct one.

    RuntimeError if RINGLOOP_TLS asks for "direct" and that cannot be.
    """
    return _chosen()


def new_engine(context: ssl.SSLContext, server_side: bool, server_hostname: str | None) -> Engine:
    """The engine of a new connection. Raises what `SSLContext.wrap_bio` raises."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    ssl_object = context.wrap_bio(
        incoming, outgoing, server_side=server_side, server_hostname=server_hostname
    )
    # What a message callback or the key log raises is told by the ssl module's own calls only.
    if (
        engine_info()[0] == "direct"
        and type(ssl_object) is ssl.SSLObject
        and ssl_object.context._msg_callback is None  # type: ignore[attr-defined]
        and ssl_object.context.keylog_filename is None
    ):
        return DirectEngine(ssl_object, incoming, outgoing, server_side)
    return MemoryEngine(ssl_object, incoming, outgoing)
