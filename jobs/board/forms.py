"""The POST handlers of the pages' forms. Each one checks the CSRF token and redirects to a page."""

from __future__ import annotations

from typing import Any
from urllib.parse import quote, urlsplit

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.responses import RedirectResponse, Response

from jobs.board import pages
from jobs.board.access import Token
from jobs.board.batch_review import person, reroll_images
from jobs.board.batch_upload import keep_upload, take_batch
from jobs.board.board import WHO, Board
from jobs.board.downloads import ask
from jobs.board.middleware import address_of, cookie_line
from jobs.board.posted_forms import handle_form, redirect
from jobs.board.spec_form import entered_values, kept_values
from jobs.board.templating import page
from jobs.board.uploads import Upload
from jobs.db.audit import record
from jobs.db.commands import VERBS, apply_command, apply_to_all
from jobs.db.find_predecessors import find_predecessors
from jobs.db.leases import lock_placement
from jobs.db.queries import Filter, job_ids, show_job
from jobs.db.queues import set_queue
from jobs.db.reviews import Named, Review, record_review, review_counts, review_rows
from jobs.db.submission import JobOptions
from jobs.formatting import plural
from jobs.intake.open_table import ENDINGS
from jobs.intake.options import is_random, parse_options
from jobs.moments import parse_moment
from jobs.ranks import parse_ranks
from jobs.renditions.farm import wanted_channels
from jobs.review.reroll import Changes
from jobs.tags import parse_tags
from render.errors import BadInput

_NOTICE = 600
"""Characters of a notice, which is part of an address."""
_NOTHING = "nothing was queued. Correct it and choose it again"

router = APIRouter(include_in_schema=False)


@router.post("/jobs/{job}/do")
async def steer(request: Request, job: str) -> Response:
    """Cancel, pause, resume or retry a job."""
    return await handle_form(request, _steer)


def _steer(board: Board, request: Request, form: dict[str, Any]) -> Response:
    job, verb = board.job(request.path_params["job"]), _verb(form)
    with board.farm.database.write() as connection:
        lock_placement(connection)
        apply_command(connection, verb, job, WHO)
        record(connection, request.state.who, verb, f"job {job}")
    return redirect(f"/jobs/{job}")


@router.post("/batches/{batch}/do")
async def steer_batch(request: Request, batch: str) -> Response:
    """Cancel, pause, resume or retry all jobs of a batch."""
    return await handle_form(request, _steer_batch)


def _steer_batch(board: Board, request: Request, form: dict[str, Any]) -> Response:
    verb, batch = _verb(form), request.path_params["batch"]
    with board.farm.database.read() as connection:
        chosen = job_ids(connection, Filter(states=VERBS[verb][0], batch=batch))
    done = apply_to_all(board.farm.database, verb, chosen, WHO)
    with board.farm.database.write() as connection:
        record(connection, request.state.who, verb, f"batch {batch}", jobs=done)
    return redirect(
        f"/batches/{quote(batch)}", f"{done} {'job is' if done == 1 else 'jobs are'} {VERBS[verb][1]}"
    )


@router.post("/batches/{batch}/reroll")
async def reroll_batch(request: Request, batch: str) -> Response:
    """Render the rejected images of a batch again."""
    return await handle_form(request, _reroll_batch)


def _reroll_batch(board: Board, request: Request, form: dict[str, Any]) -> Response:
    batch = request.path_params["batch"]
    prompt = form.get("prompt") or None
    changes = Changes(prompt=prompt, keep_seed=bool(form.get("keep_seed")) and prompt is not None)
    replaced = reroll_images(board, batch, None, changes, request)
    return redirect(f"/batches/{quote(batch)}", f"{plural(len(replaced), 'image')} will be rendered again")


@router.post("/batches/{batch}/keep-rest")
async def keep_rest(request: Request, batch: str) -> Response:
    """Keep the finished images of a batch that nobody has said anything of."""
    return await handle_form(request, _keep_rest)


def _keep_rest(board: Board, request: Request, form: dict[str, Any]) -> Response:
    batch = request.path_params["batch"]
    with board.farm.database.write() as connection:
        review_counts(connection, batch)
        rows = review_rows(connection, batch, chosen="unreviewed")
        rest = [Named(row["custom_id"], row["id"]) for row in rows]
        record_review(connection, batch, rest, person(request, form.get("reviewer")), Review(verdict="keep"))
    return redirect(f"/batches/{quote(batch)}", f"{plural(len(rest), 'image')} kept")


@router.post("/batches/{batch}/renditions")
async def ask_for_renditions(request: Request, batch: str) -> Response:
    """Have files made for a channel."""
    return await handle_form(request, _ask_for_renditions)


def _ask_for_renditions(board: Board, request: Request, form: dict[str, Any]) -> Response:
    batch = request.path_params["batch"]
    named = ask(board, request, batch, [str(form.get("channel", ""))])
    return redirect(f"/batches/{quote(batch)}", f"files for {', '.join(named)} are being made")


@router.post("/queues/{name}/do")
async def steer_queue(request: Request, name: str) -> Response:
    """Pause or resume a queue."""
    return await handle_form(request, _steer_queue)


def _steer_queue(board: Board, request: Request, form: dict[str, Any]) -> Response:
    with board.farm.database.write() as connection:
        name, rules = request.path_params["name"][:64], {"paused": form.get("paused") == "yes"}
        set_queue(connection, name, rules)
        record(connection, request.state.who, "set queue", f"queue {name}", **rules)
    board.forget_queues()
    return redirect("/")


@router.post("/submit")
async def submit_one(request: Request) -> Response:
    """Queue one image."""
    return await handle_form(request, _submit_one)


def _submit_one(board: Board, request: Request, form: dict[str, Any]) -> Response:
    try:
        original = _original(board, form["of"]) if form.get("of") else {}
        intake = parse_options(seed=form.get("seed"))
        entered = {name: value for name, value in form.items() if not (name == "seed" and is_random(value))}
        values = kept_values(original, form) | entered_values(entered)
        receipt = board.submit(values, _job_options(board, form), intake)
    except BadInput as exc:
        return pages.form_page(request, form, str(exc))
    if len(receipt.jobs) > 1:
        return redirect(f"/batches/{receipt.batch}")
    return redirect(f"/jobs/{receipt.jobs[0][1]}", "" if receipt.new else "this image was submitted before")


def _original(board: Board, job: str) -> dict[str, Any]:
    """The spec of the job that a variation is made of."""
    with board.farm.database.read() as connection:
        spec: dict[str, Any] = show_job(connection, board.job(job))["spec"]
    return spec


@router.post("/submit/batch")
async def submit_many(request: Request) -> Response:
    """Queue every row of a batch file."""
    return await handle_form(request, _submit_many)


def _submit_many(board: Board, request: Request, form: dict[str, Any]) -> Response:
    """Check the whole file, then queue it if that was asked for; the page keeps what was entered."""
    shown = {name: value for name, value in form.items() if isinstance(value, str)}
    try:
        upload = _upload(board, form)
        shown |= {"upload": upload.token, "upload_name": upload.name}
        dry_run = form.get("action") == "check"
        checked, receipt = take_batch(board, upload, shown, _job_options(board, form), dry_run)
    except BadInput as exc:
        return pages.form_page(request, shown, str(exc), part="batch")
    if receipt is not None:
        return redirect(f"/batches/{receipt.batch}", "; ".join(checked.notes)[:_NOTICE])
    error = None
    if checked.bad:
        error = str(BadInput("file", upload.name, f"has {plural(len(checked.bad), 'bad row')}; {_NOTHING}"))
    return pages.form_page(request, shown, error, part="batch", checked=checked)


def _upload(board: Board, form: dict[str, Any]) -> Upload:
    """The file of this form, or the one that it has sent before."""
    file = form.get("file")
    if isinstance(file, UploadFile) and file.filename:
        return keep_upload(board, file.filename, file.file)
    kept = board.uploads.get(form.get("upload") or "")
    if kept is None:
        raise BadInput("file", None, f"is missing; choose a file with one of {', '.join(ENDINGS)}")
    return kept


@router.post("/login")
async def log_in(request: Request) -> Response:
    """Exchange a token for a session."""
    board: Board = request.app.state.board
    async with request.form(max_files=0, max_fields=4) as form:
        token, wanted = str(form.get("token", "")), str(form.get("next", "/"))
    known = board.access.find(token.strip())
    if known is None:
        board.logins.count_wrong(address_of(request.scope))
        return page(request, "login.html", {"next": wanted, "error": "Invalid token"}, 403)
    answer = RedirectResponse(wanted if _is_ours(wanted) else "/", 303)
    await run_in_threadpool(_note_login, board, f"{WHO}: {known.name} at {address_of(request.scope)}", known)
    session = board.access.new_session(known.role, known)
    answer.headers["set-cookie"] = cookie_line(session.cookie, request.url.scheme == "https")
    return answer


def _note_login(board: Board, who: str, token: Token) -> None:
    with board.farm.database.write() as connection:
        record(connection, who, "log in", "the board", role=token.role)


@router.post("/logout")
async def log_out(request: Request) -> Response:
    """End the session."""
    return await handle_form(request, _log_out)


def _log_out(board: Board, request: Request, form: dict[str, Any]) -> Response:
    answer = RedirectResponse("/login", 303)
    answer.headers["set-cookie"] = cookie_line("", request.url.scheme == "https", 0)
    return answer


def _verb(form: dict[str, Any]) -> str:
    verb = str(form.get("verb", ""))
    if verb not in VERBS:
        raise BadInput("verb", verb[:40], f"is unknown; use one of {', '.join(VERBS)}")
    return verb


def _job_options(board: Board, form: dict[str, Any]) -> JobOptions:
    priority = form.get("priority")
    if priority and not (priority.isascii() and priority.isdigit() and int(priority[:9]) <= 100):
        raise BadInput("priority", priority[:40], "is not a whole number from 0 to 100")
    return JobOptions(
        owner=form.get("owner") or WHO,
        queue=form.get("queue") or "default",
        priority=int(priority) if priority else None,
        ranks=parse_ranks(form.get("ranks") or "auto"),
        not_before=parse_moment("not_before", form.get("not_before")),
        deadline=parse_moment("deadline", form.get("deadline")),
        after=find_predecessors(
            board.farm.database, [form.get("after") or ""], [form.get("after_any") or ""]
        ),
        require_tag=parse_tags("require_tag", [form.get("require_tag") or ""]),
        channels=wanted_channels([form.get("channel") or ""], files=False, settings=board.farm.settings),
    )


def _is_ours(address: str) -> bool:
    """Whether it is a path of this board, not a URL of another site."""
    parts = urlsplit(address)
    return (
        address.startswith("/")
        and not address.startswith(("//", "/\\"))
        and not (parts.netloc or parts.scheme)
    )
