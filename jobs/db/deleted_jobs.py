"""Jobs that were deleted: their files until those are gone, and what receipts and reports need of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, select, update

from infra.database import now
from jobs.db.tables import deleted_jobs, jobs

_MANY = 5000
"""Values of one query: databases limit how many it may have."""


def files_left() -> ColumnElement[bool]:
    """Condition on `jobs`: files of a deleted job of the same image are still being deleted."""
    pending = select(deleted_jobs.c.digest).where(deleted_jobs.c.files_gone.is_(None))
    return jobs.c.digest.in_(pending)


def pending_files(connection: Connection, deletion: str) -> list[Any]:
    """The jobs of a deletion whose files are not gone yet: `number`, `job` and `files`."""
    columns = (deleted_jobs.c.number, deleted_jobs.c.job, deleted_jobs.c.files)
    mine = (deleted_jobs.c.deletion == deletion) & deleted_jobs.c.files_gone.is_(None)
    return list(connection.execute(select(*columns).where(mine).order_by(deleted_jobs.c.number)))


def note_files_gone(connection: Connection, numbers: Sequence[int]) -> None:
    """The files of these deleted jobs are gone: their images may be rendered again."""
    for part in (numbers[start : start + _MANY] for start in range(0, len(numbers), _MANY)):
        mine = update(deleted_jobs).where(deleted_jobs.c.number.in_(part))
        connection.execute(mine.values(files_gone=now()))


def inputs_of(connection: Connection, deletion: str) -> set[str]:
    """Digests of the input files of the jobs of a deletion."""
    mine = select(deleted_jobs.c.files).where(deleted_jobs.c.deletion == deletion)
    return {digest for files in connection.execute(mine).scalars() for digest in files["inputs"]}


@dataclass(frozen=True, kw_only=True)
class Spent:
    """A node's part of an attempt, as the tables of attempts and members have it for jobs that are there."""

    id: str
    job: str
    fence: int
    created: float
    ended: float | None
    reason: str
    failed_node: str | None
    node: str
    slots: list[int]
    left_at: float | None
    slots_before: list[Any] | None = None


@dataclass(frozen=True, kw_only=True)
class DeletedJob:
    """A job as receipts need it."""

    id: str
    """Its id and a number of its own: the same image may be there again."""
    owner: str
    queue: str
    state: str
    created: float
    ended: float
    model_seconds: float
    width: int
    height: int
    batches: list[list[str]]
    """Id and name of each."""
    attempts: list[Spent]

    @property
    def batch_ids(self) -> set[str]:
        return {id for id, _ in self.batches}


def deleted_since(connection: Connection, since: float) -> Iterator[DeletedJob]:
    """The jobs that had not ended by `since`, in seconds since the epoch."""
    mine = select(deleted_jobs).where(deleted_jobs.c.deleted >= since, deleted_jobs.c.ended >= since)
    names = ("owner", "queue", "state", "created", "ended", "model_seconds", "width", "height", "batches")
    for row in connection.execute(mine.order_by(deleted_jobs.c.number)):
        id = f"{row.job}.{row.number}"
        spent = [Spent(job=id, **each) for each in row.attempts]
        yield DeletedJob(id=id, attempts=spent, **{name: row._mapping[name] for name in names})
