"""Pages that stay live: what they show is sent again, as server-sent events, whenever it has changed."""

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
from jobs.board.templating import live_part, page
from jobs.errors import JobError
from render.errors import BadInput

Look = Callable[[Board, Request], dict[str, Any]]
"""What a page shows, from a look at the farm."""
_LOOK_S = 1.0
_REST = 20
"""A stream rests so many times as long as it looks."""
_STILL_EVERY = 15
"""A stream without news says so after so many looks, and keeps proxies from closing it."""


def shown(router: APIRouter, path: str, template: str) -> Callable[[Look], Look]:
    """Serve what a look gives as the page at `path`, and its live part as a stream at `/live` + path."""

    def register(look: Look) -> Look:
        def whole(request: Request) -> Response:
            return page(request, template, look(request.app.state.board, request))

        def stream(request: Request) -> Response:
            return StreamingResponse(_news(request, template, look), media_type="text/event-stream")

        router.add_api_route(path, whole, methods=["GET"])
        router.add_api_route("/live" + path.rstrip("/"), stream, methods=["GET"])
        return look

    return register


async def _news(request: Request, template: str, look: Look) -> AsyncIterator[str]:
    """The page's live part, again whenever it has changed."""
    board: Board = request.app.state.board
    last, silent = "", 0
    while not (board.ending.is_set() or await request.is_disconnected()):
        started = time.monotonic()
        try:
            part = await run_in_threadpool(lambda: live_part(request, template, look(board, request)))
        except (ServiceError, StoreError, JobError, BadInput):
            # The database is away, or the job is gone: the page stays as it was.
            part = last
        silent = 0 if part != last else silent + 1
        if part != last:
            yield f"data: {json.dumps(part)}\n\n"
        elif silent % _STILL_EVERY == 0:
            yield ": still here\n\n"
        last = part
        # A look that is slow, a search through very many jobs, is not taken again at once.
        until = time.monotonic() + max(_LOOK_S, _REST * (time.monotonic() - started))
        while time.monotonic() < until and not board.ending.is_set():
            await asyncio.sleep(_LOOK_S / 4)
