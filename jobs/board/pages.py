"""The pages of the board. Each one is a template and a view, which reads the values from the farm."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any
from urllib.parse import quote, urlencode

from fastapi import APIRouter, Request
from starlette.responses import Response

from infra.errors import StoreError
from jobs.board import api_docs
from jobs.board.batch_upload import TEXTS
from jobs.board.board import Board
from jobs.board.downloads import files_of
from jobs.board.images import manifest_key
from jobs.board.live_pages import live_page
from jobs.board.regions import regions_of
from jobs.board.spec_form import form_groups, kept_labels
from jobs.board.templating import page
from jobs.board.webhooks_api import check_operator
from jobs.db.board_queries import (
    active_jobs,
    attempts_of,
    batch_row,
    first_rows,
    job_summary,
    newest_done,
    page_jobs,
)
from jobs.db.budgets import list_budgets
from jobs.db.commands import VERBS
from jobs.db.custom_ids import base_of
from jobs.db.job_order import NEWEST, Order
from jobs.db.nodes import list_nodes
from jobs.db.queries import Filter, count_jobs, list_batches, show_job, shown_batch, with_names
from jobs.db.queues import check_exists
from jobs.db.reviews import review_rows
from jobs.db.state_machine import HOLDING, STATES
from jobs.intake.batch import CheckedBatch
from jobs.intake.error_report import error_lines
from jobs.intake.open_table import ENDINGS
from jobs.logs import LogReader
from jobs.renditions.channel import known_channels
from jobs.scheduler.capacity import find_impossible_jobs
from jobs.scheduler.pending_reason import pending_reason
from jobs.scheduler.waiting import what_jobs_wait_for
from render.errors import BadInput
from render.models.packaged import packaged_models
from render.output.manifest import parse_manifest

_ROWS = 50
IMAGES = 60
"""Of one page of a contact sheet, so that it weighs less than a megabyte with all its thumbnails."""
_COLUMNS = {
    **dict.fromkeys(("size", "queue", "owner", "id", "age"), True),
    **dict.fromkeys(("custom-id", "node", "took", "priority"), False),
}
"""Of the list of jobs: whether they are shown unless somebody chooses others; the browser remembers that."""
_SORTS = {
    "-created": "newest first",
    "created": "oldest first",
    "-started": "started last",
    "-ended": "ended last",
    "-took": "took longest",
    "-priority": "highest priority",
    "-progress": "most progress",
    "state": "by state",
    "queue": "by queue",
    "owner": "by owner",
}
_THUMBNAILS = 4
"""Thumbnails of each batch in the list."""
_LOG_BYTES = 40_000

router = APIRouter(include_in_schema=False)


def error_page(request: Request, status: int, text: str) -> Response:
    """A page with an error."""
    return page(request, "error.html", {"status": status, "text": text}, status)


@live_page(router, "/", "queues.html")
def queues(board: Board, request: Request) -> dict[str, Any]:
    with board.farm.database.read() as connection:
        active, nodes, done = active_jobs(connection, 12), list_nodes(connection), newest_done(connection, 12)
        known_budgets = list_budgets(connection) if request.state.role == "operator" else []
    up = [node for node in nodes if node["up"]]
    known = board.outlook()
    counts = {state: sum(queue["jobs"].get(state, 0) for queue in known) for state in STATES}
    return {
        "queues": known,
        "active": active,
        "done": done,
        "counts": counts,
        "slots": sum(node["slots"] for node in up),
        "used": sum(node["used"] for node in up),
        "nodes": len(up),
        "budgets": [f"{each.text} are used" for each in known_budgets if each.state != "open"],
    }


@live_page(router, "/jobs", "jobs.html")
def job_list(board: Board, request: Request) -> dict[str, Any]:
    given = {
        name: request.query_params.get(name, "")[:200]
        for name in ("state", "queue", "owner", "batch", "q", "sort")
    }
    order = Order.parse(given["sort"]) if given["sort"] else NEWEST
    states = _states(given["state"])
    wanted = Filter(
        states=states,
        queue=given["queue"] or None,
        owner=given["owner"] or None,
        batch=given["batch"] or None,
        search=given["q"].strip() or None,
    )
    after, before = (request.query_params.get(name) for name in ("after", "before"))
    with board.farm.database.read() as connection:
        check_exists(connection, wanted.batch, wanted.queue)
        found = page_jobs(
            connection,
            wanted,
            _ROWS,
            after=order.cursor(after) if after else None,
            before=order.cursor(before) if before else None,
            order=order,
        )
        counts = _counts(board, connection, wanted)
        named, ids = with_names(connection, found.jobs, wanted.batch), [row["id"] for row in found.jobs]
        impossible, waiting = find_impossible_jobs(connection, ids), what_jobs_wait_for(connection, ids)
    link = _Links("/jobs", given)
    return {
        "jobs": [
            row | {"cannot_run": impossible.get(row["id"]), "waits_for": waiting.get(row["id"])}
            for row in named
        ],
        "counts": counts,
        "given": given,
        "states": STATES,
        "sorts": _SORTS if str(order) in _SORTS else {str(order): str(order)} | _SORTS,
        "order": str(order),
        "columns": _COLUMNS,
        "queue_names": [queue["name"] for queue in board.queues()],
        "link": link,
        "newer": None if found.newer is None else link(before=str(found.newer)),
        "older": None if found.older is None else link(after=str(found.older)),
    }


def _counts(board: Board, connection: Any, wanted: Filter) -> dict[str, int] | None:
    """Jobs by state, regardless of the state in the filter.

    None for a search, which stops when a page is full; counting would have to read every job.
    """
    if wanted.search:
        return None
    if not (wanted.owner or wanted.batch or wanted.queue):
        known = board.queues()
        return {state: sum(queue["jobs"].get(state, 0) for queue in known) for state in STATES}
    return count_jobs(connection, replace(wanted, states=()))


def _states(text: str) -> tuple[str, ...]:
    if text == "active":
        return HOLDING
    if text and text not in STATES:
        raise BadInput("state", text, f"is unknown; use one of {', '.join(STATES)}")
    return (text,) if text else ()


class _Links:
    """URLs of the list with parts of its filter changed."""

    def __init__(self, path: str, given: dict[str, str]) -> None:
        self._path, self._given = path, given

    def __call__(self, **changes: str) -> str:
        values = {name: value for name, value in (self._given | changes).items() if value}
        return f"{self._path}?{urlencode(values)}" if values else self._path


@live_page(router, "/jobs/{job}", "job.html")
def one_job(board: Board, request: Request) -> dict[str, Any]:
    found = board.job(request.path_params["job"])
    with board.farm.database.read() as connection:
        known, made = show_job(connection, found), attempts_of(connection, found)
        reason = pending_reason(connection, found)
        cannot_run = find_impossible_jobs(connection, [found]).get(found)
    newest = made[-1] if made else None
    running = newest is not None and newest["ended"] is None
    live = newest["members"][0]["live"] if newest is not None and running else None
    ranks = sum(len(member["slots"]) for member in newest["members"]) if newest else known["least_ranks"]
    manifest = _manifest(board, known) if known["state"] == "done" else None
    return {
        "job": known,
        "waits_for": reason,
        "cannot_run": cannot_run,
        "attempts": made,
        "live": live,
        "ranks": _ranks(newest),
        "world": ranks,
        "regions": regions_of(known["spec"], ranks, (live or {}).get("stage")),
        "manifest": manifest,
        "verbs": [verb for verb, (olds, _) in VERBS.items() if known["state"] in olds],
        "image": _image_url(board, known),
        "logs": _logs(board, found),
    }


def _ranks(attempt: dict[str, Any] | None) -> list[dict[str, Any]]:
    """The last reported values of an attempt's ranks: number, node, seconds by phase, blocks."""
    if attempt is None:
        return []
    found = [
        {"rank": int(name), "node": member["node"], **reported}
        for member in attempt["members"]
        for name, reported in ((member["live"] or {}).get("ranks") or {}).items()
    ]
    return sorted(found, key=lambda rank: rank["rank"])


def _image_url(board: Board, known: dict[str, Any]) -> str | None:
    """URL of the job's newest preview; it changes when the preview does."""
    if known["state"] == "done":
        return f"/jobs/{known['id']}/image/preview.webp"
    size = board.unfinished_preview(known["folder"])
    return None if size is None else f"/jobs/{known['id']}/preview?version={known['fence']}-{size}"


def _manifest(board: Board, known: dict[str, Any]) -> dict[str, Any] | None:
    try:
        manifest = parse_manifest(board.store().get(manifest_key(known["folder"])), known["folder"])
    except (StoreError, BadInput):
        return None
    return {
        "ranks": manifest.ranks,
        "timings": manifest.timings,
        "device": manifest.device,
        "versions": manifest.versions,
        "seams": asdict(manifest.seams),
        "created": manifest.created,
        "tiles": len(manifest.tiles),
        "bytes": sum(tile.bytes for tile in manifest.tiles.values()),
        "levels": len(manifest.levels),
    }


def _logs(board: Board, job: str) -> list[dict[str, str]]:
    """The end of each attempt's log, the newest attempt first."""
    read = LogReader(board.store(), job).new(collected=True)[-4:]
    return [
        {"name": name, "text": text[-_LOG_BYTES:].decode(errors="replace")} for name, text in reversed(read)
    ]


@router.get("/jobs/{job}/view")
def deep_zoom(request: Request, job: str) -> Response:
    """Deep zoom of a finished image."""
    board: Board = request.app.state.board
    with board.farm.database.read() as connection:
        info = job_summary(connection, board.job(job))
    if info["root"] is None:
        raise BadInput("job", info["id"], f"is {info['state']}; its image can be viewed once the job is done")
    return page(request, "view.html", {"job": info})


@router.get("/compare")
def compare(request: Request, left: str = "", right: str = "") -> Response:
    """Two finished images side by side, panned and zoomed together."""
    board: Board = request.app.state.board
    with board.farm.database.read() as connection:
        done = newest_done(connection, 60)
        pair = [job_summary(connection, board.job(job)) if job else None for job in (left, right)]
    free = [row for row in done if row["id"] not in {each["id"] for each in pair if each}]
    pair = [each if each is not None else (free.pop(0) if free else None) for each in pair]
    pair = [each if each is not None and each["root"] is not None else None for each in pair]
    return page(request, "compare.html", {"pair": pair, "done": _with(done, pair)})


def _with(done: list[dict[str, Any]], pair: list[dict[str, Any] | None]) -> list[dict[str, Any]]:
    """The images in the lists: the newest ones and the two that are shown."""
    listed = {row["id"]: row for row in done} | {row["id"]: row for row in pair if row is not None}
    return list(listed.values())


@live_page(router, "/batches", "batches.html")
def batch_list(board: Board, request: Request) -> dict[str, Any]:
    with board.farm.database.read() as connection:
        found = list_batches(connection, 100)
        first = first_rows(connection, [batch["id"] for batch in found], _THUMBNAILS)
    return {"batches": [batch | {"first": first[batch["id"]]} for batch in found]}


@live_page(router, "/batches/{batch}", "batch.html")
def contact_sheet(board: Board, request: Request) -> dict[str, Any]:
    batch, after = request.path_params["batch"], request.query_params.get("after", "-1")
    chosen = request.query_params.get("verdict", "")
    if not (after.isascii() and after.removeprefix("-").isdigit() and len(after) < 10):
        raise BadInput("after", after[:40], "is not a row number")
    with board.farm.database.read() as connection:
        known = shown_batch(batch_row(connection, batch))
        rows = review_rows(connection, batch, IMAGES + 1, int(after), chosen or None)
    states, counts = board.batch_counts(batch, fresh=after == "-1")
    if any(row["state"] == "done" and not row["checked"] for row in rows):
        board.check_images(batch)
    more = rows[IMAGES - 1]["row"] if len(rows) > IMAGES else None
    names = {row["custom_id"] for row in rows}
    return {
        "batch": known | {"jobs": states},
        "rows": [row | {"base": base_of(row["custom_id"], names)} for row in rows[:IMAGES]],
        "more": more,
        "first": after == "-1",
        "files": files_of(board, batch),
        "channels": known_channels(),
        "counts": counts if states.get("done") else {},
        "chosen": chosen,
        "link": _Links(f"/batches/{quote(batch)}", {"verdict": chosen}),
    }


@router.get("/submit")
def submit_form(request: Request, job: str = "", part: str = "image") -> Response:
    """The form; filled with the spec of `job` and the next seed for a variation, or open at the `batch`."""
    check_operator(request, "new images")
    board: Board = request.app.state.board
    values: dict[str, Any] = {}
    if job:
        with board.farm.database.read() as connection:
            known = show_job(connection, board.job(job))
        values = known["spec"] | {"queue": known["queue"], "of": known["id"]}
        values["require_tag"] = ", ".join(known["require_tag"])
        values["seed"] = (values["seed"] + 1) % 2**63
        values["size"] = f"{values['width']}x{values['height']}"
    return form_page(request, {} if part == "batch" else values, None, part)


def _model_names(board: Board) -> list[str]:
    try:
        return board.model_names()
    except StoreError:
        # The form works without the store.
        return list(packaged_models())


def form_page(
    request: Request,
    values: dict[str, Any],
    error: str | None,
    part: str = "image",
    checked: CheckedBatch | None = None,
) -> Response:
    """The form with its values and an error, or what a checked batch comes to."""
    board: Board = request.app.state.board
    # Both forms have a size, a seed and a queue: what was entered in one stays out of the other.
    image, batch = ({}, values) if part == "batch" else (values, {})
    models = {*_model_names(board)} | ({image["model"]} if image.get("model") else set())
    given = {
        "values": _JOB_DEFAULTS | image,
        "batch": _JOB_DEFAULTS | batch,
        "groups": form_groups(image, tuple(sorted(models))),
        "kept": kept_labels(image),
        "error": error,
        "part": part,
        "checked": checked,
        "error_lines": error_lines(checked.bad) if checked else [],
        "endings": ",".join(ENDINGS),
        "queue_names": sorted({queue["name"] for queue in board.queues()} | {"default"}),
    }
    return page(request, "submit.html", given, 200 if error is None else 400)


_JOB_DEFAULTS: dict[str, Any] = {
    "prompt": "",
    "size": "",
    "queue": "default",
    "ranks": "auto",
    "priority": "",
    "not_before": "",
    "deadline": "",
    "after": "",
    "after_any": "",
    "channel": "",
    "require_tag": "",
    "of": "",
    "upload": "",
    "upload_name": "",
    "seed": "",
    **dict.fromkeys(TEXTS, ""),
}


@router.get("/login")
def login_form(request: Request, next: str = "/") -> Response:
    """The log-in form."""
    return page(request, "login.html", {"next": next[:500], "error": None})


@router.get("/api")
def api_reference(request: Request) -> Response:
    """The operations of the REST API, from its OpenAPI document."""
    return page(
        request,
        "api.html",
        {"groups": api_docs.groups(request.app.openapi()), "origin": str(request.base_url).rstrip("/")},
    )
