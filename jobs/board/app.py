"""Puts the board together: guard, pages, API, pictures, and one way to say what went wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.staticfiles import StaticFiles

from infra.errors import ServiceError, StoreError, StoreMissing
from jobs.board import api, forms, images, pages
from jobs.board.board import Board
from jobs.board.middleware import SecurityMiddleware
from jobs.errors import KNOWN, IllegalChange, LostRace, UnknownJob
from render.errors import BadInput

STATIC = Path(__file__).parent / "static"
_DESCRIPTION = "What the command line does to jobs, over HTTP. Errors are one sentence in `error`."


def make_app(board: Board) -> SecurityMiddleware:
    """A board as an ASGI application."""
    app = FastAPI(title="Chorale", version="1", description=_DESCRIPTION, docs_url=None, redoc_url=None)
    app.openapi_url = "/api/v1/openapi.json"
    app.setup()
    app.state.board = board
    # Tiles first: they are asked for most.
    for part in (images, api, forms, pages):
        app.include_router(part.router)
    app.add_api_route("/healthz", _health, include_in_schema=False)
    app.mount("/static", _Static(directory=STATIC))
    for kind in KNOWN:
        app.add_exception_handler(kind, _known)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http)
    return SecurityMiddleware(app, board.access)


def _health(request: Request) -> Response:
    """Is the board up, and does its database answer?"""
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


def _known(request: Request, error: Exception) -> Response:
    return _said(request, status_of(error), str(error))


def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first: dict[str, Any] = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"] if part not in ("body", "query", "path"))
    return _said(request, 422, f"{place or 'request'}: {first['msg'].lower()}")


def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    answer = _said(request, error.status_code, str(error.detail))
    answer.headers.update(error.headers or {})
    return answer


def _said(request: Request, status: int, text: str) -> Response:
    # What came in is said again, so half surrogates, which have no bytes, go.
    text = text.encode(errors="replace").decode()
    if request.url.path.startswith("/api/") or "text/html" not in request.headers.get("accept", ""):
        return JSONResponse({"error": text}, status)
    return pages.problem(request, status, text)


class _Static(StaticFiles):
    """Style, scripts and vendored parts; a browser asks again whether they have changed."""

    def file_response(self, *arguments: Any, **options: Any) -> Response:
        answer = super().file_response(*arguments, **options)
        answer.headers["cache-control"] = "no-cache"
        return answer
