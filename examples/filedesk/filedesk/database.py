"""The table of files: where each is on its way, and what was found in it."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from sqlalchemy import BigInteger, DateTime, delete, event, select, text, update
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy import ColumnElement

NEWEST = 200  # files that are listed
SCHEMA_LOCK = 0x66696C65  # any number that nobody else locks


class State(StrEnum):
    """Where a file is on its way."""

    UPLOADING = "uploading"
    QUEUED = "queued"
    WORKING = "working"
    DONE = "done"
    FAILED = "failed"


class Base(DeclarativeBase):
    """What SQLAlchemy knows of our tables."""


def _now() -> datetime:
    return datetime.now(UTC)


class File(Base):
    """A file, from the announcement of its upload on."""

    __tablename__ = "filedesk_files"

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=uuid.uuid4)
    name: Mapped[str]
    size: Mapped[int] = mapped_column(BigInteger)
    received: Mapped[int] = mapped_column(BigInteger, default=0)
    expected_sha256: Mapped[str | None]
    state: Mapped[str] = mapped_column(default=State.UPLOADING, index=True)
    created: Mapped[datetime] = mapped_column(DateTime(timezone=True), default=_now, index=True)
    # What the worker found.
    sha256: Mapped[str | None]
    lines: Mapped[int | None] = mapped_column(BigInteger)
    packed: Mapped[int | None] = mapped_column(BigInteger)
    error: Mapped[str | None]

    def shown(self, examined: int | None = None) -> dict[str, Any]:
        """As the API shows it; `examined` is how many bytes the worker has seen."""
        if examined is None:
            examined = self.size if self.state == State.DONE else 0
        return {
            "id": str(self.id),
            "name": self.name,
            "size": self.size,
            "received": self.received,
            "examined": examined,
            "state": self.state,
            "created": self.created.replace(tzinfo=UTC).isoformat(),  # SQLite forgets the zone
            "sha256": self.sha256,
            "lines": self.lines,
            "packed": self.packed,
            "error": self.error,
        }


class Database:
    """The table, in SQLite or PostgreSQL."""

    def __init__(self, url: str) -> None:
        self._engine = create_async_engine(url)
        self._session = async_sessionmaker(self._engine, expire_on_commit=False)
        if self._engine.dialect.name == "sqlite":
            event.listen(self._engine.sync_engine, "connect", _let_readers_read)

    async def start(self) -> None:
        """Create the table if it is not there."""
        async with self._engine.begin() as connection:
            if self._engine.dialect.name == "postgresql":  # others may start right now
                await connection.execute(text(f"SELECT pg_advisory_xact_lock({SCHEMA_LOCK})"))
            await connection.run_sync(Base.metadata.create_all)

    async def close(self) -> None:
        """Close all connections."""
        await self._engine.dispose()

    async def add(self, file: File) -> None:
        """Keep a new file."""
        async with self._session.begin() as session:
            session.add(file)

    async def get(self, file_id: uuid.UUID) -> File | None:
        """The file as it is now."""
        async with self._session() as session:
            return await session.get(File, file_id)

    async def newest(self) -> Sequence[File]:
        """The files that were announced last, the newest first."""
        async with self._session() as session:
            query = select(File).order_by(File.created.desc(), File.id).limit(NEWEST)
            return (await session.scalars(query)).all()

    async def complete(self) -> Sequence[File]:
        """The files of which all has arrived, and that are not queued yet."""
        async with self._session() as session:
            query = select(File).where(File.state == State.UPLOADING, File.received == File.size)
            return (await session.scalars(query)).all()

    async def waiting(self) -> Sequence[uuid.UUID]:
        """The files that are to be examined, the oldest first."""
        async with self._session() as session:
            query = select(File.id).where(File.state.in_((State.QUEUED, State.WORKING)))
            return (await session.scalars(query.order_by(File.created))).all()

    async def change(
        self, file_id: uuid.UUID, condition: ColumnElement[bool], **values: object
    ) -> File | None:
        """Change a file if the condition holds at that moment; else None."""
        async with self._session.begin() as session:
            changed = update(File).where(File.id == file_id, condition).values(**values)
            return (await session.scalars(changed.returning(File))).one_or_none()

    async def delete(self, file_id: uuid.UUID) -> bool:
        """Forget a file; whether it was there."""
        async with self._session.begin() as session:
            gone = delete(File).where(File.id == file_id).returning(File.id)
            return (await session.scalars(gone)).one_or_none() is not None


def _let_readers_read(connection: Any, _record: object) -> None:
    """SQLite's write-ahead log: readers go on while somebody writes."""
    cursor = connection.cursor()
    cursor.execute("PRAGMA journal_mode=WAL")
    cursor.execute("PRAGMA synchronous=NORMAL")
    cursor.execute("PRAGMA busy_timeout=10000")
    cursor.close()
