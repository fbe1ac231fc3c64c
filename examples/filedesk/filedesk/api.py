"""The HTTP API and the page. `create_app()` is the factory that servers call.

An upload is announced (POST), sent in pieces of any size (PATCH at Upload-Offset), and resumed
where HEAD says it is.
"""

import base64
import binascii
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from importlib.resources import files
from pathlib import Path
from typing import Annotated
from urllib.parse import quote
from uuid import UUID, uuid4

from fastapi import APIRouter, FastAPI, Header, HTTPException, Request, Response
from fastapi.responses import HTMLResponse, StreamingResponse
from pydantic import BaseModel, Field
from starlette.requests import ClientDisconnect

from filedesk import ranges
from filedesk.broker import Event, make_broker
from filedesk.database import Database, File, State
from filedesk.live import Live
from filedesk.settings import Settings
from filedesk.store import DigestError, Store, TooMuchError
from filedesk.worker import Workers

DELETED = "the file was deleted while it arrived"
router = APIRouter()


class Services:
    """What the handlers work with."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.database = Database(settings.database_url)
        self.store = Store(Path(settings.folder))
        self.broker = make_broker(settings)
        self.live = Live()
        self._writing: set[UUID] = set()

    @asynccontextmanager
    async def running(self, *, web: bool = True, workers: bool = True) -> AsyncIterator[None]:
        """Connect to everything and work; on the way out, all is closed."""
        await self.store.start()
        try:
            await self.database.start()
            await self.broker.start()
            try:
                if web:
                    await self.broker.listen(self.live.told)
                    await self._take_up()
                number = self.settings.workers if workers else 0
                async with Workers(self.database, self.store, self.broker).running(number):
                    yield
            finally:
                await self.broker.close()
        finally:
            await self.database.close()

    async def _take_up(self) -> None:
        """Go on with what a process that was killed had not passed on."""
        for file in await self.database.complete():
            with suppress(HTTPException):  # its content is gone
                await self.arrived(file)
        for file_id in await self.database.waiting():
            await self.broker.submit(file_id)

    async def need(self, file_id: UUID) -> File:
        """The file, or the answer 404."""
        file = await self.database.get(file_id)
        if file is None:
            raise HTTPException(404, "there is no such file")
        return file

    @contextmanager
    def writing(self, file_id: UUID) -> Iterator[None]:
        """Nobody else writes to the file in this block."""
        if file_id in self._writing:
            raise HTTPException(423, "another request writes to this file")
        self._writing.add(file_id)
        try:
            yield
        finally:
            self._writing.discard(file_id)

    async def arrived(self, file: File) -> File:
        """Tell of what has arrived; if it is all, keep the file and have it examined."""
        if file.received == file.size:
            try:
                await self.store.finish(file.id)
            except FileNotFoundError:
                raise HTTPException(404, DELETED) from None
            arrives = File.state == State.UPLOADING
            queued = await self.database.change(file.id, arrives, state=State.QUEUED)
            # A process that has just started may have been first.
            kept = queued or await self.database.get(file.id)
            if kept is None:
                raise HTTPException(404, DELETED)
            file = kept
        await self.broker.publish(file.shown())
        if file.state == State.QUEUED:  # Told before, or it might be told after the worker's news.
            await self.broker.submit(file.id)
        return file


def create_app(settings: Settings | None = None, *, workers: bool = True) -> FastAPI:
    """The application; the settings come from the environment if they are not given."""
    services = Services(settings or Settings.from_environment())

    @asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        async with services.running(workers=workers):
            yield

    app = FastAPI(title="Filedesk", lifespan=lifespan)
    app.state.services = services
    app.include_router(router)
    return app


def _services(request: Request) -> Services:
    services: Services = request.app.state.services
    return services


class Announcement(BaseModel):
    """A file that is to be uploaded."""

    name: str = Field(min_length=1, max_length=255)
    size: int = Field(ge=0)
    sha256: str | None = Field(default=None, pattern="^[0-9a-f]{64}$")


@router.get("/", include_in_schema=False)
async def page() -> HTMLResponse:
    """The page, all in one file."""
    return HTMLResponse(files("filedesk").joinpath("page.html").read_text("utf-8"))


@router.post("/api/files", status_code=201)
async def announce(wanted: Announcement, request: Request) -> Event:
    """Announce an upload; the answer has its id."""
    services = _services(request)
    if wanted.size > services.settings.max_bytes:
        raise HTTPException(413, f"files may have {services.settings.max_bytes:,} bytes")
    file = File(
        id=uuid4(), name=wanted.name, size=wanted.size, expected_sha256=wanted.sha256, received=0
    )
    await services.store.create(file.id)
    await services.database.add(file)
    return (await services.arrived(file)).shown()


@router.patch("/api/files/{file_id}", status_code=204)
async def upload(
    file_id: UUID,
    request: Request,
    upload_offset: Annotated[int, Header(ge=0)],
    content_digest: Annotated[str | None, Header()] = None,
) -> Response:
    """Send more of a file; Content-Digest (RFC 9530, sha-256) has it checked on arrival."""
    services = _services(request)
    with services.writing(file_id):
        file = await services.need(file_id)
        if file.state != State.UPLOADING or upload_offset != file.received:
            headers = {"Upload-Offset": str(file.received)}
            raise HTTPException(409, f"the file has {file.received} bytes", headers)
        limit = file.size - file.received
        sha256 = _sha256(content_digest)
        try:
            written = await services.store.write(
                file_id, upload_offset, _body(request), limit, sha256
            )
        except TooMuchError:
            raise HTTPException(413, "more bytes came than were announced") from None
        except DigestError:
            raise HTTPException(400, "the bytes that came have another digest") from None
        except FileNotFoundError:
            raise HTTPException(404, DELETED) from None
        received = upload_offset + written
        where_it_was = File.received == upload_offset
        changed = await services.database.change(file_id, where_it_was, received=received)
        if changed is None:
            raise HTTPException(409, "the file was deleted, or another process wrote to it")
        await services.arrived(changed)
    return Response(status_code=204, headers={"Upload-Offset": str(received)})


async def _body(request: Request) -> AsyncIterator[bytes]:
    try:
        async for piece in request.stream():
            yield piece
    except ClientDisconnect:
        raise ConnectionError("the sender went away") from None


def _sha256(header: str | None) -> bytes | None:
    found = re.search(r"sha-256=:([A-Za-z0-9+/=]+):", header or "")
    if found is None:
        return None
    try:
        return base64.b64decode(found[1], validate=True)
    except binascii.Error:
        raise HTTPException(400, "Content-Digest is not in base64") from None


@router.head("/api/files/{file_id}")
async def offset(file_id: UUID, request: Request) -> Response:
    """How much has arrived."""
    file = await _services(request).need(file_id)
    headers = {"Upload-Offset": str(file.received), "Upload-Length": str(file.size)}
    return Response(headers=headers | {"Cache-Control": "no-store"})


@router.get("/api/files")
async def listing(request: Request) -> list[Event]:
    """The newest files."""
    return [file.shown() for file in await _services(request).database.newest()]


@router.get("/api/files/{file_id}")
async def one(file_id: UUID, request: Request) -> Event:
    """One file."""
    return (await _services(request).need(file_id)).shown()


@router.delete("/api/files/{file_id}", status_code=204)
async def remove(file_id: UUID, request: Request) -> None:
    """Forget a file, whatever its state."""
    services = _services(request)
    if not await services.database.delete(file_id):
        raise HTTPException(404, "there is no such file")
    await services.store.delete(file_id)
    await services.broker.publish({"id": str(file_id), "gone": True})


@router.get("/api/files/{file_id}/content")
async def content(
    file_id: UUID,
    request: Request,
    range: Annotated[str | None, Header()] = None,
    if_range: Annotated[str | None, Header()] = None,
) -> Response:
    """The file itself, or a range of it."""
    services = _services(request)
    file = await services.need(file_id)
    if file.state == State.UPLOADING:
        raise HTTPException(409, "the file has not arrived yet")
    etag = f'"{file.id.hex}"'  # What has arrived never changes.
    # No browser shall take a stranger's file for a page of ours.
    headers = {
        "Content-Disposition": f"attachment; filename*=UTF-8''{quote(file.name, safe='')}",
        "X-Content-Type-Options": "nosniff",
        "Accept-Ranges": "bytes",
        "ETag": etag,
    }
    try:
        found = ranges.parse(range if if_range in (None, etag) else None, file.size)
    except ranges.RangeError:
        raise HTTPException(
            416, "there is nothing in that range", {"Content-Range": f"bytes */{file.size}"}
        ) from None
    start, stop = found or (0, file.size)
    if found:
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{file.size}"
    headers["Content-Length"] = str(stop - start)
    return StreamingResponse(
        services.store.read(file_id, start, stop),
        206 if found else 200,
        headers,
        "application/octet-stream",
    )


@router.get("/api/events")
async def events(request: Request) -> StreamingResponse:
    """All files, then each change, as server-sent events."""
    services = _services(request)

    async def snapshot() -> list[Event]:
        return [file.shown() for file in await services.database.newest()]

    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return StreamingResponse(services.live.stream(snapshot), 200, headers, "text/event-stream")
