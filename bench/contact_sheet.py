"""The contact sheet of a batch of 5,000 images: what a page weighs, and how long the next one takes.

The rows of the database are made up, and the thumbnails are pieces of a picture with the noise of a camera,
so that they weigh what those of photographs do; the board is a real process, and every figure is of requests
to it.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image
from sqlalchemy import insert, select, update

from bench.table import Row
from infra.database import Database, now
from infra.store.local import LocalStore
from jobs.db.schema import upgrade
from jobs.db.submission import BatchItem, JobOptions, submit
from jobs.db.tables import entries, image_checks, jobs, reviews
from jobs.review.thumbnails import THUMBNAIL, thumbnail
from render.spec import Spec
from tests.support.board import RunningBoard, running_board
from tests.support.services import postgres_binaries, postgres_server

IMAGES = 5_000
_PICTURES = 24
"""Different thumbnails; each is that of many images."""
_PICTURE = Path(__file__).parents[1] / "examples" / "large.webp"
_PIECE, _NOISE = 512, 6.0
"""Pixels of a piece's sides, and the standard deviation of its noise in gray levels."""
_PAGES = 15
_NEXT = re.compile(r'rel="next" href="([^"]+)"')
_PARTS = re.compile(r'(?:src|href)="(/(?:static|jobs)/[^"]+\.(?:css|js|svg|webp)(?:\?v=\w+)?)"')


def contact_sheet_rows(folder: Path, images: int = IMAGES) -> Iterator[Row]:
    """The figures on SQLite, and on PostgreSQL where it is installed."""
    home = folder / "sheet"
    (home / "chorale").mkdir(parents=True)
    yield from _rows(home, "SQLite", f"sqlite:///{home / 'chorale' / 'farm.db'}", images)
    if postgres_binaries() is not None:
        other = folder / "sheet-postgres"
        (other / "chorale").mkdir(parents=True)
        with postgres_server(other) as url:
            yield from _rows(other, "PostgreSQL", url, images)


def _rows(home: Path, kind: str, url: str, images: int) -> Iterator[Row]:
    batch = make_batch(url, home / "images", images)
    environment = {"CHORALE_DATABASE_URL": url, "CHORALE_STORE_URL": f"file://{home / 'images'}"}
    what = f"contact sheet of {images:,} images, {kind}"
    with running_board(home, "serve", "--port", "0", **environment) as board:
        pages = list(_pages(board, f"/batches/{batch}"))
        whole = [_page_bytes(board, text) for _, text in pages[:2]]
        rejected = f"/batches/{batch}?verdict=rejected"
        filtered = median(_timed(board, rejected)[0] for _ in range(_PAGES))
    if kind == "SQLite":
        yield Row(f"{what}: largest page, HTML, MB", max(len(text) for _, text in pages) / 1e6, "<= 1")
        yield Row(f"{what}: page with styles, scripts and all its thumbnails, MB", max(whole) / 1e6, "<= 1")
    following = [milliseconds for milliseconds, _ in pages[1:]]
    yield Row(f"{what}: first page, ms", pages[0][0], "")
    yield Row(f"{what}: next page, median of {len(following)}, ms", median(following), "<= 150")
    yield Row(f"{what}: next page, slowest, ms", max(following), "")
    yield Row(f"{what}: first page of the rejected ones, ms", filtered, "")


def _pages(board: RunningBoard, path: str | None) -> Iterator[tuple[float, bytes]]:
    """(ms, HTML) of each page, from the first one to the last."""
    # Templates are compiled and the models of the database are read once per process.
    board.ask(path or "/")
    while path is not None:
        milliseconds, text = _timed(board, path)
        yield milliseconds, text
        found = _NEXT.search(text.decode())
        path = None if found is None else found[1].replace("&amp;", "&")


def _timed(board: RunningBoard, path: str) -> tuple[float, bytes]:
    begun = time.perf_counter()
    answer = board.ask(path, accept="text/html", accept_encoding="identity")
    assert answer.status == 200, answer.body[:300]
    return (time.perf_counter() - begun) * 1000, answer.body


def _page_bytes(board: RunningBoard, text: bytes) -> int:
    """What a browser without a cache gets, once its reader has seen the whole page."""
    parts = set(_PARTS.findall(text.decode()))
    return len(text) + sum(len(board.ask(part).body) for part in parts)


def make_batch(url: str, images: Path, count: int) -> str:
    """A batch of finished images, of which some are kept, rejected or flagged; their thumbnails exist."""
    database = Database(url)
    upgrade(database)
    specs = (
        Spec(prompt=f"a vase, number {number}", seed=number, width=512, height=512) for number in range(count)
    )
    items = (BatchItem(row=n, custom_id=f"SKU-{n:06}", spec=spec) for n, spec in enumerate(specs, start=2))
    batch = submit(database, items, "feed.csv", JobOptions(owner="bench")).batch
    with database.write() as connection:
        done = {"state": "done", "root": jobs.c.digest, "progress": 1.0, "started": now(), "ended": now()}
        connection.execute(update(jobs).values(**done))
        rows = connection.execute(
            select(entries.c.row, entries.c.job, jobs.c.digest)
            .join(jobs, jobs.c.id == entries.c.job)
            .order_by(entries.c.row)
        ).all()
        flaw = [{"check": "contrast", "text": "is almost one even color"}]
        connection.execute(
            insert(image_checks).values(checked=now()),
            [
                {"job": row.job, "root": row.digest, "flaws": flaw * flawed, "flawed": flawed}
                for row in rows
                for flawed in (row.row % 20 == 0,)
            ],
        )
        votes = {"batch": batch, "reviewer": "anna", "reason": "", "note": "", "starred": False}
        connection.execute(
            insert(reviews).values(changed=now()),
            [
                votes | {"row": row.row, "job": row.job, "verdict": "reject" if row.row % 4 == 0 else "keep"}
                for row in rows
                if row.row % 2 == 0
            ],
        )
    database.close()
    _store_thumbnails(images, [row.digest for row in rows])
    return batch


def _store_thumbnails(images: Path, folders: list[str]) -> None:
    """As the board makes them from previews."""
    made = []
    random = np.random.default_rng(1)
    with Image.open(_PICTURE) as picture:
        pixels = np.asarray(picture.convert("RGB"), np.float32)
    for number in range(_PICTURES):
        top, left = (
            number * step % (side - _PIECE) for step, side in zip((131, 97), pixels.shape, strict=False)
        )
        piece = pixels[top : top + _PIECE, left : left + _PIECE]
        noisy = np.clip(piece + random.normal(0, _NOISE, piece.shape), 0, 255).astype(np.uint8)
        held = io.BytesIO()
        Image.fromarray(noisy).save(held, "WEBP", quality=90)
        store = LocalStore(images / "pieces" / str(number))
        store.put("preview.webp", held.getvalue(), "image/webp")
        thumbnail(store)
        made.append(images / "pieces" / str(number) / THUMBNAIL)
    for number, name in enumerate(folders):
        (images / name).mkdir()
        os.link(made[number % _PICTURES], images / name / THUMBNAIL)
    shutil.rmtree(images / "pieces")
