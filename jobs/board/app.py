"""The board as an ASGI application: middleware, pages, API, images and error responses."""

from __future__ import annotations

import errno
import logging
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from sqlalchemy.exc import DataError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, PlainTextResponse, Response

from infra.errors import ServiceError, StoreError, StoreMissing
from jobs.board import (
    api,
    batch_review,
    budgets,
    deletion,
    downloads,
    files_api,
    forms,
    images,
    job_selection,
    node_page,
    openai_images,
    pages,
    queue_page,
    webhooks_api,
    webhooks_page,
)
from jobs.board.board import Board
from jobs.board.middleware import SecurityMiddleware
from jobs.board.openai_errors import openai_error, speaks_openai
from jobs.board.static_files import StaticAssets
from jobs.errors import KNOWN, IllegalChange, LostRace, UnknownJob
from render.errors import BadInput

_log = logging.getLogger(__name__)
_PLAIN = {404: "there is nothing at this address", 405: "this address does not take such a request"}
_DESCRIPTION = "The farm's commands over HTTP. An error response has one sentence in `error`."


def make_app(board: Board) -> SecurityMiddleware:
    """A board as an ASGI application."""
    app = FastAPI(title="Chorale", version="1", description=_DESCRIPTION, docs_url=None, redoc_url=None)
    app.openapi_url = "/api/v1/openapi.json"
    app.setup()
    app.state.board = board
    # Images first: tiles are the most frequent requests.
    apis = (api, files_api, batch_review, webhooks_api, openai_images)
    views = (budgets, deletion, forms, job_selection, queue_page, node_page, webhooks_page, pages)
    for part in (images, downloads, *apis, *views):
        app.include_router(part.router)
    app.add_api_route("/healthz", _health, include_in_schema=False)
    app.mount("/static", StaticAssets())
    for kind in KNOWN:
        app.add_exception_handler(kind, _known_error)
    app.add_exception_handler(RequestValidationError, _invalid_request)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(OSError, _disk_error)
    app.add_exception_handler(DataError, _value_error)
    app.add_exception_handler(UnicodeEncodeError, _value_error)
    return SecurityMiddleware(app, board)


def _health(request: Request) -> Response:
    """Liveness: the board runs and its database answers."""
    board: Board = request.app.state.board
    with board.farm.database.read() as connection:
        connection.exec_driver_sql("select 1")
    return PlainTextResponse("ok\n")


def status_of(error: Exception) -> int:
    """The HTTP status of one of the `KNOWN` errors."""
    for kinds, status in (
        ((UnknownJob, StoreMissing), 404),
        ((BadInput,), 400),
        ((IllegalChange, LostRace), 409),
        ((ServiceError,), 503),
        ((StoreError,), 502),
    ):
        if isinstance(error, kinds):
            return status
    return 400


def _known_error(request: Request, error: Exception) -> Response:
    param = error.field if isinstance(error, BadInput) else None
    return _error(request, status_of(error), str(error), param)


def _invalid_request(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first: dict[str, Any] = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"] if part not in ("body", "query", "path"))
    return _error(request, 422, f"{place or 'request'}: {first['msg'].lower()}", place or None)


def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    text = str(error.detail)
    if text == HTTPStatus(error.status_code).phrase:
        # Starlette's own word, which the heading says already.
        text = _PLAIN.get(error.status_code, text)
    response = _error(request, error.status_code, text)
    response.headers.update(error.headers or {})
    return response


def _value_error(request: Request, error: Exception) -> Response:
    """A value that no check has refused and no database takes: null bytes, halves of surrogate pairs, numbers
    beyond a column."""
    _log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    return _error(request, 400, "a value of the request is no text or number that the database takes")


def _disk_error(request: Request, error: Exception) -> Response:
    """The board's own files: what is uploaded lies in its temporary folder for a while."""
    assert isinstance(error, OSError)
    _log.error("%s %s failed", request.method, request.url.path, exc_info=error)
    full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    reason = "has no space for it" if full else f"cannot read or write a file ({error.strerror or error})"
    return _error(request, 507 if full else 503, f"the board's machine {reason}; tell its administrator")


def _error(request: Request, status: int, text: str, param: str | None = None) -> Response:
    # The text may quote the request; lone surrogates cannot be encoded.
    text = text.encode(errors="replace").decode()
    if speaks_openai(request.url.path):
        return openai_error(status, text, param=param)
    if request.url.path.startswith("/api/") or "text/html" not in request.headers.get("accept", ""):
        return JSONResponse({"error": text}, status)
    return pages.error_page(request, status, text)
