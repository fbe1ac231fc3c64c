"""A tree of files to hash, and what its hash must be."""

import hashlib
import random
from pathlib import Path

from hashes import digest_of

FOLDERS, FILES, BYTES = 100, 100, 4096


def make(folder: Path) -> str:
    """Write 10,000 files of 4 KiB; return the digest of the tree, from what was written."""
    source = random.Random(1)
    hashes = {}
    for i in range(FOLDERS):
        inside = folder / f"{i:03}"
        inside.mkdir()
        for j in range(FILES):
            data = source.randbytes(BYTES)
            path = inside / f"{j:03}"
            path.write_bytes(data)
            hashes[str(path.relative_to(folder))] = hashlib.sha256(data).digest()
    return digest_of(hashes)
