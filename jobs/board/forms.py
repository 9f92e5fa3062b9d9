"""The POST handlers of the pages' forms. Each one checks the CSRF token and redirects to a page."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.responses import RedirectResponse, Response

from jobs.batches import BadRow, BatchReader, batch_items, check_batch
from jobs.board import pages
from jobs.board.api import WHO
from jobs.board.board import Board
from jobs.board.middleware import cookie_line
from jobs.board.spec_form import entered_values, kept_values
from jobs.board.templating import page
from jobs.db.board_queries import batch_rows
from jobs.db.commands import VERBS, apply_command, apply_to_all
from jobs.db.leases import lock_placement
from jobs.db.nodes import set_draining
from jobs.db.queries import Filter, job_ids, show_job
from jobs.db.queues import set_queue
from jobs.db.submission import JobOptions, parse_moment, submit
from jobs.ranks import parse_ranks
from render.errors import BadInput

_FIELDS, _SHOWN = 60, 8
_ENDINGS = (".csv", ".jsonl")
"""Not YAML: aliases let a few lines expand to more than any memory holds."""

router = APIRouter(include_in_schema=False)
Handler = Callable[[Board, Request, dict[str, Any]], Response]


async def _handle(request: Request, handler: Handler) -> Response:
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


@router.post("/jobs/{job}/do")
async def steer(request: Request, job: str) -> Response:
    """Cancel, pause, resume or retry a job."""
    return await _handle(request, _steer)


def _steer(board: Board, request: Request, form: dict[str, Any]) -> Response:
    job, verb = board.job(request.path_params["job"]), _verb(form)
    with board.farm.database.write() as connection:
        lock_placement(connection)
        apply_command(connection, verb, job, WHO)
    return _redirect(f"/jobs/{job}")


@router.post("/batches/{batch}/do")
async def steer_batch(request: Request, batch: str) -> Response:
    """Cancel, pause, resume or retry all jobs of a batch."""
    return await _handle(request, _steer_batch)


def _steer_batch(board: Board, request: Request, form: dict[str, Any]) -> Response:
    verb, batch = _verb(form), request.path_params["batch"]
    with board.farm.database.read() as connection:
        chosen = job_ids(connection, Filter(states=VERBS[verb][0], batch=batch))
    done = apply_to_all(board.farm.database, verb, chosen, WHO)
    return _redirect(
        f"/batches/{quote(batch)}", f"{done} {'job is' if done == 1 else 'jobs are'} {VERBS[verb][1]}"
    )


@router.post("/queues/{name}/do")
async def steer_queue(request: Request, name: str) -> Response:
    """Pause or resume a queue."""
    return await _handle(request, _steer_queue)


def _steer_queue(board: Board, request: Request, form: dict[str, Any]) -> Response:
    with board.farm.database.write() as connection:
        set_queue(connection, request.path_params["name"][:64], {"paused": form.get("paused") == "yes"})
    board.forget_queues()
    return _redirect("/")


@router.post("/nodes/{name}/do")
async def drain(request: Request, name: str) -> Response:
    """Drain or undrain a node."""
    return await _handle(request, _drain)


def _drain(board: Board, request: Request, form: dict[str, Any]) -> Response:
    with board.farm.database.write() as connection:
        set_draining(connection, request.path_params["name"], form.get("draining") == "yes")
    return _redirect("/nodes")


@router.post("/submit")
async def submit_one(request: Request) -> Response:
    """Queue one image."""
    return await _handle(request, _submit_one)


def _submit_one(board: Board, request: Request, form: dict[str, Any]) -> Response:
    try:
        original = _original(board, form["of"]) if form.get("of") else {}
        receipt = board.submit(kept_values(original, form) | entered_values(form), _job_options(form))
    except BadInput as exc:
        return pages.form_page(request, form, str(exc))
    with board.farm.database.read() as connection:
        (row,) = batch_rows(connection, receipt.batch, 1)
    return _redirect(f"/jobs/{row['id']}", "" if receipt.new else "this image was submitted before")


def _original(board: Board, job: str) -> dict[str, Any]:
    """The spec of the job that a variation is made of."""
    with board.farm.database.read() as connection:
        spec: dict[str, Any] = show_job(connection, board.job(job))["spec"]
    return spec


@router.post("/submit/batch")
async def submit_many(request: Request) -> Response:
    """Queue every row of a batch file."""
    return await _handle(request, _submit_many)


def _submit_many(board: Board, request: Request, form: dict[str, Any]) -> Response:
    try:
        batch = _submitted_batch(board, form)
    except BadInput as exc:
        shown = {name: value for name, value in form.items() if isinstance(value, str)}
        return pages.form_page(request, shown, str(exc), part="batch")
    return _redirect(f"/batches/{batch}")


def _submitted_batch(board: Board, form: dict[str, Any]) -> str:
    """Check the whole file, then queue it; raises `BadInput`, and nothing is queued then."""
    file = form.get("file")
    if not isinstance(file, UploadFile) or not file.filename:
        raise BadInput("file", None, f"is missing; choose a {' or '.join(_ENDINGS)}")
    options, name = _job_options(form), Path(file.filename).name[:200]
    if Path(name).suffix.lower() not in _ENDINGS:
        raise BadInput("file", name, f"is not {' or '.join(_ENDINGS)}; chorale submit takes YAML too")
    with tempfile.TemporaryDirectory(prefix="chorale-batch-") as folder:
        path = Path(folder) / f"batch{Path(name).suffix.lower()}"
        path.write_bytes(file.file.read())
        reader = BatchReader(
            path=path,
            template=form.get("template") or None,
            defaults={name: value for name, value in entered_values(form).items() if name != "prompt"},
            ignored=frozenset(name.strip() for name in form.get("ignore", "").split(",") if name.strip()),
            names_files=False,
        )
        for row in reader:
            if not isinstance(row, BadRow):
                board.check_models(row.spec)
        good, bad = check_batch(reader)
        if bad:
            lines = "; ".join(f"line {row.line}: {row.problem}" for row in bad[:_SHOWN])
            more = f"; and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
            raise BadInput("file", name, f"has {len(bad)} bad rows, so nothing was queued: {lines}{more}")
        if not good:
            raise BadInput("file", name, "has no rows; write one per image")
        return submit(board.farm.database, batch_items(reader), name, options).batch


@router.post("/login")
async def log_in(request: Request) -> Response:
    """Exchange a token for a session."""
    board: Board = request.app.state.board
    async with request.form(max_files=0, max_fields=4) as form:
        token, wanted = str(form.get("token", "")), str(form.get("next", "/"))
    role = board.access.role_of(token.strip())
    if role is None:
        return page(request, "login.html", {"next": wanted, "error": "Invalid token"}, 403)
    answer = RedirectResponse(wanted if _is_ours(wanted) else "/", 303)
    session = board.access.new_session(role)
    answer.headers["set-cookie"] = cookie_line(session.cookie, request.url.scheme == "https")
    return answer


@router.post("/logout")
async def log_out(request: Request) -> Response:
    """End the session."""
    return await _handle(request, _log_out)


def _log_out(board: Board, request: Request, form: dict[str, Any]) -> Response:
    answer = RedirectResponse("/login", 303)
    answer.headers["set-cookie"] = cookie_line("", request.url.scheme == "https", 0)
    return answer


def _verb(form: dict[str, Any]) -> str:
    verb = str(form.get("verb", ""))
    if verb not in VERBS:
        raise BadInput("verb", verb[:40], f"is unknown; use one of {', '.join(VERBS)}")
    return verb


def _job_options(form: dict[str, Any]) -> JobOptions:
    priority = form.get("priority")
    queue = form.get("queue") or "default"
    if len(queue) > 64:
        raise BadInput("queue", queue[:64], "has more than 64 characters; use a shorter name")
    if priority and not (priority.isascii() and priority.isdigit() and int(priority) <= 100):
        raise BadInput("priority", priority[:40], "is not a whole number from 0 to 100")
    return JobOptions(
        owner=(form.get("owner") or WHO)[:128],
        queue=queue,
        priority=int(priority) if priority else None,
        ranks=parse_ranks(form.get("ranks") or "auto"),
        not_before=parse_moment("not_before", form.get("not_before")),
        deadline=parse_moment("deadline", form.get("deadline")),
    )


def _is_ours(address: str) -> bool:
    """Whether it is a path of this board, not a URL of another site."""
    parts = urlsplit(address)
    return (
        address.startswith("/")
        and not address.startswith(("//", "/\\"))
        and not (parts.netloc or parts.scheme)
    )


def _redirect(path: str, notice: str = "") -> Response:
    return RedirectResponse(path + (f"?{urlencode({'notice': notice})}" if notice else ""), 303)
