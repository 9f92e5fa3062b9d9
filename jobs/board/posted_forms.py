"""What the handlers of posted forms share: the CSRF token is checked, the answer is a page to go to."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import urlencode

from fastapi import Request
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse, Response

from jobs.board.board import Board

Handler = Callable[[Board, Request, dict[str, Any]], Response]
_FIELDS = 60


async def handle_form(request: Request, handler: Handler) -> Response:
    """Read the form, check its CSRF token, and run the handler in a thread."""
    board: Board = request.app.state.board
    async with request.form(max_files=1, max_fields=_FIELDS, max_part_size=1 << 20) as form:
        session = request.state.session
        if session is None or not board.access.is_csrf_token(session, str(form.get("csrf_token", ""))):
            raise HTTPException(403, "the form has expired; reload the page")
        return await run_in_threadpool(handler, board, request, _values(form))


def _values(form: FormData) -> dict[str, Any]:
    """Values without surrounding blanks and null bytes, which no database takes."""
    return {
        name: value if isinstance(value, UploadFile) else value.replace("\0", "").strip()
        for name, value in form.items()
    }


def redirect(path: str, notice: str = "") -> Response:
    """To a page that shows a notice."""
    return RedirectResponse(path + (f"?{urlencode({'notice': notice})}" if notice else ""), 303)
