"""Files of another machine over HTTP, sent before the batch that names them."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.exceptions import HTTPException

from jobs.board.board import Board
from jobs.board.here import Here

_ANSWERS: dict[int | str, dict[str, Any]] = {
    400: {"description": "The digest is none, or another than that of the bytes."},
    404: {"description": "The file is not here."},
    408: {"description": "The file did not arrive in time."},
    413: {"description": "The file is larger than CHORALE_UPLOAD_MAX_MIB."},
}
_BYTES = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}
router = APIRouter(prefix="/api/v1", responses=_ANSWERS, tags=["files"])


@router.put("/files/{digest}", status_code=201, openapi_extra=_BYTES)
async def send_file(request: Request, digest: str) -> dict[str, Any]:
    """Send a file under its SHA-256, to be named in `files` of a batch. It is kept for an hour.

    Images, masks, control pictures, LoRA, learned words and enlargers can be sent.
    """
    board: Board = request.app.state.board
    limit = int(board.farm.settings.upload_max_mib * 2**20)
    return {"digest": digest, "bytes": await board.sent.take(digest, request.stream(), limit)}


@router.get("/files/{digest}")
def sent_file(board: Here, digest: str) -> dict[str, Any]:
    """Whether a file is here, so that it need not be sent again; it is kept for another hour then."""
    size = board.sent.size(digest)
    if size is None:
        raise HTTPException(404, "the file is not here; send it")
    return {"digest": digest, "bytes": size}
