"""What is done with the jobs that are selected in the list: all at once, each where its state allows it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qsl, urlencode

from fastapi import APIRouter, Request
from sqlalchemy import Connection
from starlette.responses import RedirectResponse, Response

from jobs.board.board import WHO, Board
from jobs.board.deletion import ask_for_selected
from jobs.board.posted_forms import handle_form
from jobs.db.audit import record
from jobs.db.commands import VERBS, apply_to_all, move_to_queue, set_priority
from jobs.db.leases import lock_placement
from jobs.db.queues import check_exists
from jobs.formatting import plural
from jobs.queue_rules import parse_priority
from render.errors import BadInput

router = APIRouter(include_in_schema=False)
SELECTED = "job-"
"""Begins the name of each checkbox; the rest is the id of its job."""
_FILTER = ("state", "queue", "owner", "batch", "q", "sort", "after", "before")


@router.post("/jobs/do")
async def change_selected(request: Request) -> Response:
    """Cancel, pause, resume or retry the selected jobs, give them a priority or another queue, or ask whether
    they are to be deleted."""
    return await handle_form(request, _change_selected)


def _change_selected(board: Board, request: Request, form: dict[str, Any]) -> Response:
    action = str(form.get("action", ""))
    chosen = sorted(board.job(name.removeprefix(SELECTED)) for name in form if name.startswith(SELECTED))
    if not chosen:
        raise BadInput("jobs", None, "are missing; select some in the list")
    if action in VERBS:
        done = apply_to_all(board.farm.database, action, chosen, WHO)
        text = f"{_jobs(done)} {VERBS[action][1]}"
        with board.farm.database.write() as connection:
            record(connection, request.state.who, action, f"{plural(len(chosen), 'selected job')}", jobs=done)
    elif action == "priority":
        value = parse_priority(str(form.get("priority") or ""))
        done = _each(board, request, action, chosen, _with_priority(value), priority=value)
        text = f"{_jobs(done)} at priority {value}"
    elif action == "delete":
        return ask_for_selected(board, request, chosen)
    elif action == "move":
        queue = str(form.get("queue") or "")
        with board.farm.database.read() as connection:
            check_exists(connection, None, queue)
        done = _each(board, request, action, chosen, _into(queue), queue=queue)
        text = f"{_jobs(done)} in queue {queue}"
    else:
        known = ", ".join((*VERBS, "priority", "move", "delete"))
        raise BadInput("action", action[:40], f"is unknown; use one of {known}")
    board.forget_queues()
    left = len(chosen) - done
    text += f"; {left} could not be changed in {'its state' if left == 1 else 'their states'}" if left else ""
    return _back(form, text)


Change = Callable[[Connection, str], bool]


def _each(
    board: Board, request: Request, action: str, chosen: list[str], change: Change, **details: Any
) -> int:
    """Change each job in one transaction; returns how many could be."""
    with board.farm.database.write() as connection:
        lock_placement(connection)
        done = sum(change(connection, job) for job in chosen)
        selected = plural(len(chosen), "selected job")
        record(connection, request.state.who, action, selected, jobs=done, **details)
    return done


def _with_priority(value: int) -> Change:
    def change(connection: Connection, job: str) -> bool:
        set_priority(connection, job, value)
        return True

    return change


def _into(queue: str) -> Change:
    return lambda connection, job: move_to_queue(connection, job, queue)


def _jobs(count: int) -> str:
    return f"{plural(count, 'job')} {'is' if count == 1 else 'are'}"


def _back(form: dict[str, Any], notice: str) -> Response:
    """To the list as it was filtered."""
    known = {name: value for name, value in parse_qsl(str(form.get("list") or "")) if name in _FILTER}
    return RedirectResponse(f"/jobs?{urlencode(known | {'notice': notice})}", 303)
