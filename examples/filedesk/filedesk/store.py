"""The files themselves, in a folder, by ringloop.fs.

A file is <id>.part until all of it has arrived and is on the disk, then <id>. Names that users
give never become paths.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from ringloop import fs

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator
    from pathlib import Path
    from uuid import UUID

BLOCK = 256 * 1024


class TooMuchError(Exception):
    """More bytes came than were announced."""


class DigestError(Exception):
    """Other bytes came than were sent."""


class Store:
    """A folder of files."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, file_id: UUID) -> Path:
        """Where a complete file is."""
        return self._folder / file_id.hex

    def _part(self, file_id: UUID) -> Path:
        return self._folder / f"{file_id.hex}.part"

    async def start(self) -> None:
        """Make the folder."""
        await fs.makedirs(self._folder, exist_ok=True)

    async def create(self, file_id: UUID) -> None:
        """Make room for a file that will arrive."""
        async with fs.open(self._part(file_id), "xb"):
            pass

    async def write(
        self,
        file_id: UUID,
        offset: int,
        pieces: AsyncIterable[bytes],
        limit: int,
        sha256: bytes | None,
    ) -> int:
        """Write what arrives at `offset`; return the number of bytes that can be relied on.

        Where the sender goes away in the middle these are all that came, unless there is a digest,
        which says nothing about a part. Raise TooMuchError beyond `limit` bytes, and DigestError.
        """
        digest = hashlib.sha256()
        written = 0
        async with fs.open(self._part(file_id), "r+b") as file:
            try:
                async for piece in pieces:
                    if written + len(piece) > limit:
                        raise TooMuchError
                    while piece:
                        n = await file.pwrite(piece, offset + written)
                        digest.update(piece[:n])
                        written += n
                        piece = piece[n:]  # noqa: PLW2901
            except ConnectionError:
                return 0 if sha256 else written
        if sha256 is not None and digest.digest() != sha256:
            raise DigestError
        return written

    async def finish(self, file_id: UUID) -> None:
        """All has arrived: onto the disk, and only then under its own name. Once more is no error.

        Raise FileNotFoundError if it is not there under either name.
        """
        try:
            async with fs.open(self._part(file_id), "r+b") as file:
                await file.fsync()
            await fs.rename(self._part(file_id), self.path(file_id))
        except FileNotFoundError:
            if not await fs.exists(self.path(file_id)):
                raise

    async def read(self, file_id: UUID, start: int, stop: int) -> AsyncIterator[bytes]:
        """The bytes from `start` to before `stop`, in blocks."""
        async with fs.open(self.path(file_id), "rb") as file:
            while start < stop:
                block = await file.pread(min(BLOCK, stop - start), start)
                if not block:
                    raise OSError(f"{file_id} is shorter than it was")
                start += len(block)
                yield block

    async def delete(self, file_id: UUID) -> None:
        """Remove a file, complete or not."""
        for path in (self._part(file_id), self.path(file_id)):
            try:
                await fs.unlink(path)
            except FileNotFoundError:
                pass
