"""Submitting: specs become jobs. The same image asked for twice is one job, whoever asks."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
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
from jobs.db.prompt_search import keep_words, kept_words
from jobs.db.state_machine import change
from jobs.db.tables import batches, entries, events, jobs
from render.errors import BadInput
from render.model_info import ModelInfo
from render.models.model_paths import find_model_paths, model_info
from render.plan.plan import make_plan
from render.spec import Spec

MOST_AUTO_RANKS = 64
"""Above this a group's borders cost more than another rank brings."""
MOST_RANKS = 1024
_AT_A_TIME = 400
_TERMS = ("owner", "queue", "priority", "least_ranks", "most_ranks", "memory", "not_before", "deadline")


@dataclass(frozen=True, kw_only=True)
class JobOptions:
    """How a job is to be run; nothing here touches a pixel."""

    owner: str
    queue: str = "default"
    priority: int | None = None
    ranks: int | None = None
    not_before: float | None = None
    deadline: float | None = None


def parse_ranks(text: str) -> int | None:
    """`auto` (None) or a number of ranks; raises `BadInput`."""
    if text != "auto" and not (text.isascii() and text.isdigit() and 1 <= int(text) <= MOST_RANKS):
        raise BadInput("ranks", text, f"is not auto or a whole number from 1 to {MOST_RANKS}")
    return None if text == "auto" else int(text)


def parse_moment(name: str, text: str | None) -> float | None:
    """A date and time in ISO 8601 as seconds since the epoch; raises `BadInput`."""
    if not text:
        return None
    try:
        return datetime.fromisoformat(text).astimezone().timestamp()
    except (ValueError, OverflowError, OSError) as exc:
        raise BadInput(name, text, "is not a date and time; use e.g. 2026-11-21T22:00+01:00") from exc


@dataclass(frozen=True, kw_only=True)
class BatchItem:
    """One image asked for: its spec, and where in its batch it stands."""

    row: int
    custom_id: str
    spec: Spec


def expand_variations(asked: Iterable[BatchItem], count: int) -> Iterator[BatchItem]:
    """Each image in `count` variations: one composition, other finishes. The first is the image itself."""
    for each in asked:
        for number in range(count):
            first = each.spec.variation
            yield BatchItem(
                row=(each.row - 1) * count + number + 1,
                custom_id=each.custom_id if number == 0 else f"{each.custom_id}-v{number + 1}",
                spec=each.spec.with_changes(variation=first + number),
            )


@dataclass(kw_only=True)
class Receipt:
    """What became of a submission."""

    batch: str
    new: int = 0
    known: int = 0
    done: int = 0
    """Of those known, how many are finished already."""


def submit(database: Database, asked: Iterable[BatchItem], name: str, terms: JobOptions) -> Receipt:
    """Put a batch of images into a queue; images that the farm knows already join the batch as they are.

    A cancelled job that is asked for again is queued again, on the new terms; a failed one waits for
    `retry`. Rows go in part by part, so that a large batch does not keep the farm from its database; if it
    breaks off, submitting it again adds the rest.
    """
    # Each model is looked at once per batch: a server lives long, and a folder may have changed since.
    _models.cache_clear()
    receipt = Receipt(batch=uuid.uuid4().hex[:12])
    with database.write() as connection:
        connection.execute(
            insert(batches).values(
                id=receipt.batch, name=name, owner=terms.owner, queue=terms.queue, created=now()
            )
        )
    for part in _parts(asked):
        made = [_job_row(each, terms) for each in part]
        with database.write() as connection:
            _submit_part(connection, part, made, receipt)
    with database.write() as connection:
        connection.execute(update(batches).where(batches.c.id == receipt.batch).values(submitted=now()))
    return receipt


def _submit_part(
    connection: Connection, part: list[BatchItem], made: list[dict[str, Any]], receipt: Receipt
) -> None:
    """`made` holds the job's row of each image of the part."""
    lock_placement(connection)
    # Sorted, as everywhere where many jobs are touched: two submitters must not wait for each other.
    rows = {row["id"]: row for row in sorted(made, key=itemgetter("id"))}
    states = select(jobs.c.id, jobs.c.state).where(jobs.c.id.in_(list(rows)))
    known = {found.id: found.state for found in connection.execute(states)}
    fresh = [row for job, row in rows.items() if job not in known]
    if fresh:
        moment = now()
        arriving = insert_unless_there(connection, jobs).values(created=moment, changed=moment)
        connection.execute(arriving, fresh)
        keep_words(connection, fresh)
        born = {"fence": 0, "old": "", "new": "queued", "reason": f"submitted in batch {receipt.batch}"}
        connection.execute(insert(events).values(time=now()), [{"job": row["id"], **born} for row in fresh])
    for job in sorted(job for job, state in known.items() if state == "cancelled"):
        terms = {name: rows[job][name] for name in _TERMS}
        reason = f"asked for again in batch {receipt.batch}"
        change(connection, job, "cancelled", "queued", reason, attempts=0, losses=0, **terms)
    members = [
        {"batch": receipt.batch, "row": each.row, "custom_id": each.custom_id, "job": row["id"]}
        for each, row in zip(part, made, strict=True)
    ]
    connection.execute(insert(entries), members)
    receipt.new += len(fresh)
    receipt.known += len(part) - len(fresh)
    receipt.done += sum(known.get(row["id"]) == "done" for row in made)


def _job_row(each: BatchItem, terms: JobOptions) -> dict[str, Any]:
    spec = each.spec
    info, weights = _models(spec.model, spec.refiner)
    least, most = (terms.ranks, terms.ranks) if terms.ranks else (1, _useful_ranks(spec, info))
    digest = spec.digest(info.digest)
    return {
        # 64 bits of it tell a farm's images apart, and a person can type some.
        "id": digest[:16],
        "digest": digest,
        "spec": asdict(spec),
        "words": kept_words(spec.prompt),
        "model": spec.model,
        "owner": terms.owner,
        "queue": terms.queue,
        "priority": terms.priority,
        "least_ranks": least,
        "most_ranks": most,
        "memory": [(ranks, above + weights) for ranks, above in _memory(_geometry(spec), info, least, most)],
        "work": float(_shape(_geometry(spec), info)[1]),
        "state": "queued",
        "not_before": terms.not_before,
        "deadline": terms.deadline,
    }


@lru_cache(maxsize=32)
def _models(model: str, refiner: str | None) -> tuple[ModelInfo, int]:
    """The facts of a model and its refiner, and the bytes of their weights."""
    folders = find_model_paths(model, refiner)
    weights = [path for folder in (folders.model, folders.refiner) if folder for path in _weights(folder)]
    return model_info(folders), sum(path.stat().st_size for path in weights)


def _weights(folder: Path) -> list[Path]:
    return list(folder.rglob("*.safetensors"))


def _useful_ranks(spec: Spec, info: ModelInfo) -> int:
    """Ranks beyond which a group of this image would only wait: each should evaluate a few windows."""
    return min(MOST_AUTO_RANKS, max(1, _shape(_geometry(spec), info)[0] // 8))


@lru_cache(maxsize=256)
def _memory(spec: Spec, info: ModelInfo, least: int, most: int) -> list[tuple[int, int]]:
    """(ranks, bytes above the weights that each of so many needs): for `least` ranks, four times as many, and
    so on up to `most`."""
    counts = takewhile(lambda ranks: ranks <= most, (least * 4**power for power in counting()))
    return [(ranks, max(make_plan(spec, info, ranks).stages[-1].memory_bytes)) for ranks in counts]


@lru_cache(maxsize=256)
def _shape(spec: Spec, info: ModelInfo) -> tuple[int, int]:
    """(evaluations per step of the last stage, work); the same for all of a catalog."""
    plan = make_plan(spec, info, 1)
    return plan.stages[-1].tiling.evaluations, plan.work


def _geometry(spec: Spec) -> Spec:
    """The spec without what changes from row to row and does not change the plan."""
    return spec.with_changes(prompt="x", negative_prompt="", seed=0)


def _parts(asked: Iterable[BatchItem]) -> Iterator[list[BatchItem]]:
    rest = iter(asked)
    while part := list(islice(rest, _AT_A_TIME)):
        yield part
