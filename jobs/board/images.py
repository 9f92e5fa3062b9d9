"""Image files over HTTP: tiles, previews and manifests, read from the farm's store."""

from __future__ import annotations

import hashlib
import io
import re
from typing import Any

from fastapi import APIRouter, Request
from PIL import Image
from starlette.responses import Response

from infra.errors import StoreMissing
from jobs.board.board import Board
from jobs.review.thumbnails import as_jpeg
from jobs.review.thumbnails import thumbnail as make_thumbnail
from jobs.thumbnail_links import job_of_thumbnail
from render.output.manifest import KEY as MANIFEST
from render.sink import UNFINISHED_PREVIEW

TYPES = {
    "png": "image/png",
    "webp": "image/webp",
    "jpg": "image/jpeg",
    "tif": "image/png",
    "dzi": "application/xml",
    "json": "application/json",
}
_KEY = re.compile(
    r"image_files/\d{1,2}/\d{1,5}_\d{1,5}\.(?:png|webp|jpg|tif)|image\.dzi|preview\.webp|manifest\.json"
)
_RANGE = re.compile(r"bytes=(\d{0,15})-(\d{0,15})")
_FOREVER = "private, max-age=31536000, immutable"

router = APIRouter(include_in_schema=False)


@router.api_route("/jobs/{job}/image/{key:path}", methods=["GET", "HEAD"])
def image_file(request: Request, job: str, key: str) -> Response:
    """A file of a finished image, a TIFF tile as PNG. It never changes, so caches may keep it."""
    if not _KEY.fullmatch(key):
        return Response(status_code=404)
    board: Board = request.app.state.board
    folder, root = board.image_of(job)
    if root is None:
        raise StoreMissing(f"job {job} has no finished image")
    tag = f'"{hashlib.sha256(f"{root} {key}".encode()).hexdigest()[:32]}"'
    headers = {"etag": tag, "cache-control": _FOREVER, "accept-ranges": "bytes"}
    if tag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    data = board.store().get(f"{folder}/{key}")
    return _ranged(request, _as_png(data) if key.endswith(".tif") else data, key, headers)


@router.get("/jobs/{job}/preview")
def preview(request: Request, job: str) -> Response:
    """The newest preview of an image, finished or not; 404 while there is none."""
    board: Board = request.app.state.board
    folder, root = board.image_of(job)
    key = "preview.webp" if root is not None else UNFINISHED_PREVIEW
    return Response(board.store().get(f"{folder}/{key}"), media_type=TYPES["webp"])


@router.get("/jobs/{job}/thumbnail.webp")
def small_image(request: Request, job: str) -> Response:
    """A finished image in the size of a contact sheet. The first request makes it, if no node has."""
    board: Board = request.app.state.board
    folder, root = board.image_of(job)
    if root is None:
        raise StoreMissing(f"job {job} has no finished image")
    tag = f'"{root[:32]}"'
    headers = {"etag": tag, "cache-control": _FOREVER}
    if tag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    return Response(make_thumbnail(board.store().within(folder)), media_type=TYPES["webp"], headers=headers)


@router.get("/thumbnails/{signed}.jpg")
def signed_thumbnail(request: Request, signed: str) -> Response:
    """A thumbnail by an address that was sent in a message; JPEG, which every chat program shows."""
    board: Board = request.app.state.board
    job = job_of_thumbnail(board.farm_secret(), signed)
    if job is None:
        raise StoreMissing("the address of this thumbnail is wrong or older than a month")
    folder, root = board.image_of(job)
    if root is None:
        raise StoreMissing(f"job {job} has no finished image")
    data = as_jpeg(make_thumbnail(board.store().within(folder)))
    return Response(data, media_type=TYPES["jpg"], headers={"cache-control": "private, max-age=86400"})


def _as_png(data: bytes) -> bytes:
    """A TIFF tile as browsers show it."""
    out = io.BytesIO()
    with Image.open(io.BytesIO(data)) as tile:
        tile.save(out, "PNG", compress_level=1)
    return out.getvalue()


def thumbnail(row: dict[str, Any]) -> str | None:
    """URL of a done job's thumbnail."""
    return None if row["root"] is None else f"/jobs/{row['id']}/thumbnail.webp"


def manifest_key(folder: str) -> str:
    return f"{folder}/{MANIFEST}"


def _ranged(request: Request, data: bytes, key: str, headers: dict[str, str]) -> Response:
    """The file, or one range of its bytes. Multiple ranges get the whole file, which RFC 9110 allows."""
    kind = TYPES[key.rpartition(".")[2]]
    match = _RANGE.fullmatch(request.headers.get("range", ""))
    same = request.headers.get("if-range", headers["etag"]) == headers["etag"]
    if match is None or match.groups() == ("", "") or not same:
        return Response(data, media_type=kind, headers=headers)
    first, last = match.groups()
    start = int(first) if first else max(0, len(data) - int(last))
    end = min(int(last), len(data) - 1) if first and last else len(data) - 1
    if start > end:
        return Response(status_code=416, headers={"content-range": f"bytes */{len(data)}"})
    headers = headers | {"content-range": f"bytes {start}-{end}/{len(data)}"}
    return Response(data[start : end + 1], 206, media_type=kind, headers=headers)
