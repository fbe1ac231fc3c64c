"""A client of Filedesk's API."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import json
import random
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    import aiohttp

PIECE = 200_000


def content(size: int, seed: int = 1) -> bytes:
    """Lines of hexadecimal digits, the same for the same seed; they pack to about a half."""
    return random.Random(seed).randbytes(size // 2 + 1).hex("\n", 32).encode()[:size]


def digest(data: bytes) -> dict[str, str]:
    """The header with the checksum of a piece."""
    encoded = base64.b64encode(hashlib.sha256(data).digest()).decode()
    return {"Content-Digest": f"sha-256=:{encoded}:"}


class Desk:
    """Asks one server."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self.session = session

    async def announce(self, name: str, size: int, **more: Any) -> dict[str, Any]:
        body = {"name": name, "size": size, **more}
        async with self.session.post("/api/files", json=body) as answer:
            assert answer.status == 201, await answer.text()
            file: dict[str, Any] = await answer.json()
            return file

    async def send(
        self, file_id: str, offset: int, data: Any, headers: dict[str, str] | None = None
    ) -> aiohttp.ClientResponse:
        """One piece; the answer, read."""
        headers = {"Upload-Offset": str(offset)} | (headers or {})
        address = f"/api/files/{file_id}"
        body = io.BytesIO(data) if isinstance(data, bytes) else data
        async with self.session.patch(address, data=body, headers=headers) as answer:
            await answer.read()
            return answer

    async def upload(self, name: str, data: bytes, **more: Any) -> dict[str, Any]:
        file = await self.announce(name, len(data), **more)
        for offset in range(0, len(data), PIECE):
            piece = data[offset : offset + PIECE]
            answer = await self.send(file["id"], offset, piece, digest(piece))
            assert answer.status == 204, answer
        return file

    async def file(self, file_id: str) -> dict[str, Any]:
        async with self.session.get(f"/api/files/{file_id}") as answer:
            assert answer.status == 200, await answer.text()
            file: dict[str, Any] = await answer.json()
            return file

    async def offset(self, file_id: str) -> int:
        async with self.session.head(f"/api/files/{file_id}") as answer:
            return int(answer.headers["Upload-Offset"])

    async def download(self, file_id: str, **headers: str) -> tuple[int, bytes, Any]:
        address = f"/api/files/{file_id}/content"
        async with self.session.get(address, headers=headers) as answer:
            return answer.status, await answer.read(), answer.headers

    async def events(self) -> AsyncGenerator[tuple[str, Any], None]:
        """Kind and data of each server-sent event."""
        async with self.session.get("/api/events") as answer:
            assert answer.content_type == "text/event-stream"
            kind = ""
            while line := (await answer.content.readuntil(b"\n")).decode().rstrip("\n"):
                while line:
                    name, _, value = line.partition(": ")
                    if name == "event":
                        kind = value
                    elif name == "data":
                        yield kind, json.loads(value)
                    line = (await answer.content.readuntil(b"\n")).decode().rstrip("\n")

    async def ended(self, file_id: str) -> dict[str, Any]:
        """The file when its worker is through with it."""
        while (file := await self.file(file_id))["state"] not in ("done", "failed"):
            await asyncio.sleep(0.02)
        return file
