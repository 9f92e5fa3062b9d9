"""The page of the webhooks, for operators: who is told what, and a message to try it."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from infra.errors import NotifyFailed, SettingError
from jobs.board.board import Board
from jobs.board.posted_forms import handle_form, redirect
from jobs.board.templating import page
from jobs.board.webhooks_api import add_audited, check_operator, remove_audited, test_audited
from jobs.webhooks.registry import KINDS, MAILTO, PERS, list_webhooks
from render.errors import BadInput

_FIELDS = ("url", "kind", "per", "queue", "batch", "owner")
router = APIRouter(include_in_schema=False)


@router.get("/webhooks")
def webhooks(request: Request) -> Response:
    """All webhooks, and the form for another one."""
    check_operator(request)
    return _page(request, {})


@router.post("/webhooks")
async def add(request: Request) -> Response:
    """Add one; the page that answers shows its secret, once."""
    return await handle_form(request, _add)


def _add(board: Board, request: Request, form: dict[str, Any]) -> Response:
    given = {name: str(form.get(name) or "")[:2001] for name in _FIELDS}
    try:
        made = add_audited(board, request, given | {name: given[name] or None for name in _FIELDS[1:]})
    except BadInput as exc:
        return _page(request, given, error=str(exc))
    return _page(request, {}, made=made)


@router.post("/webhooks/{id}/do")
async def act(request: Request, id: str) -> Response:
    """Test or remove one."""
    return await handle_form(request, _act)


def _act(board: Board, request: Request, form: dict[str, Any]) -> Response:
    id = request.path_params["id"]
    if form.get("action") == "remove":
        remove_audited(board, request, id)
        return redirect("/webhooks", f"webhook {id} is removed")
    if form.get("action") != "test":
        raise BadInput("action", str(form.get("action"))[:40], "is unknown; use test or remove")
    try:
        place = test_audited(board, request, id)
    except (NotifyFailed, SettingError) as exc:
        return _page(request, {}, error=str(exc))
    return redirect("/webhooks", f"A test message was sent to {place.removeprefix(MAILTO)}")


def _page(
    request: Request, values: dict[str, str], error: str | None = None, made: dict[str, Any] | None = None
) -> Response:
    board: Board = request.app.state.board
    with board.farm.database.read() as connection:
        known = list_webhooks(connection)
    given = {
        "webhooks": known,
        "values": dict.fromkeys(_FIELDS, "") | values,
        "kinds": KINDS,
        "pers": PERS,
        "queue_names": [queue["name"] for queue in board.queues()],
        "mails": bool(board.farm.settings.smtp_url.get_secret_value()),
        "error": error,
        "made": made,
    }
    return page(request, "webhooks.html", given, 200 if error is None else 400)
