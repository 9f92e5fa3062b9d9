"""Downloads: one image as a file, and the renditions of a batch, one by one or as a ZIP."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal
from urllib.parse import quote

from fastapi import APIRouter, Path, Query, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response, StreamingResponse

from infra.errors import StoreMissing
from infra.store.base import Store
from jobs.board.board import Board
from jobs.board.here import Here
from jobs.db.audit import record
from jobs.db.board_queries import batch_row, job_summary, show_batch
from jobs.renditions.batch import choose_images, rendition_of
from jobs.renditions.channel import CONTENT_TYPES, ENDINGS, Channel, Rendition
from jobs.renditions.farm import ask_for, list_renditions, store_key, wanted_channels
from jobs.renditions.names import safe
from jobs.renditions.signing import open_signer
from render.errors import BadInput
from render.sink import UNFINISHED_PREVIEW

MAX_PIXELS = 64_000_000
"""Of an image that is joined in memory for a download; larger ones are exported."""
_QUALITY = 92


ChannelName = Annotated[str, Path(pattern=r"^[\w-]{1,64}$")]
FileName = Annotated[str, Path(max_length=256)]
_ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"description": "Invalid value; `error` names it and the fix."},
    404: {"description": "Not found."},
}
router = APIRouter(responses=_ERRORS, tags=["renditions"])


class Wanted(BaseModel):
    """The channels to make files for."""

    model_config = ConfigDict(extra="forbid")

    channels: list[Annotated[str, Field(min_length=1, max_length=64)]] = Field(min_length=1, max_length=20)


@router.get("/api/v1/jobs/{job}/preview", response_class=Response)
def preview(board: Here, job: str) -> Response:
    """The newest preview of an image, finished or not, as WebP; 404 while there is none."""
    folder, root = board.image_of(board.job(job))
    key = "preview.webp" if root is not None else UNFINISHED_PREVIEW
    return Response(board.store().get(f"{folder}/{key}"), media_type=CONTENT_TYPES["webp"])


@router.get("/api/v1/jobs/{job}/image", response_class=Response)
@router.get("/jobs/{job}/download", include_in_schema=False)
def download_image(
    board: Here, job: str, format: Literal["png", "jpeg", "webp"] = "png", name: str = ""
) -> Response:
    """A finished image as one file."""
    with board.farm.database.read() as connection:
        found = job_summary(connection, board.job(job))
    if found["root"] is None:
        raise BadInput(
            "job", found["id"], f"is {found['state']}; its image can be downloaded once it is done"
        )
    if found["width"] * found["height"] > MAX_PIXELS:
        fix = f"is larger than {MAX_PIXELS // 1_000_000} megapixels; use chorale export {found['id']} FILE"
        raise BadInput("image", f"{found['width']}x{found['height']}", fix)
    folder, _ = board.image_of(found["id"])
    rendition = Rendition(format=format, quality=_QUALITY)
    data, _ = rendition_of(board.store().within(folder), rendition, open_signer(board.farm.settings))
    return _file(data, format, f"{safe(name or found['id'])}.{ENDINGS[format]}")


@router.get("/api/v1/batches/{batch}/renditions")
def show_renditions(board: Here, batch: str) -> dict[str, Any]:
    """The files that the farm makes of a batch: by channel and row, with the rules that each breaks.

    `made` is null until there is a file, `problem` says why there is none.
    """
    with board.farm.database.read() as connection:
        channels = show_batch(connection, batch)["channels"]
        return {"batch": batch, "channels": channels, "renditions": list_renditions(connection, batch)}


@router.post("/api/v1/batches/{batch}/renditions", status_code=202)
def ask_for_renditions(board: Here, request: Request, batch: str, wanted: Wanted) -> dict[str, Any]:
    """Have files made for these channels, of what is done and of what will be."""
    named = ask(board, request, batch, wanted.channels)
    return {"batch": batch, "channels": named}


@router.get("/api/v1/batches/{batch}/renditions/{channel}.zip", response_class=Response)
def download_all(
    board: Here,
    batch: str,
    channel: ChannelName,
    all: Annotated[bool, Query(description="Also what reviewers have not kept.")] = False,
) -> Response:
    """The files of a channel as a ZIP, with `report.jsonl`; once the batch was reviewed, of what was kept."""
    with board.farm.database.read() as connection:
        name = show_batch(connection, batch)["name"]
        kept = {image.row for image in choose_images(connection, batch, all).images}
        rows = [
            row for row in list_renditions(connection, batch, channel) if row["made"] and row["row"] in kept
        ]
    if not rows:
        raise StoreMissing(f"batch {batch} has no file for {channel} yet")
    disposition = _disposition(f"{safe(name.rpartition('.')[0] or name)}-{channel}.zip")
    chunks = _zipped(board.store(), batch, channel, rows)
    return StreamingResponse(
        chunks, media_type="application/zip", headers={"content-disposition": disposition}
    )


@router.get("/api/v1/batches/{batch}/renditions/{channel}/{file}", response_class=Response)
def download_one(board: Here, batch: str, channel: ChannelName, file: FileName) -> Response:
    """One file of a channel."""
    with board.farm.database.read() as connection:
        show_batch(connection, batch)
        rows = list_renditions(connection, batch, channel)
        # Only names that the farm has given are looked up in its store.
        if not any(row["made"] and row["file"] == file for row in rows):
            raise StoreMissing(f"batch {batch} has no file {ascii(file)[:80]} for {channel}")
    format = next(name for name, ending in ENDINGS.items() if file.endswith(f".{ending}"))
    return _file(board.store().get(store_key(batch, channel, file)), format, file)


def ask(board: Board, request: Request, batch: str, names: Iterable[str]) -> list[str]:
    """Ask for renditions on behalf of a request; returns the names of the channels. Raises `BadInput`."""
    wanted = wanted_channels(names, files=False, settings=board.farm.settings)
    with board.farm.database.write() as connection:
        ask_for(connection, batch, wanted)
        who: str = request.state.who
        record(connection, who, "renditions", f"batch {batch}", channels=sorted(wanted))
    return sorted(wanted)


def files_of(board: Board, batch: str) -> list[dict[str, Any]]:
    """For the page of a batch: each channel with its title and its files, made, broken and missing."""
    with board.farm.database.read() as connection:
        rows, channels = list_renditions(connection, batch), batch_row(connection, batch).channels
    found = []
    for name, document in sorted((channels or {}).items()):
        mine = [row for row in rows if row["channel"] == name]
        found.append(
            {
                "name": name,
                "title": Channel.model_validate(document).title,
                "made": sum(row["made"] is not None for row in mine),
                "broken": sum(bool(row["broken"]) for row in mine),
                "bytes": sum(row["bytes"] or 0 for row in mine),
                "problems": [row for row in mine if row["problem"]],
            }
        )
    return found


def _zipped(store: Store, batch: str, channel: str, rows: list[dict[str, Any]]) -> Iterator[bytes]:
    """The bytes of the ZIP, file by file: it never lies in memory as a whole."""
    held = _Pipe()
    with zipfile.ZipFile(held, "w", zipfile.ZIP_STORED) as packed:
        for row in rows:
            packed.writestr(row["file"], store.get(store_key(batch, channel, row["file"])))
            yield held.taken()
        names = ("file", "custom_id", "row", "job", "bytes", "broken")
        report = (json.dumps({name: row[name] for name in names}, ensure_ascii=False) for row in rows)
        packed.writestr("report.jsonl", "".join(line + "\n" for line in report))
    yield held.taken()


class _Pipe(io.RawIOBase):
    """What was written and not taken yet; no seeking, so that zipfile writes sizes behind each file."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._parts.append(bytes(data))
        return len(data)

    def taken(self) -> bytes:
        taken, self._parts = b"".join(self._parts), []
        return taken


def _file(data: bytes, format: str, name: str) -> Response:
    headers = {"content-disposition": _disposition(name)}
    return Response(data, media_type=CONTENT_TYPES[format], headers=headers)


def _disposition(name: str) -> str:
    """RFC 6266: browsers take the second form where the name is not ASCII."""
    plain = "".join(
        char if char.isascii() and char.isprintable() and char not in '"\\' else "_" for char in name
    )
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}"
