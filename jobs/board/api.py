"""The REST API under /api/v1. It calls the same functions as the command line."""

from __future__ import annotations

from inspect import signature
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, File, Form, Query, Request, UploadFile
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import Connection
from starlette.responses import JSONResponse

from jobs.board.batch_upload import json_defaults, keep_upload, take_batch
from jobs.board.board import WHO, Board
from jobs.board.here import Here
from jobs.board.spec_body import SpecBody, spec_values
from jobs.db.audit import list_acts, record
from jobs.db.board_queries import attempts_of, batch_rows, page_jobs, show_batch
from jobs.db.commands import VERBS, apply_command, apply_to_all, set_priority
from jobs.db.find_predecessors import find_predecessors
from jobs.db.job_order import NEWEST, Order
from jobs.db.leases import lock_placement
from jobs.db.node_changes import MOST_COMMENT, cancel_maintenance, plan_maintenance
from jobs.db.node_changes import change_node as change_node_of_farm
from jobs.db.nodes import list_nodes
from jobs.db.queries import Filter, count_jobs, job_ids, list_batches, show_job, with_names
from jobs.db.queues import DEFAULT_PRIORITY, check_exists, set_queue
from jobs.db.state_machine import STATES
from jobs.db.submission import JobOptions
from jobs.estimate import estimate
from jobs.intake.error_report import grouped_errors
from jobs.logs import LogReader
from jobs.moments import parse_moment
from jobs.ranks import MAX_RANKS, parse_ranks
from jobs.receipts import receipt_lines
from jobs.renditions.farm import wanted_channels
from jobs.report import Scope, make_report
from jobs.scheduler.capacity import find_impossible_jobs
from jobs.scheduler.pending_reason import pending_reason
from jobs.scheduler.waiting import what_jobs_wait_for
from jobs.tags import MOST_TAGS, parse_tags
from render.errors import BadInput
from render.spec import Spec

State = Literal["queued", "placing", "rendering", "publishing", "done", "paused", "failed", "cancelled"]
Verb = Literal["cancel", "pause", "resume", "retry"]
Name = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[\w .@/+-]+$")]
Id = Annotated[str, Field(min_length=1, max_length=32)]
TagText = Annotated[str, Field(min_length=1, max_length=40, examples=["a100"])]
assert set(State.__args__) == set(STATES) and set(Verb.__args__) == set(VERBS)  # type: ignore[attr-defined]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Image(SpecBody):  # type: ignore[misc, valid-type]
    """One image to render: fields of the spec, and how its job is run."""

    queue: Name = "default"
    owner: Name = WHO
    priority: int | None = Field(None, ge=0, le=100)
    ranks: int | None = Field(
        None, ge=1, le=MAX_RANKS, description="Ranks of the group; as many as are useful unless given."
    )
    not_before: str | None = Field(None, description="Earliest start, e.g. 22:00 or 2026-11-21T22:00+01:00.")
    deadline: str | None = Field(None, description="Latest end, e.g. fri 7am or 2026-11-22T07:00+01:00.")
    after: list[Id] = Field([], max_length=50, description="Start when these jobs and batches are done.")
    after_any: list[Id] = Field(
        [], max_length=50, description="Start when these jobs and batches have ended in any way."
    )

    channel: list[Id] = Field([], max_length=20, description="Channels that files are made for.")
    require_tag: list[TagText] = Field(
        [], max_length=MOST_TAGS, description="It starts only on nodes that have all these tags."
    )

    def terms(self, board: Board) -> JobOptions:
        """How it is to be run; raises `BadInput`."""
        return JobOptions(
            owner=self.owner,
            queue=self.queue,
            priority=self.priority,
            ranks=self.ranks,
            not_before=parse_moment("not_before", self.not_before),
            deadline=parse_moment("deadline", self.deadline),
            after=find_predecessors(board.farm.database, self.after, self.after_any),
            require_tag=parse_tags("require_tag", self.require_tag),
            channels=wanted_channels(self.channel, files=False, settings=board.farm.settings),
        )


class Selection(_Strict):
    """All jobs of a batch or of a queue that are in a state that allows the command."""

    batch: Name | None = None
    queue: Name | None = None

    @property
    def shown(self) -> str:
        """Batch and queue, as the audit log names them."""
        return ", ".join(f"{name} {value}" for name, value in self.model_dump(exclude_none=True).items())

    def check(self, connection: Connection) -> None:
        """Raise `BadInput` for an unknown batch or queue, and for none."""
        if self.batch is None and self.queue is None:
            raise BadInput("batch", None, "is missing; give a batch or a queue")
        check_exists(connection, self.batch, self.queue)


class Priority(_Strict):
    priority: int = Field(ge=0, le=100)


class NodeChange(_Strict):
    """What changes of a node; omitted fields stay unchanged."""

    draining: bool | None = None
    restart: bool = Field(False, description="Its agent begins anew once nothing runs there.")
    comment: str | None = Field(None, max_length=MOST_COMMENT, description="Empty for none.")
    add_tags: list[TagText] = Field([], max_length=MOST_TAGS)
    remove_tags: list[TagText] = Field([], max_length=MOST_TAGS)


class Times(_Strict):
    """When maintenance is: in a window, again and again, or once."""

    time_window: str | None = Field(None, max_length=100, examples=["sun 02:00-04:00 Europe/Paris"])
    begins: str | None = Field(None, max_length=60, description="Now unless given.")
    ends: str | None = Field(None, max_length=60, examples=["tomorrow 6am"])


class Rules(_Strict):
    """Rules of a queue; omitted ones stay unchanged."""

    priority: int = Field(DEFAULT_PRIORITY, ge=0, le=100)
    group_limit: int | None = Field(None, ge=1, le=100_000)
    time_window: str | None = Field(None, max_length=100, examples=["mon-fri 22:00-07:00 Europe/Paris"])
    paused: bool = False


def _who(request: Request) -> str:
    who: str = request.state.who
    return who


Who = Annotated[str, Depends(_who)]
Text = Annotated[str | None, Query(max_length=200)]
FormText = Annotated[str, Form(description="Prompt of every row, with {COLUMN} for a column.")]
FormName = Annotated[str, Form(min_length=1, max_length=64, pattern=r"^[\w .@/+-]+$")]
_ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"description": "Invalid value; `error` names it and the fix."},
    404: {"description": "Not found."},
    409: {"description": "The state of the job does not allow the command."},
}
router = APIRouter(prefix="/api/v1", responses=_ERRORS)


@router.get("/jobs", tags=["jobs"])
def list_jobs(
    board: Here,
    state: Annotated[list[State] | None, Query()] = None,
    queue: Text = None,
    owner: Text = None,
    batch: Text = None,
    search: Text = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 50,
    after: Text = None,
    sort: Text = None,
) -> dict[str, Any]:
    """List jobs, newest first, or by `sort`: `created`, `ended`, `took`, `queue`, `owner`, `state`, ..., with
    `-` before it for the largest first. `next` is the `after` of the next page, null on the last page.

    `search` matches words of the prompt, or beginnings of words, in any order; or the beginning of an id.

    `cannot_run` says why a queued job can never run on the nodes of the farm, or not as long as others have
    failed; `waits_for` which jobs it waits for. Else they are null. `counts` is
    the number of jobs by state. It is null for a search, which stops when the page is full.
    """
    wanted = Filter(states=tuple(state or ()), queue=queue, owner=owner, batch=batch, search=search)
    order = Order.parse(sort) if sort else NEWEST
    cursor = order.cursor(after) if after else None
    with board.farm.database.read() as connection:
        check_exists(connection, batch or None, queue or None)
        page = page_jobs(connection, wanted, limit, after=cursor, order=order)
        counts = None if search else count_jobs(connection, wanted)
        named, ids = with_names(connection, page.jobs, batch or None), [row["id"] for row in page.jobs]
        impossible, waiting = find_impossible_jobs(connection, ids), what_jobs_wait_for(connection, ids)
    found = [
        row | {"cannot_run": impossible.get(row["id"]), "waits_for": waiting.get(row["id"])} for row in named
    ]
    return {"jobs": found, "counts": counts, "next": str(page.older) if page.older else None}


@router.post("/jobs", tags=["jobs"], status_code=201)
def submit_image(board: Here, image: Image) -> dict[str, Any]:
    """Submit an image. An image that was submitted before gets no second job.

    `{red|blue}` in a prompt makes an image of each alternative; `job` is the first one, `jobs` are all.
    """
    terms = image.terms(board)
    receipt = board.submit(spec_values(image), terms)
    return receipt.to_dict() | {"queue": terms.queue, "job": receipt.jobs[0][1]}


@router.get("/jobs/{job}", tags=["jobs"])
def one_job(board: Here, job: str) -> dict[str, Any]:
    """Show a job with its history and attempts. `job` may be the beginning of an id."""
    found = board.job(job)
    with board.farm.database.read() as connection:
        return show_job(connection, found) | {
            "attempts_made": attempts_of(connection, found),
            "waits_for": pending_reason(connection, found),
            "cannot_run": find_impossible_jobs(connection, [found]).get(found),
        }


@router.get("/jobs/{job}/logs", tags=["jobs"])
def logs(
    board: Here, job: str, attempt: Annotated[int | None, Query(ge=1, le=9999)] = None
) -> dict[str, Any]:
    """The logs of a job's supervisors and ranks, by file."""
    found = board.job(job)
    read = LogReader(board.store(), found, attempt).new(collected=True)
    return {"job": found, "logs": {name: text.decode(errors="replace") for name, text in read}}


@router.post("/jobs/{job}/{verb}", tags=["jobs"])
def change_job(board: Here, who: Who, job: str, verb: Verb) -> dict[str, Any]:
    """Cancel, pause, resume or retry a job."""
    found = board.job(job)
    with board.farm.database.write() as connection:
        lock_placement(connection)
        apply_command(connection, verb, found, WHO)
        record(connection, who, verb, f"job {found}")
    return {"job": found, "verb": verb, "state": VERBS[verb][1]}


@router.post("/jobs/{verb}", tags=["jobs"])
def change_jobs(board: Here, who: Who, verb: Verb, many: Selection) -> dict[str, Any]:
    """Cancel, pause, resume or retry all jobs of a batch or queue that are in a state that allows it."""
    wanted = Filter(states=VERBS[verb][0], batch=many.batch, queue=many.queue)
    with board.farm.database.read() as connection:
        many.check(connection)
        chosen = job_ids(connection, wanted)
    done = apply_to_all(board.farm.database, verb, chosen, WHO)
    with board.farm.database.write() as connection:
        record(connection, who, verb, many.shown, jobs=done)
    return {"verb": verb, "jobs": done, "state": VERBS[verb][1]}


@router.put("/jobs/{job}/priority", tags=["jobs"])
def change_priority(board: Here, who: Who, job: str, wanted: Priority) -> dict[str, Any]:
    """Give a job its own priority instead of its queue's."""
    found = board.job(job)
    with board.farm.database.write() as connection:
        set_priority(connection, found, wanted.priority)
        record(connection, who, "priority", f"job {found}", priority=wanted.priority)
    return {"job": found, "priority": wanted.priority}


@router.get("/queues", tags=["farm"])
def queues(board: Here) -> dict[str, Any]:
    """List queues: rules, jobs by state, images of the last hour, and the estimate."""
    return {"queues": board.outlook()}


@router.put("/queues/{name}", tags=["farm"])
def change_queue(board: Here, who: Who, name: Name, rules: Rules) -> dict[str, Any]:
    """Create a queue, or change some of its rules; a time window without a zone gets the server's."""
    with board.farm.database.write() as connection:
        stored = set_queue(connection, name, rules.model_dump(exclude_unset=True))
        record(connection, who, "set queue", f"queue {name}", **stored)
    board.forget_queues()
    return {"queue": name, **stored}


@router.get("/batches", tags=["farm"])
def batches(board: Here, limit: Annotated[int, Query(ge=1, le=1000)] = 20) -> dict[str, Any]:
    """List the newest batches and their jobs by state."""
    with board.farm.database.read() as connection:
        return {"batches": list_batches(connection, limit)}


async def _known_fields(request: Request) -> None:
    """Refuse a field that this form does not have: what is misspelled must not be passed over."""
    known = {*signature(submit_batch).parameters} - {"board"}
    for name in await request.form():
        if name not in known:
            of_spec = any(name == field.name for field in Spec.inputs())
            fix = "is a field of the spec; give it in defaults, as JSON"
            raise BadInput("form", name[:80], fix if of_spec else "is unknown; see /api for its fields")


@router.post("/batches", tags=["farm"], status_code=201, dependencies=[Depends(_known_fields)])
def submit_batch(
    board: Here,
    file: Annotated[UploadFile, File(description="A .csv, .tsv, .xlsx, .jsonl or .yaml file.")],
    template: FormText = "",
    id_column: Annotated[str, Form(description="Column with the custom ids; custom_id unless given.")] = "",
    map: Annotated[str, Form(description="COLUMN=NAME, one per line.")] = "",
    ignore: Annotated[str, Form(description="Columns to ignore, separated by commas.")] = "",
    encoding: Annotated[str, Form(description="Encoding of a text file; found unless given.")] = "",
    sheet: Annotated[str, Form(description="Sheet of a workbook; the first one unless given.")] = "",
    grid: Annotated[str, Form(description="FIELD=VALUE,VALUE, one per line.")] = "",
    seeds: Annotated[int, Form(ge=1, le=1000, description="Images of each row.")] = 1,
    variations: Annotated[int, Form(ge=1, le=1000, description="Variations of each image.")] = 1,
    defaults: Annotated[str, Form(description="Fields of the spec for rows without a value, as JSON.")] = "",
    files: Annotated[
        str, Form(description="By their names in the batch: SHA-256 of files sent to /files, as JSON.")
    ] = "",
    queue: FormName = "default",
    owner: FormName = WHO,
    priority: Annotated[int | None, Form(ge=0, le=100)] = None,
    ranks: Annotated[str, Form(description="Ranks of each group, or auto.")] = "auto",
    not_before: Annotated[str, Form(description="Earliest start.")] = "",
    deadline: Annotated[str, Form(description="When it should be done.")] = "",
    after: Annotated[str, Form(description="Jobs and batches that have to be done, with commas.")] = "",
    after_any: Annotated[str, Form(description="Jobs and batches that have to end in any way.")] = "",
    channel: Annotated[str, Form(description="Channels that files are made for, with commas.")] = "",
    require_tag: Annotated[str, Form(description="Tags that their nodes must have, with commas.")] = "",
    dry_run: Annotated[bool, Form(description="Check everything and queue nothing.")] = False,
) -> Any:
    """Submit a batch file: a row for each image, as with `chorale submit`. All rows are queued, or none is.

    `preview` has the first images, `notes` what was found while reading. A file with bad rows is answered
    with status 400 and `errors`, the kinds of problems with their first lines.
    """
    options = JobOptions(
        owner=owner,
        queue=queue,
        priority=priority,
        ranks=parse_ranks(ranks),
        not_before=parse_moment("not_before", not_before),
        deadline=parse_moment("deadline", deadline),
        after=find_predecessors(board.farm.database, [after], [after_any]),
        require_tag=parse_tags("require_tag", [require_tag]),
        channels=wanted_channels([channel], files=False, settings=board.farm.settings),
    )
    form = json_defaults(defaults) | {
        "template": template,
        "id_column": id_column,
        "map": map,
        "ignore": ignore,
        "encoding": encoding,
        "sheet": sheet,
        "grid": grid,
        "seeds": seeds,
        "variations": variations,
        "files": files,
    }
    upload = keep_upload(board, file.filename or "", file.file)
    try:
        checked, receipt = take_batch(board, upload, form, options, dry_run)
    finally:
        board.uploads.drop(upload)
    found = {"rows": checked.images, "same": checked.same, "notes": checked.notes, "preview": checked.preview}
    if checked.bad:
        refusal = str(checked.refusal(upload.name, "nothing was queued"))
        return JSONResponse({"error": refusal, "errors": grouped_errors(checked.bad)}, 400)
    if receipt is None:
        return JSONResponse({"dry_run": True, **found})
    return found | receipt.to_dict() | {"queue": queue}


@router.get("/batches/{batch}", tags=["farm"])
def one_batch(
    board: Here,
    batch: str,
    after: Annotated[int, Query(ge=-1, le=2**31 - 1)] = -1,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> dict[str, Any]:
    """Show a batch with a page of its rows. `after` is the last row of the page before."""
    with board.farm.database.read() as connection:
        return show_batch(connection, batch) | {"rows": batch_rows(connection, batch, limit, after)}


@router.get("/nodes", tags=["farm"])
def nodes(board: Here) -> dict[str, Any]:
    """List nodes: slots in use, and whether the node is up."""
    with board.farm.database.read() as connection:
        return {"nodes": list_nodes(connection)}


@router.put("/nodes/{name}", tags=["farm"])
def change_node(board: Here, who: Who, name: str, wanted: NodeChange) -> dict[str, Any]:
    """Drain a node (start no more jobs on it) or undrain it, comment on it, give it tags or take them, or
    restart its agent."""
    with board.farm.database.write() as connection:
        return change_node_of_farm(connection, name, who, **wanted.model_dump())


@router.post("/nodes/{name}/maintenance", tags=["farm"], status_code=201)
def maintain(board: Here, who: Who, name: str, wanted: Times) -> dict[str, Any]:
    """Plan maintenance of a node: no job starts that is expected to run into it, and it is drained then."""
    times = {
        "window": wanted.time_window,
        "begins": parse_moment("begins", wanted.begins),
        "ends": parse_moment("ends", wanted.ends),
    }
    with board.farm.database.write() as connection:
        return {"node": name} | plan_maintenance(connection, name, who, **times)


@router.delete("/nodes/{name}/maintenance/{id}", tags=["farm"])
def end_maintenance(board: Here, who: Who, name: str, id: str) -> dict[str, Any]:
    """Remove maintenance of a node, or `all` of it."""
    with board.farm.database.write() as connection:
        cancel_maintenance(connection, name, id, who)
    return {"node": name, "removed": id}


@router.get("/audit", tags=["farm"])
def audit(
    board: Here, limit: Annotated[int, Query(ge=1, le=1000)] = 50, who: Text = None, action: Text = None
) -> dict[str, Any]:
    """The audit log, newest first: who changed jobs, queues and nodes, deleted files, or logged in."""
    with board.farm.database.read() as connection:
        return {"acts": list_acts(connection, limit, who=who or "", action=action or "")}


@router.get("/report", tags=["farm"])
def report(
    board: Here,
    queue: Text = None,
    batch: Text = None,
    since: Annotated[float, Query(ge=0, le=1e11, description="Seconds since the epoch.")] = 0.0,
    price: Annotated[float | None, Query(ge=0, le=1e9, description="Of a slot hour.")] = None,
) -> dict[str, Any]:
    """Report what is done, what failed and why, and how much time was spent, with receipts."""
    with board.farm.database.read() as connection:
        check_exists(connection, batch or None, queue or None)
        made = make_report(connection, Scope(queue=queue or None, batch=batch or None, since=since))
    return made | {"receipts": receipt_lines(made, price)}


@router.get("/estimate", tags=["farm"])
def estimates(board: Here) -> dict[str, Any]:
    """Estimate when each queue will be empty, and whether its time window is long enough."""
    with board.farm.database.read() as connection:
        return {"queues": estimate(connection)}
