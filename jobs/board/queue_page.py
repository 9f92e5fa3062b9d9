"""The page of a queue, for operators: its priority, limit, time window and shares."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote

from fastapi import APIRouter, Request
from starlette.responses import Response

from jobs.board.board import Board
from jobs.board.posted_forms import handle_form, redirect
from jobs.board.templating import page
from jobs.board.webhooks_api import check_operator
from jobs.db.audit import record
from jobs.db.queues import check_exists, delete_queue, set_queue
from jobs.db.state_machine import ENDED
from jobs.queue_rules import form_of_rules, rules_of_form
from render.errors import BadInput

router = APIRouter(include_in_schema=False)
_NEW = {"priority": "", "limit": "", "window": "", "shares": ""}


@router.get("/queues")
def new_queue(request: Request) -> Response:
    """The form for a new queue."""
    check_operator(request, "rules of queues")
    return _page(request, None, _NEW | {"name": ""})


@router.post("/queues")
async def add(request: Request) -> Response:
    """Make a queue."""
    return await handle_form(request, _add)


@router.get("/queues/{name}")
def one_queue(request: Request, name: str) -> Response:
    """The rules of a queue."""
    check_operator(request, "rules of queues")
    known = _known(request.app.state.board, name)
    return _page(request, known, form_of_rules(known))


@router.post("/queues/{name}")
async def change(request: Request, name: str) -> Response:
    """Change the rules of a queue, or delete it."""
    return await handle_form(request, _change)


def _add(board: Board, request: Request, form: dict[str, Any]) -> Response:
    name = str(form.get("name") or "")
    return _set(board, request, name, form, None)


def _change(board: Board, request: Request, form: dict[str, Any]) -> Response:
    known = _known(board, request.path_params["name"])
    if form.get("action") != "delete":
        return _set(board, request, known["name"], form, known)
    try:
        with board.farm.database.write() as connection:
            delete_queue(connection, known["name"])
            record(connection, request.state.who, "delete queue", f"queue {known['name']}")
    except BadInput as exc:
        return _page(request, known, form_of_rules(known), str(exc))
    board.forget_queues()
    return redirect("/", f"queue {known['name']} is deleted")


def _set(
    board: Board, request: Request, name: str, form: dict[str, Any], known: dict[str, Any] | None
) -> Response:
    shown = {field: str(form.get(field) or "") for field in (*_NEW, "name")}
    try:
        rules = rules_of_form(form)
        with board.farm.database.write() as connection:
            stored = set_queue(connection, name, rules)
            record(connection, request.state.who, "set queue", f"queue {name}", **stored)
    except BadInput as exc:
        return _page(request, known, shown, str(exc))
    board.forget_queues()
    return redirect("/", f"queue {name} is changed" if known else f"queue {name} is made")


def _known(board: Board, name: str) -> dict[str, Any]:
    """A queue with rules or jobs; raises `BadInput` for any other name."""
    with board.farm.database.read() as connection:
        check_exists(connection, None, name)
    board.forget_queues()
    return next(queue for queue in board.queues() if queue["name"] == name)


def _page(
    request: Request, known: dict[str, Any] | None, values: dict[str, str], error: str | None = None
) -> Response:
    unfinished = 0
    if known is not None:
        unfinished = sum(count for state, count in known["jobs"].items() if state not in ENDED)
    given = {
        "queue": known,
        "address": "/queues" if known is None else f"/queues/{quote(known['name'], safe='')}",
        "values": values,
        "may_delete": known is not None and not unfinished,
        "error": error,
    }
    return page(request, "queue.html", given, 200 if error is None else 400)
