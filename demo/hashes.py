"""Hashes all files of a tree in one of three ways, and says how far it is.

    python demo/hashes.py synchronous|aiofiles|ringloop FOLDER

Prints "hashed N" now and then, and at the end "digest HEX SECONDS LOOP".
"""

import asyncio
import hashlib
import os
import sys
import time
from collections.abc import Iterator

TASKS = 64
STEP = 100  # Files between two lines.


class Hashes:
    """The hash of each file, by its path."""

    def __init__(self) -> None:
        self.found: dict[str, bytes] = {}

    def add(self, path: str, data: bytes) -> None:
        """Take in a file."""
        self.found[path] = hashlib.sha256(data).digest()
        if len(self.found) % STEP == 0:
            print("hashed", len(self.found), flush=True)

    def digest(self, folder: str) -> str:
        """One hash of all paths and contents."""
        return digest_of({os.path.relpath(path, folder): h for path, h in self.found.items()})


def digest_of(hashes: dict[str, bytes]) -> str:
    """The hash of hashes, by relative paths."""
    whole = hashlib.sha256()
    for path, found in sorted(hashes.items()):
        whole.update(path.encode() + b"\0" + found)
    return whole.hexdigest()


def hash_synchronously(folder: str, hashes: Hashes) -> None:
    """One file after the other."""
    for inside, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(inside, name)
            with open(path, "rb") as file:
                hashes.add(path, file.read())


async def hash_with_aiofiles(folder: str, hashes: Hashes) -> None:
    """Some tasks at once, each of which takes the next file."""
    import aiofiles  # type: ignore[import-untyped]
    import aiofiles.os  # type: ignore[import-untyped]

    async def work(paths: Iterator[str]) -> None:
        for path in paths:
            async with aiofiles.open(path, "rb") as file:
                hashes.add(path, await file.read())

    todo = [folder]
    while todo:
        entries = list(await aiofiles.os.scandir(todo.pop()))
        todo += [entry.path for entry in entries if entry.is_dir()]
        paths = iter([entry.path for entry in entries if entry.is_file()])
        await asyncio.gather(*(work(paths) for _ in range(TASKS)))


async def hash_with_ringloop(folder: str, hashes: Hashes) -> None:
    """As many files at once, in the order in which they are read."""
    from ringloop import fs

    async for inside, _, names in fs.walk(folder):
        paths = [os.path.join(inside, name) for name in names]
        async for path, data in fs.read_many(paths, TASKS):
            hashes.add(path, data)


def main() -> None:
    """Hash, and say the result."""
    way, folder = sys.argv[1:]
    hashes = Hashes()
    used = "none"

    async def run() -> None:
        nonlocal used
        loop = type(asyncio.get_running_loop())
        used = f"{loop.__module__}.{loop.__qualname__}"
        hash_files = hash_with_aiofiles if way == "aiofiles" else hash_with_ringloop
        await hash_files(folder, hashes)

    if way == "ringloop":
        import ringloop

        started = time.perf_counter()
        ringloop.run(run())
    elif way == "aiofiles":
        import aiofiles  # noqa: F401 - it is not what is measured

        started = time.perf_counter()
        asyncio.run(run())
    else:
        started = time.perf_counter()
        hash_synchronously(folder, hashes)
    seconds = time.perf_counter() - started
    print("digest", hashes.digest(folder), f"{seconds:.4f}", used, flush=True)


if __name__ == "__main__":
    main()
