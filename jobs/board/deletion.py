"""Deleting on the board and by REST: for operators, who are told first what goes."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Query, Request
from starlette.responses import Response

from jobs.board.board import WHO, Board
from jobs.board.here import Here
from jobs.board.posted_forms import handle_form, redirect
from jobs.board.templating import page
from jobs.board.webhooks_api import check_operator
from jobs.db.deletion import Found, Selection, find
from jobs.deletion import Amount, count_files, described, remove_rows, request
from jobs.errors import IllegalChange
from jobs.formatting import plural, size
from jobs.review.named_images import named_images

router = APIRouter()
_PAGES: dict[str, Any] = {"include_in_schema": False}
_ANSWERS: dict[int | str, dict[str, Any]] = {
    400: {"description": "Invalid value; `error` names it and the fix."},
    404: {"description": "Not found."},
    409: {"description": "A job runs, and `cancel` was not given."},
}
DryRun = Annotated[bool, Query(description="Only say what would go.")]
Cancel = Annotated[bool, Query(description="Cancel those that run, and delete them once they have stopped.")]
Images = Annotated[
    str,
    Query(max_length=20_000, description="Only these, by custom ids with commas, or `rejected`, ..."),
]


@router.delete("/api/v1/jobs/{job}", tags=["jobs"], responses=_ANSWERS)
def delete_job(
    board: Here, http: Request, job: str, cancel: Cancel = False, dry_run: DryRun = False
) -> dict[str, Any]:
    """Delete a job, its image and all their files. The row goes at once, the files soon after.

    `files` and `bytes` are what goes; `stopping` is the number of jobs that go once their ranks have stopped.
    Receipts and the audit log stay.
    """
    return _delete(board, http, Selection(jobs=(board.job(job),)), cancel, dry_run)


@router.delete("/api/v1/batches/{batch}", tags=["farm"], responses=_ANSWERS)
def delete_batch(
    board: Here,
    http: Request,
    batch: str,
    images: Images = "",
    cancel: Cancel = False,
    dry_run: DryRun = False,
) -> dict[str, Any]:
    """Delete a batch, or some images of it, with all files. Jobs that are in other batches too stay."""
    return _delete(board, http, _of_batch(board, batch, images), cancel, dry_run)


@router.get("/jobs/{job}/delete", **_PAGES)
def ask_for_job(board: Here, http: Request, job: str) -> Response:
    """What the deletion of a job comes to."""
    chosen = Selection(jobs=(board.job(job),))
    return _ask(board, http, chosen, {"job": chosen.jobs[0]}, f"/jobs/{chosen.jobs[0]}")


@router.get("/batches/{batch}/delete", **_PAGES)
def ask_for_batch(board: Here, http: Request, batch: str, images: Images = "") -> Response:
    """What the deletion of a batch, or of some of its images, comes to."""
    chosen = _of_batch(board, batch, images)
    return _ask(board, http, chosen, {"batch": batch, "images": images}, f"/batches/{quote(batch)}")


@router.post("/delete", **_PAGES)
async def delete_posted(request: Request) -> Response:
    """Delete what the page before has told of."""
    return await handle_form(request, _delete_posted)


def ask_for_selected(board: Board, http: Request, ids: list[str]) -> Response:
    """What the deletion of the jobs that are selected in the list comes to."""
    return _ask(board, http, Selection(jobs=tuple(ids)), {"jobs": ",".join(ids)}, "/jobs")


def _delete_posted(board: Board, http: Request, form: dict[str, Any]) -> Response:
    batch = str(form.get("batch") or "")
    if batch:
        chosen = _of_batch(board, batch, str(form.get("images") or ""))
    else:
        named = str(form.get("jobs") or form.get("job") or "").split(",")
        chosen = Selection(jobs=tuple(sorted(board.job(name) for name in named)))
    done = _delete(board, http, chosen, form.get("cancel") == "yes", False)
    where = f"/batches/{quote(batch)}" if batch and chosen.whole_batch is None else "/jobs"
    text = f"{plural(done['jobs'] - done['stopping'], 'job')} deleted, {size(done['bytes'])}"
    text += f"; {plural(done['stopping'], 'job')} more once stopped" if done["stopping"] else ""
    return redirect(where, text)


def _of_batch(board: Board, batch: str, images: str) -> Selection:
    if not images:
        return Selection(batch=batch)
    with board.farm.database.read() as connection:
        # An unknown batch is told as one.
        find(connection, Selection(batch=batch, custom_ids=()))
        return Selection(batch=batch, custom_ids=named_images(connection, batch, (images,)))


def _look(board: Board, chosen: Selection) -> tuple[Found, Amount]:
    with board.farm.database.read() as connection:
        found = find(connection, chosen)
    return found, count_files(board.farm, found)


def _delete(board: Board, http: Request, chosen: Selection, cancel: bool, dry_run: bool) -> dict[str, Any]:
    found, amount = _look(board, chosen)
    document = described(found, amount)
    if dry_run:
        return document | {"deleted": False, "stopping": 0, "follow_up": None}
    id = request(board.farm, found, by=WHO, audited_as=http.state.who, cancel=cancel, amount=amount)
    left = remove_rows(board.farm, found, id)
    board.forget_jobs(found.jobs)
    return document | {"deleted": True, "stopping": len(left), "follow_up": id}


def _ask(board: Board, http: Request, chosen: Selection, fields: dict[str, str], back: str) -> Response:
    check_operator(http, "deletions")
    found, amount = _look(board, chosen)
    problem = ""
    try:
        found.check_cancelled(cancel=True)
    except IllegalChange as exc:
        problem = str(exc)
    given = {"found": described(found, amount), "fields": fields, "back": back, "problem": problem}
    return page(http, "delete.html", given)
