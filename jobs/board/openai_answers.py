"""Answers to programs that speak OpenAI's API: they wait for a batch, then hold its images."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self, get_args
from urllib.parse import urlencode

from fastapi import Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response

from jobs.board.board import Board
from jobs.board.openai_errors import openai_error
from jobs.db.board_queries import batch_rows
from jobs.renditions.batch import rendition_of
from jobs.renditions.channel import CONTENT_TYPES, Rendition
from jobs.renditions.signing import open_signer
from jobs.scheduler.dispatcher import nodes_up
from render.errors import BadInput
from render.spec import expand_size
from render.spec.init_image import InitImage

Format = Literal["png", "jpeg", "webp"]
MAX_PIXELS = 40_000_000
"""Of the images of one answer together."""
_MOST_IMAGES = 100
_MOST_WAITING = 64
"""Requests that wait at the same time; beyond that the answer is where to look."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 1.0
_QUALITY = 90


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """How a program wants its images."""

    as_bytes: bool
    format: Format
    quality: int

    @classmethod
    def of(cls, response: str | None, format: Format | None, quality: int | None) -> Self:
        """From what a request says; URLs of PNG files unless it says more."""
        return cls(as_bytes=response == "b64_json", format=format or "png", quality=quality or _QUALITY)

    def query(self) -> str:
        """As the parameters of another request."""
        result = "b64_json" if self.as_bytes else "url"
        given = {"response_format": result, "output_format": self.format, "output_compression": self.quality}
        return urlencode(given)


@dataclass(frozen=True, kw_only=True)
class Named:
    """A finished image as a file of some format."""

    job: str
    format: Format
    quality: int

    def __str__(self) -> str:
        return f"{self.job}.{self.quality}.{self.format}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """What `str` gives; raises `BadInput`."""
        job, quality, format = (*text.split("."), "", "")[:3]
        known = next((each for each in get_args(Format) if each == format), None)
        if known is None or not quality.isdigit():
            raise BadInput("image", text[:80], "is no image of this board")
        return cls(job=job, format=known, quality=int(quality))


def check_pixels(values: Mapping[str, Any], init: Path | None, number: int) -> None:
    """An answer holds its images as bytes; larger ones are submitted as jobs."""
    size = expand_size(values)
    if init is not None and "width" not in size:
        size |= InitImage.open(init).canvas_size
    width, height = size.get("width", 0), size.get("height", 0)
    if isinstance(width, int) and isinstance(height, int) and width * height * number > MAX_PIXELS:
        most = f"{MAX_PIXELS // 1_000_000} megapixels"
        fix = f"images are more than the {most} of one answer; use POST /api/v1/jobs and chorale export"
        raise BadInput("size", f"{number} x {width}x{height}", fix)


async def answer(board: Board, request: Request, batch: str, wanted: Wanted, wait_s: float) -> Response:
    """Wait up to `wait_s` for the images of a batch, and answer with them, with an error, or with 202.

    The wait ends early when the board stops, when the client has gone, while no node is up, and where very
    many requests wait already.
    """
    end, pause = time.monotonic() + wait_s, _FIRST_PAUSE_S
    waits = board.waiting < _MOST_WAITING
    board.waiting += waits
    try:
        while True:
            rows, may_come = await run_in_threadpool(_look, board, batch)
            if (refusal := _refusal(rows)) is not None:
                return refusal
            if all(row["root"] is not None for row in rows):
                return JSONResponse(await run_in_threadpool(_document, board, request, batch, rows, wanted))
            left = end - time.monotonic()
            if not (waits and may_come) or left <= 0 or board.ending.is_set():
                return _unfinished(batch, rows, wanted)
            await asyncio.sleep(min(pause, left))
            pause = min(_LONGEST_PAUSE_S, pause * 1.5)
            if await request.is_disconnected():
                return _unfinished(batch, rows, wanted)
    finally:
        board.waiting -= waits


def image_file(board: Board, named: Named) -> Response:
    """The bytes of one image. Raises `UnknownJob`, `StoreMissing`."""
    headers = {"cache-control": "private, max-age=3600"}
    return Response(_bytes(board, named), media_type=CONTENT_TYPES[named.format], headers=headers)


def _look(board: Board, batch: str) -> tuple[list[dict[str, Any]], bool]:
    """The images of a batch, and whether any node is there to render them."""
    with board.farm.database.read() as connection:
        rows = batch_rows(connection, batch, _MOST_IMAGES + 1)
        may_come = bool(nodes_up(connection, usable=False))
    if len(rows) > _MOST_IMAGES:
        raise BadInput("id", batch, f"has more than {_MOST_IMAGES} images; use chorale export --batch")
    return rows, may_come


def _refusal(rows: list[dict[str, Any]]) -> Response | None:
    ended = next((row for row in rows if row["state"] in ("failed", "cancelled")), None)
    if ended is None:
        return None
    text = f"job {ended['id']} {'has failed' if ended['state'] == 'failed' else 'was cancelled'}"
    if ended["reason"]:
        text += f": {ended['reason']}"
    # The same request would find the same job, which only `chorale retry` queues again.
    status, code = (500, "render_failed") if ended["state"] == "failed" else (409, "cancelled")
    return openai_error(status, text, code=code, repeat=False)


def _unfinished(batch: str, rows: list[dict[str, Any]], wanted: Wanted) -> Response:
    path = f"/v1/images/generations/{batch}?{wanted.query()}"
    document = {
        "created": int(min(row["created"] for row in rows)),
        "data": [],
        "id": batch,
        "status": "queued" if all(row["state"] == "queued" for row in rows) else "in_progress",
        "jobs": [row["id"] for row in rows],
        "poll": path,
    }
    return JSONResponse(document, 202, {"location": path, "retry-after": "5"})


def _document(
    board: Board, request: Request, batch: str, rows: list[dict[str, Any]], wanted: Wanted
) -> dict[str, Any]:
    if wanted.as_bytes and (pixels := sum(row["width"] * row["height"] for row in rows)) > MAX_PIXELS:
        fix = f"pixels are more than the {MAX_PIXELS:,} of one answer; ask for URLs"
        raise BadInput("response_format", f"{pixels:,}", fix)
    return {
        "created": int(max(row["ended"] for row in rows)),
        "data": [_image(board, request, row, wanted) for row in rows],
        "output_format": wanted.format,
        "id": batch,
        "status": "completed",
        "jobs": [row["id"] for row in rows],
    }


def _image(board: Board, request: Request, row: dict[str, Any], wanted: Wanted) -> dict[str, Any]:
    named = Named(job=row["id"], format=wanted.format, quality=wanted.quality)
    found = {"job": row["id"], "seed": row["seed"], "size": f"{row['width']}x{row['height']}"}
    if wanted.as_bytes:
        return {"b64_json": base64.b64encode(_bytes(board, named)).decode(), **found}
    address = f"{str(request.base_url).rstrip('/')}/v1/images/files/{board.access.sign_image(str(named))}"
    return {"url": address, **found}


def _bytes(board: Board, named: Named) -> bytes:
    folder, _ = board.image_of(named.job)
    rendition = Rendition(format=named.format, quality=named.quality)
    return rendition_of(board.store().within(folder), rendition, open_signer(board.farm.settings))[0]
