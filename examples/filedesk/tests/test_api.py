"""The API, on both drivers; server and client share the loop."""

from __future__ import annotations

import asyncio
import hashlib
from typing import TYPE_CHECKING, Any

import pytest

from desk import Desk, content, digest
from filedesk import worker
from filedesk.worker import Findings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

DATA = content(1_500_000)
Run = Any
Serve = Any


def test_a_file_comes_back_as_it_went(run: Run, serve: Serve) -> None:
    async def main() -> None:
        async with serve() as desk:
            file = await desk.upload("naïve ✓.txt", DATA)
            done = await desk.ended(file["id"])
            assert done["state"] == "done", done
            assert done["sha256"] == hashlib.sha256(DATA).hexdigest()
            assert done["lines"] == DATA.count(b"\n")
            assert 0 < done["packed"] < len(DATA)
            status, got, headers = await desk.download(file["id"])
            assert (status, got == DATA) == (200, True)
            assert headers["Content-Disposition"].endswith("UTF-8''na%C3%AFve%20%E2%9C%93.txt")
            assert headers["X-Content-Type-Options"] == "nosniff"

    run(main())


def test_many_at_once(run: Run, serve: Serve) -> None:
    async def main() -> None:
        async with serve() as desk:
            texts = [content(300_000, seed) for seed in range(12)]
            files = await asyncio.gather(*(desk.upload(f"{n}", t) for n, t in enumerate(texts)))
            for file, text in zip(files, texts, strict=True):
                done = await desk.ended(file["id"])
                assert done["sha256"] == hashlib.sha256(text).hexdigest()
                assert (await desk.download(file["id"]))[1] == text
            async with desk.session.get("/api/files") as answer:
                listed = [one["id"] for one in await answer.json()]
            assert sorted(listed) == sorted(file["id"] for file in files)

    run(main())


def test_an_empty_file_is_a_file(run: Run, serve: Serve) -> None:
    async def main() -> None:
        async with serve() as desk:
            file = await desk.announce("empty", 0)
            done = await desk.ended(file["id"])
            assert (done["state"], done["sha256"]) == ("done", hashlib.sha256().hexdigest())
            assert (await desk.download(file["id"]))[:2] == (200, b"")

    run(main())


@pytest.mark.parametrize("checked", [False, True])
def test_an_upload_that_breaks_goes_on_where_it_was(
    run: Run, serve: Serve, tmp_path: Path, checked: bool
) -> None:
    """With a digest, from the start of the piece; without, from the last byte that came."""

    async def main() -> None:
        async with serve() as desk:
            file = await desk.announce("broken", len(DATA))
            assert (await desk.send(file["id"], 0, DATA[:100_000])).status == 204
            part = tmp_path / f"{file['id'].replace('-', '')}.part"

            async def half() -> AsyncIterator[bytes]:
                yield DATA[100_000:150_000]
                await asyncio.sleep(60)

            headers = digest(DATA[100_000:]) if checked else {}
            sending = asyncio.create_task(desk.send(file["id"], 100_000, half(), headers))
            while part.stat().st_size < 150_000:
                await asyncio.sleep(0.01)
            assert (await desk.send(file["id"], 100_000, b"x")).status == 423  # one at a time
            assert await desk.offset(file["id"]) == 100_000
            sending.cancel()
            await asyncio.wait([sending])
            while (answer := await desk.send(file["id"], 1, b"x")).status == 423:
                await asyncio.sleep(0.01)
            offset = int(answer.headers["Upload-Offset"])
            assert offset == await desk.offset(file["id"])
            assert offset == (100_000 if checked else 150_000)
            assert (await desk.send(file["id"], offset, DATA[offset:])).status == 204
            done = await desk.ended(file["id"])
            assert done["sha256"] == hashlib.sha256(DATA).hexdigest()

    run(main())


def test_a_damaged_piece_is_refused_and_can_be_sent_again(run: Run, serve: Serve) -> None:
    async def main() -> None:
        async with serve() as desk:
            file = await desk.announce("damaged", 3)
            assert (await desk.send(file["id"], 0, b"abX", digest(b"abc"))).status == 400
            assert await desk.offset(file["id"]) == 0
            assert (await desk.send(file["id"], 0, b"abc", digest(b"abc"))).status == 204
            assert (await desk.ended(file["id"]))["state"] == "done"
            assert (await desk.download(file["id"]))[1] == b"abc"

    run(main())


def test_a_file_with_another_checksum_than_announced_has_failed(run: Run, serve: Serve) -> None:
    async def main() -> None:
        async with serve() as desk:
            right, wrong = (hashlib.sha256(text).hexdigest() for text in (b"abc", b"abd"))
            for announced, state in ((right, "done"), (wrong, "failed")):
                file = await desk.upload("checked", b"abc", sha256=announced)
                assert (await desk.ended(file["id"]))["state"] == state

    run(main())


def test_a_file_that_cannot_be_read_has_failed(run: Run, serve: Serve, tmp_path: Path) -> None:
    async def main() -> None:
        async with serve(workers=0) as desk:
            file = await desk.upload("lost", b"abc")
        path = tmp_path / file["id"].replace("-", "")
        path.unlink()
        path.mkdir()
        async with serve() as desk:  # It takes up what waits.
            done = await desk.ended(file["id"])
            assert (done["state"], "directory" in done["error"]) == ("failed", True), done

    run(main())


def test_a_worker_that_fails_tries_again(
    run: Run, serve: Serve, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    add = Findings.add
    calls = 0

    def fail_once(self: Findings, block: bytes) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise RuntimeError("out of luck")
        add(self, block)

    async def main() -> None:
        async with serve(workers=1) as desk:
            file = await desk.upload("unlucky", b"abc")
            assert (await desk.ended(file["id"]))["state"] == "done"

    monkeypatch.setattr(Findings, "add", fail_once)
    monkeypatch.setattr(worker, "RETRY_S", 0.01)
    run(main())
    assert "out of luck" in caplog.text
    assert calls == 2


@pytest.mark.parametrize(
    ("what", "status"),
    [
        ({"name": "", "size": 1}, 422),
        ({"name": "x", "size": -1}, 422),
        ({"name": "x", "size": 1, "sha256": "zz"}, 422),
        ({"name": "x", "size": 1_000_001}, 413),
    ],
)
def test_what_cannot_be_announced(run: Run, serve: Serve, what: Any, status: int) -> None:
    async def main() -> None:
        async with (
            serve(max_bytes=1_000_000) as desk,
            desk.session.post("/api/files", json=what) as answer,
        ):
            assert answer.status == status
            assert (await answer.json())["detail"]

    run(main())


def test_pieces_that_do_not_fit_are_refused(run: Run, serve: Serve) -> None:
    async def main() -> None:
        async with serve() as desk:
            file = await desk.announce("x", 10)
            assert (await desk.send(file["id"], 0, b"12345678901")).status == 413
            assert (await desk.send(file["id"], 5, b"12345")).status == 409
            no_base64 = {"Content-Digest": "sha-256=:=:"}
            assert (await desk.send(file["id"], 0, b"1", no_base64)).status == 400
            assert await desk.offset(file["id"]) == 0
            assert (await desk.download(file["id"]))[0] == 409
            assert (await desk.send(file["id"], 0, b"1234567890")).status == 204
            assert (await desk.send(file["id"], 10, b"1")).status == 409
            nowhere = "00000000-0000-0000-0000-000000000000"
            assert (await desk.send(nowhere, 0, b"1")).status == 404
            assert (await desk.download(nowhere))[0] == 404

    run(main())


def test_ranges(run: Run, serve: Serve) -> None:
    async def main() -> None:
        async with serve() as desk:
            file = await desk.upload("ranges", DATA)
            status, got, headers = await desk.download(file["id"], Range="bytes=1000000-1299999")
            assert (status, got == DATA[1_000_000:1_300_000]) == (206, True)
            assert headers["Content-Range"] == f"bytes 1000000-1299999/{len(DATA)}"
            etag = headers["ETag"]
            for if_range, expected in ((etag, 206), ('"other"', 200)):
                asked = {"Range": "bytes=-7", "If-Range": if_range}
                status, got, _ = await desk.download(file["id"], **asked)
                assert (status, got) == (expected, DATA[-7:] if expected == 206 else DATA)
            status, _, headers = await desk.download(file["id"], Range=f"bytes={len(DATA)}-")
            assert (status, headers["Content-Range"]) == (416, f"bytes */{len(DATA)}")

    run(main())


def test_deleted_files_are_gone_from_the_disk(run: Run, serve: Serve, tmp_path: Path) -> None:
    async def main() -> None:
        async with serve() as desk:
            half = await desk.announce("half", 10)
            whole = await desk.upload("whole", b"abc")
            await desk.ended(whole["id"])
            for file in (half, whole):
                assert list(tmp_path.glob(f"{file['id'].replace('-', '')}*"))
                async with desk.session.delete(f"/api/files/{file['id']}") as answer:
                    assert answer.status == 204
                assert (await desk.download(file["id"]))[0] == 404
                assert not list(tmp_path.glob(f"{file['id'].replace('-', '')}*"))

    run(main())


async def followed(desk: Desk, file_id: str, first: asyncio.Event) -> list[dict[str, Any]]:
    """All that is told of a file until it is done; `first` is set with the snapshot."""
    seen = []
    async for kind, data in desk.events():
        if kind == "snapshot":
            first.set()
        elif data["id"] == file_id:
            seen.append(data)
            if data["state"] in ("done", "failed"):
                break
    return seen


def test_every_viewer_sees_the_progress(run: Run, serve: Serve) -> None:
    async def main() -> None:
        async with serve() as desk:
            data = content(16_000_000)
            file = await desk.announce("watched", len(data))
            ready = [asyncio.Event() for _ in range(20)]
            viewers = [asyncio.create_task(followed(desk, file["id"], one)) for one in ready]
            await asyncio.gather(*(one.wait() for one in ready))
            for offset in range(0, len(data), 1_000_000):
                await desk.send(file["id"], offset, data[offset : offset + 1_000_000])
            for seen in await asyncio.gather(*viewers):
                for measured in ("received", "examined"):
                    numbers = [one[measured] for one in seen]
                    assert numbers == sorted(numbers)
                    assert numbers[-1] == len(data)
                    assert any(0 < number < len(data) for number in numbers), measured
                order = ["uploading", "queued", "working", "done"]
                states = [order.index(one["state"]) for one in seen]
                assert states == sorted(states)

    run(main())


def test_a_viewer_that_comes_late_gets_all_there_is(run: Run, serve: Serve) -> None:
    async def main() -> None:
        async with serve() as desk:
            file = await desk.upload("early", b"abc")
            await desk.ended(file["id"])
            events = desk.events()
            kind, [only] = await anext(events)
            assert (kind, only["id"], only["state"]) == ("snapshot", file["id"], "done")
            async with desk.session.delete(f"/api/files/{file['id']}"):
                assert await anext(events) == ("gone", {"id": file["id"], "gone": True})
            await events.aclose()

    run(main())


def test_the_page_is_served(run: Run, serve: Callable[..., Any]) -> None:
    async def main() -> None:
        async with serve() as desk, desk.session.get("/") as answer:
            assert answer.status == 200
            assert "<title>Filedesk</title>" in await answer.text()

    run(main())
