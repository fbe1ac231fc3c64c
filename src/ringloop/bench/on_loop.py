"""Runs a program of the benchmark on one peer's event loop, in a process that holds nothing else.

    python -P on_loop.py --loop uvloop servers.py --kind protocol

The program is a file beside this one, with an `async def main(arguments)`.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import os
import runpy
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Coroutine


def run(loop: str, patched_by: str | None, main: Coroutine[object, object, None]) -> None:
    module = importlib.import_module(loop)
    if loop == "ringloop":
        module.run(main)  # which brings its streams along
        return
    new_event_loop = module.new_event_loop
    if patched_by:
        new_event_loop = importlib.import_module(patched_by).loop_factory(new_event_loop)
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        runner.run(main)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--loop", required=True, help="module that has new_event_loop()")
    parser.add_argument("--patched-by", help="module that has loop_factory(new_event_loop)")
    parser.add_argument("program", help="servers.py, clients.py or micro.py")
    options, rest = parser.parse_known_args()
    try:
        program = runpy.run_path(str(Path(__file__).with_name(options.program)))
        run(options.loop, options.patched_by, program["main"](rest))
    except BaseException:
        traceback.print_exc()  # the last line on stderr is what the harness reports
        sys.stdout.flush()
        os._exit(1)  # says no more
