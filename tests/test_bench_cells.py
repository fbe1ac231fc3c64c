"""What the benchmark can measure: every kind has its program, and names are read as written."""

from __future__ import annotations

import pytest

from ringloop.bench import cells, clients, servers
from ringloop.bench.cells import Cell
from ringloop.bench.peers import PEERS


@pytest.mark.parametrize("text", ["protocol:64x1024", "tls_streams:1x1", "redis:64", "nats:1024"])
def test_a_cell_is_written_as_it_is_read(text: str) -> None:
    assert str(Cell.parse(text)) == text


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("protocol", "is not a cell"),
        ("smoke:64x1024", "with a kind of protocol, streams"),
        ("protocol:64", "bytes go from 1"),
        ("protocol:0x1024", "connections go from 1"),
        ("protocol:64x0", "bytes go from 1"),
        ("udp:64x65508", "at most 65507 bytes"),
        ("redis:64x16", "write redis:TASKS"),
        ("redis:0", "with 1 to 1024 tasks"),
    ],
)
def test_what_is_no_cell_is_refused_with_the_reason(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        Cell.parse(text)


def test_every_kind_has_its_program() -> None:
    assert {kind.server for kind in cells.KINDS.values()} - {""} == servers.KINDS.keys()
    assert {name for name, kind in cells.KINDS.items() if kind.service} == clients.KINDS.keys()
    assert all(bool(kind.server) != bool(kind.service) for kind in cells.KINDS.values())


def test_peers_take_part_only_where_they_have_a_program() -> None:
    def of(cell: str) -> set[str]:
        return {name for name, peer in PEERS.items() if peer.takes_part(Cell.parse(cell))}

    loops = {"ringloop-uring", "ringloop-epoll", "uvloop", "rloop", "asyncio"}
    assert of("protocol:1x1") == loops | {"c-uring", "c-epoll"}
    assert of("udp:1x1") == loops | {"c-epoll"}
    assert of("tls_streams:1x1") == loops | {"uvloop+aiofastnet"}
    assert of("redis:1") == of("uvicorn:1x1") == loops
