"""An HTTP API for notes, kept in SQLite.

    python api.py PORT DATABASE

    POST /notes               {"author": ..., "text": ...}  creates a note
    GET  /notes/ID                                          reads one
    GET  /notes?author=NAME                                 lists an author's newest ten

Port 0 takes any free port; the line printed at the start names it. SIGTERM or Ctrl-C stops it.
"""

import asyncio
import json
import signal
import sqlite3
import sys
from typing import Any

import aiosqlite
from aiohttp import web

HOST = "127.0.0.1"
NEWEST = 10
SCHEMA = """
    -- With a write-ahead log a commit does not wait for the disk; a crash of the machine may lose
    -- the last notes, never the consistency of the database.
    PRAGMA journal_mode = WAL;
    PRAGMA synchronous = NORMAL;
    CREATE TABLE IF NOT EXISTS notes (
        id INTEGER PRIMARY KEY, author TEXT NOT NULL, text TEXT NOT NULL
    );
    CREATE INDEX IF NOT EXISTS notes_by_author ON notes (author, id);
"""

DATABASE = web.AppKey("DATABASE", aiosqlite.Connection)
routes = web.RouteTableDef()


def note(row: sqlite3.Row) -> dict[str, Any]:
    """Make of a row what clients get."""
    return {"id": row["id"], "author": row["author"], "text": row["text"]}


@routes.post("/notes")
async def create(request: web.Request) -> web.Response:
    """Create a note."""
    try:
        fields = await request.json()
        author, text = fields["author"], fields["text"]
    except (json.JSONDecodeError, KeyError, TypeError):
        raise web.HTTPBadRequest(text='send JSON: {"author": ..., "text": ...}') from None
    rows = await request.app[DATABASE].execute_fetchall(
        "INSERT INTO notes (author, text) VALUES (?, ?) RETURNING id, author, text", (author, text)
    )
    [row] = rows
    return web.json_response(note(row), status=201, headers={"Location": f"/notes/{row['id']}"})


@routes.get("/notes/{id:[0-9]+}")
async def read(request: web.Request) -> web.Response:
    """Read one note."""
    rows = await request.app[DATABASE].execute_fetchall(
        "SELECT id, author, text FROM notes WHERE id = ?", (int(request.match_info["id"]),)
    )
    for row in rows:
        return web.json_response(note(row))
    raise web.HTTPNotFound(text="no such note")


@routes.get("/notes")
async def list_newest(request: web.Request) -> web.Response:
    """List an author's newest notes."""
    rows = await request.app[DATABASE].execute_fetchall(
        "SELECT id, author, text FROM notes WHERE author = ? ORDER BY id DESC LIMIT ?",
        (request.query.get("author", ""), NEWEST),
    )
    return web.json_response([note(row) for row in rows])


async def main(port: int, path: str) -> None:
    """Serve until a signal."""
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for signum in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(signum, stop.set)

    # isolation_level=None: every statement commits by itself.
    async with aiosqlite.connect(path, isolation_level=None) as database:
        database.row_factory = sqlite3.Row
        await database.executescript(SCHEMA)
        app = web.Application()
        app[DATABASE] = database
        app.add_routes(routes)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        try:
            await web.TCPSite(runner, HOST, port).start()
        except OSError as error:
            await runner.cleanup()
            sys.exit(
                f"cannot listen on {HOST}:{port} ({error}): name another port, or 0 for a free one"
            )
        port = runner.addresses[0][1]
        kind = f"{type(loop).__module__}.{type(loop).__qualname__}"
        print(f"listening on {HOST}:{port}, loop {kind}", flush=True)
        await stop.wait()
        await runner.cleanup()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), sys.argv[2]))
