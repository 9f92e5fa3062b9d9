"""What the pages' forms do. Each brings its session's word along, and ends with a page to look at."""

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
from jobs.board.templating import page
from jobs.db.board_queries import batch_rows
from jobs.db.commands import VERBS, apply_command, apply_to_all
from jobs.db.leases import lock_placement
from jobs.db.nodes import set_draining
from jobs.db.queries import Filter, job_ids, show_job
from jobs.db.queues import set_queue
from jobs.db.submission import JobOptions, parse_moment, parse_ranks, submit
from render.errors import BadInput
from render.spec import parse_size

_TEXT = ("prompt", "negative_prompt", "sampler", "model", "blend", "dtype", "format")
_WHOLE = ("seed", "variation", "steps", "quality", "window_batch", "tile_size")
_REAL = ("guidance_scale", "strength", "skip_residual")
_KEPT = (
    "init",
    "boxes",
    "tile_set",
    "wrap",
    "ilvr",
    "dilated",
    "cross_attention",
    "cross_attention_form",
    "refiner",
    "refiner_start",
)
"""What a variation has from its original: the form has no field for these."""
_FIELDS, _SHOWN = 60, 8
_ENDINGS = (".csv", ".jsonl")
"""Not YAML: a few lines of it can stand for more than any memory holds."""

router = APIRouter(include_in_schema=False)
Work = Callable[[Board, Request, dict[str, Any]], Response]


async def _taken(request: Request, work: Work) -> Response:
    """Read the form, check its word, and do the work beside the event loop."""
    board: Board = request.app.state.board
    async with request.form(max_files=1, max_fields=_FIELDS, max_part_size=1 << 20) as form:
        session = request.state.session
        if session is None or not board.access.is_csrf_token(session, str(form.get("csrf_token", ""))):
            raise HTTPException(403, "the form has expired; reload the page")
        return await run_in_threadpool(work, board, request, _values(form))


def _values(form: FormData) -> dict[str, Any]:
    """Texts without blanks around them, nor null bytes, which no database takes."""
    return {
        name: value if isinstance(value, UploadFile) else value.replace("\0", "").strip()
        for name, value in form.items()
    }


@router.post("/jobs/{job}/do")
async def steer(request: Request, job: str) -> Response:
    """Cancel, pause, resume or retry a job."""
    return await _taken(request, _steer)


def _steer(board: Board, request: Request, form: dict[str, Any]) -> Response:
    job, verb = board.job(request.path_params["job"]), _verb(form)
    with board.farm.database.write() as connection:
        lock_placement(connection)
        apply_command(connection, verb, job, WHO)
    return _redirect(f"/jobs/{job}")


@router.post("/batches/{batch}/do")
async def steer_batch(request: Request, batch: str) -> Response:
    """The same for all jobs of a batch."""
    return await _taken(request, _steer_batch)


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
    """Stop or go on placing a queue's jobs."""
    return await _taken(request, _steer_queue)


def _steer_queue(board: Board, request: Request, form: dict[str, Any]) -> Response:
    with board.farm.database.write() as connection:
        set_queue(connection, request.path_params["name"][:64], {"paused": form.get("paused") == "yes"})
    board.forget_queues()
    return _redirect("/")


@router.post("/nodes/{name}/do")
async def drain(request: Request, name: str) -> Response:
    """Place nothing more on a node, or place on it again."""
    return await _taken(request, _drain)


def _drain(board: Board, request: Request, form: dict[str, Any]) -> Response:
    with board.farm.database.write() as connection:
        set_draining(connection, request.path_params["name"], form.get("draining") == "yes")
    return _redirect("/nodes")


@router.post("/submit")
async def submit_one(request: Request) -> Response:
    """Queue one image."""
    return await _taken(request, _submit_one)


def _submit_one(board: Board, request: Request, form: dict[str, Any]) -> Response:
    try:
        receipt = board.submit(_kept(board, form.get("of")) | _spec_values(form), _terms(form))
    except BadInput as exc:
        return pages.form_page(request, form, str(exc))
    with board.farm.database.read() as connection:
        (row,) = batch_rows(connection, receipt.batch, 1)
    return _redirect(f"/jobs/{row['id']}", "" if receipt.new else "this image was submitted before")


def _kept(board: Board, original: str | None) -> dict[str, Any]:
    if not original:
        return {}
    job = board.job(original)
    with board.farm.database.read() as connection:
        spec = show_job(connection, job)["spec"]
    return {name: spec[name] for name in _KEPT if spec.get(name) is not None}


@router.post("/submit/batch")
async def submit_many(request: Request) -> Response:
    """Queue every row of a batch file."""
    return await _taken(request, _submit_many)


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
    terms, name = _terms(form), Path(file.filename).name[:200]
    if Path(name).suffix.lower() not in _ENDINGS:
        raise BadInput("file", name, f"is neither of {' nor '.join(_ENDINGS)}; chorale submit takes YAML too")
    with tempfile.TemporaryDirectory(prefix="chorale-batch-") as folder:
        path = Path(folder) / f"batch{Path(name).suffix.lower()}"
        path.write_bytes(file.file.read())
        reader = BatchReader(
            path=path,
            template=form.get("template") or None,
            defaults={name: value for name, value in _spec_values(form).items() if name != "prompt"},
            ignored=frozenset(word.strip() for word in form.get("ignore", "").split(",") if word.strip()),
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
            raise BadInput("file", name, "has no rows")
        return submit(board.farm.database, batch_items(reader), name, terms).batch


@router.post("/login")
async def log_in(request: Request) -> Response:
    """Take a token, give a session."""
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
    """Forget the browser's session."""
    return await _taken(request, _log_out)


def _log_out(board: Board, request: Request, form: dict[str, Any]) -> Response:
    answer = RedirectResponse("/login", 303)
    answer.headers["set-cookie"] = cookie_line("", request.url.scheme == "https", 0)
    return answer


def _verb(form: dict[str, Any]) -> str:
    verb = str(form.get("verb", ""))
    if verb not in VERBS:
        raise BadInput("verb", verb[:40], f"is unknown; use one of {', '.join(VERBS)}")
    return verb


def _spec_values(form: dict[str, Any]) -> dict[str, Any]:
    """What decides the pixels, by the spec's own names; what is left empty keeps its default."""
    values: dict[str, Any] = {name: form[name] for name in _TEXT if form.get(name)}
    for names, kind, what in ((_WHOLE, int, "a whole number"), (_REAL, float, "a number")):
        for name in names:
            if form.get(name):
                values[name] = _number(name, form[name], kind, what)
    if form.get("size"):
        values["width"], values["height"] = parse_size(form["size"].replace(" ", "").replace("×", "x"))
    return values


def _number(name: str, text: str, kind: Callable[[str], Any], what: str) -> Any:
    try:
        return kind(text)
    except ValueError as exc:
        raise BadInput(name, text[:60], f"is not {what}") from exc


def _terms(form: dict[str, Any]) -> JobOptions:
    priority = form.get("priority")
    queue = form.get("queue") or "default"
    if len(queue) > 64:
        raise BadInput("queue", queue[:64], "has more than 64 characters")
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
    """A path of this board, not of another site."""
    parts = urlsplit(address)
    return (
        address.startswith("/")
        and not address.startswith(("//", "/\\"))
        and not (parts.netloc or parts.scheme)
    )


def _redirect(path: str, notice: str = "") -> Response:
    return RedirectResponse(path + (f"?{urlencode({'notice': notice})}" if notice else ""), 303)
