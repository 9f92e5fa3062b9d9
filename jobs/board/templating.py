"""Pages from Jinja templates. Every value is escaped; an undefined name is an error.

Control characters and characters that turn the direction of text around are shown as their escapes, so that a
name or a prompt cannot change how the text beside it reads.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastapi import Request
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.responses import HTMLResponse

from jobs.board.access import is_person
from jobs.board.board import Board
from jobs.board.format import FILTERS
from jobs.board.images import thumbnail
from jobs.board.static_files import static_url
from jobs.formatting import printable


def _shown(value: Any) -> Any:
    # Markup is text of ours, and numbers have nothing to hide.
    return printable(value, keep="\n\r\t") if type(value) is str else value


_environment = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"),
    autoescape=True,
    undefined=StrictUndefined,
    finalize=_shown,
    trim_blocks=True,
    lstrip_blocks=True,
)
_environment.filters.update(FILTERS)
_environment.globals.update(thumbnail=thumbnail, static=static_url)


def page(request: Request, template: str, values: dict[str, Any], status: int = 200) -> HTMLResponse:
    """A whole page."""
    return HTMLResponse(_environment.get_template(template).render(_context(request, values)), status)


def live_block(request: Request, template: str, values: dict[str, Any]) -> str:
    """The block of a page that is sent again when it changes."""
    found = _environment.get_template(template)
    return "".join(found.blocks["live"](found.new_context(_context(request, values))))


def _context(request: Request, values: dict[str, Any]) -> dict[str, Any]:
    board: Board = request.app.state.board
    session, path = request.state.session, request.url.path.removeprefix("/live")
    return {
        "path": path or "/",
        "query": request.url.query,
        "role": request.state.role,
        "may_change": request.state.role == "operator",
        "may_review": request.state.role in ("reviewer", "operator"),
        "reviewer": request.state.name if is_person(request.state.name) else "",
        "has_tokens": not board.access.open and not request.state.by_proxy,
        "user": request.state.name if request.state.by_proxy else "",
        "csrf_token": "" if session is None else board.access.csrf_token(session),
        "notice": request.query_params.get("notice", "")[:300],
    } | values
