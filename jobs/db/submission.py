"""Submission: specs become jobs. An image that is submitted twice is one job, whoever submits it."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from itertools import count as counting
from itertools import islice, takewhile
from operator import itemgetter
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, insert, select, update

from infra.database import Database, insert_unless_there, now
from jobs.db.leases import lock_placement
from jobs.db.prompt_search import index_words, stored_words
from jobs.db.state_machine import change_state
from jobs.db.tables import batches, entries, events, jobs
from render.errors import BadInput
from render.model_info import ModelInfo
from render.models.model_paths import absolute_name, find_model_paths, model_info
from render.plan.plan import make_plan
from render.spec import Spec

MAX_AUTO_RANKS = 64
"""Beyond this the borders cost more than another rank gains."""
_CHUNK_ROWS = 400
_OPTION_COLUMNS = (
    "owner",
    "queue",
    "priority",
    "least_ranks",
    "most_ranks",
    "memory",
    "not_before",
    "deadline",
)


@dataclass(frozen=True, kw_only=True)
class JobOptions:
    """How a job is run; nothing here changes a pixel."""

    owner: str
    queue: str = "default"
    priority: int | None = None
    ranks: int | None = None
    not_before: float | None = None
    deadline: float | None = None


def parse_moment(name: str, text: str | None) -> float | None:
    """Parse a date and time in ISO 8601 to seconds since the epoch; raises `BadInput`."""
    if not text:
        return None
    try:
        return datetime.fromisoformat(text).astimezone().timestamp()
    except (ValueError, OverflowError, OSError) as exc:
        raise BadInput(name, text, "is not a date and time; use e.g. 2026-11-21T22:00+01:00") from exc


@dataclass(frozen=True, kw_only=True)
class BatchItem:
    """One image of a batch: its spec, its row in the batch and its custom id."""

    row: int
    custom_id: str
    spec: Spec


def expand_variations(items: Iterable[BatchItem], count: int) -> Iterator[BatchItem]:
    """Each item in `count` variations of one composition. The first variation is the item itself."""
    for item in items:
        for number in range(count):
            first = item.spec.variation
            yield BatchItem(
                row=(item.row - 1) * count + number + 1,
                custom_id=item.custom_id if number == 0 else f"{item.custom_id}-v{number + 1}",
                spec=item.spec.with_changes(variation=first + number),
            )


@dataclass(kw_only=True)
class Receipt:
    """The result of a submission."""

    batch: str
    new: int = 0
    known: int = 0
    done: int = 0
    """How many of the known ones are finished already."""


def submit(database: Database, items: Iterable[BatchItem], name: str, options: JobOptions) -> Receipt:
    """Submit a batch of images to a queue. Images that the farm knows already join the batch as they are.

    A cancelled job that is submitted again is queued again, with the new options; a failed one needs `retry`.
    Rows are inserted in chunks, so that a large batch does not block the database; after an interruption,
    submitting the batch again adds the rest.
    """
    # Models are read once per batch: a server runs for long, and a folder may change meanwhile.
    _models.cache_clear()
    receipt = Receipt(batch=uuid.uuid4().hex[:12])
    with database.write() as connection:
        connection.execute(
            insert(batches).values(
                id=receipt.batch, name=name, owner=options.owner, queue=options.queue, created=now()
            )
        )
    for chunk in _chunks(items):
        job_rows = [_job_row(item, options) for item in chunk]
        with database.write() as connection:
            _submit_chunk(connection, chunk, job_rows, receipt)
    with database.write() as connection:
        connection.execute(update(batches).where(batches.c.id == receipt.batch).values(submitted=now()))
    return receipt


def _submit_chunk(
    connection: Connection, chunk: list[BatchItem], job_rows: list[dict[str, Any]], receipt: Receipt
) -> None:
    """Insert the entries of a chunk, and those of its jobs that are new. `job_rows` has one row per item."""
    lock_placement(connection)
    # Sorted, as wherever many jobs are locked, so that two submitters do not deadlock.
    rows = {row["id"]: row for row in sorted(job_rows, key=itemgetter("id"))}
    states = select(jobs.c.id, jobs.c.state).where(jobs.c.id.in_(list(rows)))
    known = {found.id: found.state for found in connection.execute(states)}
    new = [row for job, row in rows.items() if job not in known]
    if new:
        moment = now()
        inserted = insert_unless_there(connection, jobs).values(created=moment, changed=moment)
        connection.execute(inserted, new)
        index_words(connection, new)
        event = {"fence": 0, "old": "", "new": "queued", "reason": f"submitted in batch {receipt.batch}"}
        connection.execute(insert(events).values(time=now()), [{"job": row["id"], **event} for row in new])
    for job in sorted(job for job, state in known.items() if state == "cancelled"):
        options = {name: rows[job][name] for name in _OPTION_COLUMNS}
        reason = f"submitted again in batch {receipt.batch}"
        change_state(connection, job, "cancelled", "queued", reason, attempts=0, losses=0, **options)
    batch_entries = [
        {"batch": receipt.batch, "row": item.row, "custom_id": item.custom_id, "job": row["id"]}
        for item, row in zip(chunk, job_rows, strict=True)
    ]
    connection.execute(insert(entries), batch_entries)
    receipt.new += len(new)
    receipt.known += len(chunk) - len(new)
    receipt.done += sum(known.get(row["id"]) == "done" for row in job_rows)


def _job_row(item: BatchItem, options: JobOptions) -> dict[str, Any]:
    spec = _resolved(item.spec)
    info, weights = _models(spec.model, spec.refiner)
    least, most = (options.ranks, options.ranks) if options.ranks else (1, useful_ranks(spec, info))
    digest = spec.digest(info.digest)
    return {
        # 64 bits of the digest distinguish the images of a farm and are short enough to type.
        "id": digest[:16],
        "digest": digest,
        "spec": spec.to_dict(),
        "words": stored_words(spec.prompt),
        "model": spec.model,
        "owner": options.owner,
        "queue": options.queue,
        "priority": options.priority,
        "least_ranks": least,
        "most_ranks": most,
        "memory": [(ranks, above + weights) for ranks, above in _memory(geometry(spec), info, least, most)],
        "work": float(_shape(geometry(spec), info)[1]),
        "state": "queued",
        "not_before": options.not_before,
        "deadline": options.deadline,
    }


def _resolved(spec: Spec) -> Spec:
    """The spec with the full paths of its models: agents run in other folders than whoever submits."""
    names = {"model": spec.model, "refiner": spec.refiner}
    found = {field: absolute_name(name) for field, name in names.items() if name is not None}
    changed = {field: name for field, name in found.items() if name != names[field]}
    return spec.with_changes(**changed) if changed else spec


@lru_cache(maxsize=32)
def _models(model: str, refiner: str | None) -> tuple[ModelInfo, int]:
    """The info of a model with its refiner, and the bytes of their weights."""
    paths = find_model_paths(model, refiner)
    weights = [path for folder in (paths.model, paths.refiner) if folder for path in _weights(folder)]
    return model_info(paths), sum(path.stat().st_size for path in weights)


def _weights(folder: Path) -> list[Path]:
    return list(folder.rglob("*.safetensors"))


def useful_ranks(spec: Spec, info: ModelInfo) -> int:
    """The largest useful group: each rank should evaluate at least a few windows per step."""
    return min(MAX_AUTO_RANKS, max(1, _shape(geometry(spec), info)[0] // 8))


@lru_cache(maxsize=256)
def _memory(spec: Spec, info: ModelInfo, least: int, most: int) -> list[tuple[int, int]]:
    """[(ranks, bytes per rank besides the weights)] for `least` ranks, four times as many, and so on up to
    `most`."""
    counts = takewhile(lambda ranks: ranks <= most, (least * 4**power for power in counting()))
    return [(ranks, max(make_plan(spec, info, ranks).stages[-1].memory_bytes)) for ranks in counts]


@lru_cache(maxsize=256)
def _shape(spec: Spec, info: ModelInfo) -> tuple[int, int]:
    """(evaluations per step of the last stage, work); cached, because a catalog has few geometries."""
    plan = make_plan(spec, info, 1)
    return plan.stages[-1].tiling.evaluations, plan.work


def geometry(spec: Spec) -> Spec:
    """The spec without the fields that differ from row to row and do not change the plan."""
    return spec.with_changes(prompt="x", negative_prompt="", seed=0)


def _chunks(items: Iterable[BatchItem]) -> Iterator[list[BatchItem]]:
    rest = iter(items)
    while chunk := list(islice(rest, _CHUNK_ROWS)):
        yield chunk
