"""What can be set, from the command line or the environment."""

from __future__ import annotations

import os
from dataclasses import dataclass, fields
from pathlib import Path


@dataclass(frozen=True)
class Settings:
    """Where things are, and how much of them; FILEDESK_FOLDER and so on in the environment."""

    folder: str = "filedesk-data"
    database: str = ""  # postgresql://user@host/name; SQLite in the folder if empty
    broker: str = ""  # nats://host:4222 or redis://host:6379; in this process if empty
    namespace: str = "filedesk"  # of the names that the broker sees
    workers: int = 2  # files examined at a time, by each process that examines
    max_bytes: int = 1 << 30

    @classmethod
    def from_environment(cls) -> Settings:
        """The defaults, but for what the environment has."""
        given = {}
        for field in fields(cls):
            if value := os.environ.get(f"FILEDESK_{field.name.upper()}"):
                given[field.name] = int(value) if field.type == "int" else value
        return cls(**given)  # type: ignore[arg-type]

    @property
    def database_url(self) -> str:
        """In SQLAlchemy's words."""
        if not self.database:
            return f"sqlite+aiosqlite:///{Path(self.folder).resolve() / 'filedesk.sqlite'}"
        scheme, separator, rest = self.database.partition("://")
        scheme = {"postgresql": "postgresql+asyncpg", "sqlite": "sqlite+aiosqlite"}.get(
            scheme, scheme
        )
        return scheme + separator + rest
