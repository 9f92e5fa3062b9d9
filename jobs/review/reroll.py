"""Re-rolls: images of a batch are rendered again with other seeds or another prompt, under the same ids.

The row of the batch gets another job. The old image and what was said of it stay in the farm.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, select, update

from infra.database import Database
from infra.store.base import Store
from jobs.db.audit import record
from jobs.db.dependencies import let_start
from jobs.db.leases import lock_inputs
from jobs.db.reviews import check_custom_ids
from jobs.db.submission import BatchItem, JobOptions, insert_jobs, job_row
from jobs.db.tables import batches, entries, jobs
from jobs.input_assets import check_inputs
from jobs.tags import read_tags
from render.errors import BadInput
from render.spec import Spec

AGAIN = ("done", "failed", "cancelled")
"""States of jobs that may be replaced."""
_CHUNK = 400
_TRIES = 100


@dataclass(frozen=True, kw_only=True)
class Changes:
    """What is different in the new images. `{prompt}` in the new prompt stands for the old one."""

    prompt: str | None = None
    negative_prompt: str | None = None
    keep_seed: bool = False
    """Keep the seed; only with another prompt, else nothing would change."""

    def __post_init__(self) -> None:
        if self.keep_seed and self.prompt is None and self.negative_prompt is None:
            raise BadInput("keep_seed", True, "changes nothing without another prompt; give one")

    def applied(self, spec: Spec) -> Spec:
        """The spec with another prompt and its old seed. Raises `BadInput`."""
        given: dict[str, Any] = {}
        if self.prompt is not None:
            given["prompt"] = self.prompt.replace("{prompt}", spec.prompt)
        if self.negative_prompt is not None:
            given["negative_prompt"] = self.negative_prompt
        return spec.with_changes(**given) if given else spec


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Who asks for a re-roll: as the jobs' history names them, and as the audit log does."""

    by: str
    audited_as: str


@dataclass(frozen=True, kw_only=True)
class Replaced:
    """An image that was re-rolled: the job that it had, and the one that it has now."""

    custom_id: str
    old: str
    job: str
    seed: int


@dataclass(frozen=True, kw_only=True)
class _Planned:
    row: int
    result: Replaced
    spec: Spec
    job: dict[str, Any]


def reroll(
    database: Database,
    store: Store,
    batch: str,
    images: Sequence[str],
    changes: Changes,
    asked: Asked,
) -> list[Replaced]:
    """Render images of a batch, given by custom id, again. Returns those that this call has replaced.

    The models stay, so nothing is read that a job of this farm has not used. Jobs keep queue, owner, priority
    and ranks. An image that somebody else re-rolls at the same time is replaced once. Raises `BadInput` for
    an unknown or unfinished image, and nothing is queued then.
    """
    planned: list[_Planned] = []
    with database.read() as connection:
        taken = set(connection.execute(select(entries.c.job).where(entries.c.batch == batch)).scalars())
        rows = _rows(connection, batch, images)
    for row in rows:
        each = _plan(row, changes, taken)
        taken.add(each.result.job)
        planned.append(each)
    done: list[Replaced] = []
    with database.write() as connection:
        lock_inputs(connection)
        check_inputs((each.spec for each in planned), store)
        for start in range(0, len(planned), _CHUNK):
            done += _replace(connection, batch, planned[start : start + _CHUNK], asked.by)
        record(connection, asked.audited_as, "re-roll", f"batch {batch}", images=len(done))
        # Its report is sent again when the new images have ended.
        mine = update(batches).where(batches.c.id == batch)
        # So are its renditions made of the new ones.
        connection.execute(mine.values(reported=None, channels_open=batches.c.channels_open.is_not(None)))
    return done


def _rows(connection: Connection, batch: str, images: Sequence[str]) -> list[Any]:
    names = ("id", "state", "spec", "queue", "owner", "priority", "least_ranks", "most_ranks", "require_tag")
    check_custom_ids(images)
    found: list[Any] = []
    for start in range(0, len(images), _CHUNK):
        part = images[start : start + _CHUNK]
        statement = (
            select(entries.c.row, entries.c.custom_id, *(jobs.c[name] for name in names))
            .join(jobs, jobs.c.id == entries.c.job)
            .where(entries.c.batch == batch, entries.c.custom_id.in_(part))
            .order_by(entries.c.row)
        )
        found += connection.execute(statement)
    missing = set(images) - {row.custom_id for row in found}
    if missing:
        raise BadInput("images", min(missing)[:80], "is no image of this batch; use its custom_id")
    for row in found:
        if row.state not in AGAIN:
            raise BadInput("images", row.custom_id[:80], f"is {row.state}; wait for it, or cancel it first")
    return found


def _plan(row: Any, changes: Changes, taken: set[str]) -> _Planned:
    """The new job of an image; never one that the batch has already."""
    ranks = row.least_ranks if row.least_ranks == row.most_ranks else None
    options = JobOptions(
        owner=row.owner,
        queue=row.queue,
        priority=row.priority,
        ranks=ranks,
        require_tag=tuple(sorted(read_tags(row.require_tag))),
    )
    original = changes.applied(Spec.from_mapping(row.spec))
    for number in range(_TRIES):
        seed = original.seed if changes.keep_seed else _new_seed(row.id, row.custom_id, number)
        spec = original.with_changes(seed=seed)
        job = job_row(BatchItem(row=row.row, custom_id=row.custom_id, spec=spec), options)
        if job["id"] not in taken:
            result = Replaced(custom_id=row.custom_id, old=row.id, job=job["id"], seed=seed)
            return _Planned(row=row.row, result=result, spec=spec, job=job)
        if changes.keep_seed:
            break
    raise BadInput("prompt", original.prompt[:60], "gives an image that the batch has already; change more")


def _new_seed(job: str, custom_id: str, number: int) -> int:
    """A seed that depends on the image it replaces, so that a repeated request asks for the same image."""
    digest = hashlib.sha256(f"{job}/{custom_id}/{number}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:4], "big")


def _replace(connection: Connection, batch: str, planned: Sequence[_Planned], who: str) -> list[Replaced]:
    """Give the rows their new jobs, unless another one was given meanwhile: whoever comes second changes
    nothing."""
    rows = select(entries.c.row, entries.c.job).where(
        entries.c.batch == batch, entries.c.row.in_([each.row for each in planned])
    )
    found = connection.execute(rows.order_by(entries.c.row).with_for_update())
    now_there = {row.row: row.job for row in found}
    same = [each for each in planned if now_there.get(each.row) == each.result.old]
    where = f"in batch {batch} by {who} in place of another image"
    insert_jobs(connection, {each.result.job: each.job for each in same}, where)
    let_start(connection, [each.result.job for each in same])
    for each in same:
        mine = (entries.c.batch == batch) & (entries.c.row == each.row)
        connection.execute(update(entries).where(mine).values(job=each.result.job))
    return [each.result for each in same]
