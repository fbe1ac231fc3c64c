"""What the benchmark is asked wrongly, it refuses in a line, before it measures."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

import pytest

from ringloop import bench

if TYPE_CHECKING:
    from pathlib import Path


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    parser = argparse.ArgumentParser()
    bench.add_arguments(parser)
    assert bench.main(parser.parse_args(arguments)) == 2
    captured = capsys.readouterr()
    assert not captured.out
    assert len(captured.err.splitlines()) == 1
    return captured.err


@pytest.mark.parametrize("cell", ["files", "protocol:64x1024"])
@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--rounds", "-1"], "--rounds goes from 1 to 100"),
        (["--rounds", "0"], "--rounds goes from 1 to 100"),
        (["--output", "results.txt"], "--output takes a name that ends in .json"),
    ],
)
def test_what_it_cannot_do_is_said(
    cell: str, arguments: list[str], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert why in refused(["--cell", cell, *arguments], capsys)


@pytest.mark.parametrize(
    ("cell", "why"),
    [
        ("files", "--cell files takes no --peer"),
        ("protocol:64x1024", "there is no peer 'nobody'"),
    ],
)
def test_a_peer_that_cannot_be_had_is_said(
    cell: str, why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert why in refused(["--cell", cell, "--peer", "nobody"], capsys)


@pytest.mark.parametrize("cell", ["files", "protocol:64x1024"])
def test_a_folder_that_is_none_is_noticed_at_once(
    cell: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = str(tmp_path / "none" / "results.json")
    assert str(tmp_path / "none") in refused(["--cell", cell, "--output", output], capsys)
