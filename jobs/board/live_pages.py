"""Live pages: the live block of a template is sent again as a server-sent event whenever it changes."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response, StreamingResponse

from infra.errors import ServiceError, StoreError
from jobs.board.board import Board
from jobs.board.templating import live_block, page
from jobs.errors import JobError
from render.errors import BadInput

View = Callable[[Board, Request], dict[str, Any]]
"""Reads the farm and returns the values of a page's template."""
_POLL_S = 1.0
_POLL_PAUSE = 20
"""A stream pauses at least this many times as long as its last poll took."""
_KEEPALIVE_POLLS = 15
"""After this many polls without a change a comment is sent, so that proxies keep the connection open."""


def live_page(router: APIRouter, path: str, template: str) -> Callable[[View], View]:
    """Serve a view as the page at `path`, and its live block as an event stream at `/live` + path."""

    def register(view: View) -> View:
        def whole(request: Request) -> Response:
            return page(request, template, view(request.app.state.board, request))

        def stream(request: Request) -> Response:
            return StreamingResponse(_events(request, template, view), media_type="text/event-stream")

        router.add_api_route(path, whole, methods=["GET"])
        router.add_api_route("/live" + path.rstrip("/"), stream, methods=["GET"])
        return view

    return register


async def _events(request: Request, template: str, view: View) -> AsyncIterator[str]:
    """The page's live block, each time it has changed."""
    board: Board = request.app.state.board
    last, unchanged = "", 0
    while not (board.ending.is_set() or await request.is_disconnected()):
        started = time.monotonic()
        try:
            block = await run_in_threadpool(lambda: live_block(request, template, view(board, request)))
        except (ServiceError, StoreError, JobError, BadInput):
            # The database is unreachable or the job is gone: the page stays as it is.
            block = last
        unchanged = 0 if block != last else unchanged + 1
        if block != last:
            yield f"data: {json.dumps(block)}\n\n"
        elif unchanged % _KEEPALIVE_POLLS == 0:
            yield ": keep-alive\n\n"
        last = block
        # A slow view, such as a search through very many jobs, is polled less often.
        until = time.monotonic() + max(_POLL_S, _POLL_PAUSE * (time.monotonic() - started))
        while time.monotonic() < until and not board.ending.is_set():
            await asyncio.sleep(_POLL_S / 4)
