"""Deleting jobs and batches: their rows go, and what receipts need of them stays in `deleted_jobs`.

The rows go in transactions of their own; the files follow (`jobs.deletion`). Until a job's files are gone,
the same image that is submitted again waits: it would be rendered into the same folder.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, delete, exists, insert, select

from infra.database import Database, now
from jobs.db.dependencies import Predecessor, waiting_for
from jobs.db.folders import attempted_folders
from jobs.db.leases import lock_placement
from jobs.db.prompt_search import forget_words
from jobs.db.reviews import check_custom_ids
from jobs.db.state_machine import ENDED, HOLDING
from jobs.db.submission import is_in_progress
from jobs.db.tables import (
    attempts,
    batches,
    deleted_jobs,
    entries,
    events,
    image_checks,
    jobs,
    members,
    renditions,
    reviews,
)
from jobs.errors import IllegalChange, LostRace
from render.errors import BadInput
from render.spec import FILE_FIELDS, PARTS_OF_FILES

_CHUNK = 200
"""Jobs of one transaction, so that nobody waits long for the database."""
_MANY = 5000
"""Ids of one query: databases limit how many values it may have."""


@dataclass(frozen=True, kw_only=True)
class Selection:
    """What is to be deleted: jobs by their ids, a batch, or images of a batch by their custom ids."""

    jobs: tuple[str, ...] = ()
    batch: str | None = None
    custom_ids: tuple[str, ...] | None = None
    """None for all of the batch, and the batch itself."""

    @property
    def whole_batch(self) -> str | None:
        """The batch that goes as a whole."""
        return self.batch if self.custom_ids is None else None

    @property
    def shown(self) -> str:
        """As the audit log names it."""
        if self.batch is None:
            return f"job {self.jobs[0]}" if len(self.jobs) == 1 else f"{len(self.jobs)} jobs"
        if self.custom_ids is None:
            return f"batch {self.batch}"
        return f"{len(self.custom_ids)} images of batch {self.batch}"


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a selection comes to, as the farm is now."""

    selection: Selection
    jobs: tuple[str, ...]
    """Those that go, by id."""
    done: int
    """How many of them have an image."""
    running: tuple[str, ...]
    """Those of them that hold slots, or whose ranks are still stopping."""
    publishing: tuple[str, ...]
    """Those of the running ones that can no longer be cancelled."""
    elsewhere: int
    """Jobs that are in other batches too, and stay there."""

    def check_cancelled(self, cancel: bool) -> None:
        """Raise `IllegalChange` for running jobs, unless they are to be cancelled and can be."""
        if self.publishing:
            first, more = self.publishing[0], len(self.publishing) - 1
            others = f" and {more} more are" if more else " is"
            raise IllegalChange(f"job {first}{others} being published; wait for the end of it")
        if self.running and not cancel:
            first, more = self.running[0], len(self.running) - 1
            others = f" and {more} more are" if more else " is"
            raise IllegalChange(f"job {first}{others} running; cancel first, or delete with --cancel")


def find(connection: Connection, selection: Selection) -> Found:
    """What would be deleted. Raises `BadInput` for what is unknown, and for jobs that others wait for."""
    going, elsewhere = set(selection.jobs), 0
    if selection.batch is not None:
        _check_batch(connection, selection.batch)
        taken = _rows_of(connection, selection)
        stay = _elsewhere(connection, selection.batch, taken)
        going, elsewhere = {job for _, job in taken} - stay, len({job for _, job in taken} & stay)
        if selection.custom_ids is None:
            going |= _replaced(connection, selection.batch)
    states: dict[str, str] = {}
    open_attempts: set[str] = set()
    for part in _parts(sorted(going)):
        known = select(jobs.c.id, jobs.c.state).where(jobs.c.id.in_(part))
        states |= {row.id: row.state for row in connection.execute(known)}
        stopping = select(attempts.c.job).where(attempts.c.job.in_(part), attempts.c.ended.is_(None))
        open_attempts |= set(connection.execute(stopping).scalars())
    found = Found(
        selection=selection,
        jobs=tuple(sorted(states)),
        done=sum(state == "done" for state in states.values()),
        running=tuple(sorted(job for job in states if states[job] in HOLDING or job in open_attempts)),
        publishing=tuple(sorted(job for job in states if states[job] == "publishing")),
        elsewhere=elsewhere,
    )
    _check_needed(connection, found, states)
    return found


def remove(
    database: Database,
    selection: Selection,
    ids: Sequence[str],
    deletion: str,
    cancelled: Collection[str] = (),
) -> list[str]:
    """Delete the rows of these jobs; those that run, or whose ranks are stopping, are left and returned.

    `deletion` names the follow-up that deletes their files; a job that it has deleted before, and that was
    submitted again since, is not touched. `cancelled` were cancelled for it: one that somebody has retried
    stays. Raises `LostRace` for a batch that was changed meanwhile.
    """
    left: list[str] = []
    for start in range(0, len(ids), _CHUNK):
        part = ids[start : start + _CHUNK]
        with database.write() as connection:
            lock_placement(connection)
            left += _remove_some(connection, selection, part, deletion, cancelled)
    if selection.batch is not None and not left:
        with database.write() as connection:
            lock_placement(connection)
            _remove_rows(connection, selection)
    return left


def files_of(connection: Connection, ids: Sequence[str]) -> list[dict[str, Any]]:
    """What jobs have in the farm's store: `job`, `folders`, `renditions` as [batch, channel, file], and
    digests of `inputs`."""
    return [
        {
            "job": row.id,
            "folders": _folders(connection, row),
            "renditions": made.get(row.id, []),
            "inputs": sorted(_inputs(row.spec)),
        }
        for part in _parts(ids)
        for made in [_renditions(connection, part)]
        for row in connection.execute(select(jobs).where(jobs.c.id.in_(part)).order_by(jobs.c.id))
    ]


def renditions_elsewhere(connection: Connection, selection: Selection) -> list[list[str]]:
    """The files of those rows that are taken out of a batch whose jobs stay in others."""
    rows = sorted(row for row, _ in _rows_of(connection, selection))
    found: list[list[str]] = []
    for part in _parts(rows):
        mine = (renditions.c.batch == selection.batch) & renditions.c.row.in_(part)
        made = connection.execute(select(renditions).where(mine))
        found += [[row.batch, row.channel, row.file] for row in made]
    return found


def inputs_named(
    connection: Connection, digests: Collection[str], without: Collection[str] = frozenset()
) -> set[str]:
    """Those of these input files that some job names, beside the jobs `without`."""
    found: set[str] = set()
    for name in FILE_FIELDS:
        digest = jobs.c.spec[name]["digest"].as_string()
        for part in _parts(sorted(digests)):
            named = connection.execute(select(jobs.c.id, digest.label("digest")).where(digest.in_(part)))
            found |= {row.digest for row in named if row.id not in without}
    for name in PARTS_OF_FILES if digests else ():
        has_any = jobs.c.spec[name][0]["digest"].as_string() != ""
        stored = select(jobs.c.id, jobs.c.spec[name].as_json().label("parts")).where(has_any)
        for row in connection.execute(stored):
            if row.id not in without:
                found |= {part.get("digest") for part in row.parts} & set(digests)
    return found


def _check_batch(connection: Connection, batch: str) -> None:
    row = connection.execute(select(batches).where(batches.c.id == batch)).one_or_none()
    if row is None:
        raise BadInput("batch", batch[:40], "is unknown; chorale batches shows the known ones")
    if is_in_progress(connection, batch):
        fix = "is being submitted; wait for it, or a day where that was interrupted"
        raise BadInput("batch", batch, fix)


def _rows_of(connection: Connection, selection: Selection) -> list[tuple[int, str]]:
    """(row, job) of the rows that are taken out of the batch."""
    mine = select(entries.c.row, entries.c.job, entries.c.custom_id).where(entries.c.batch == selection.batch)
    if selection.custom_ids is None:
        return [(row.row, row.job) for row in connection.execute(mine)]
    check_custom_ids(selection.custom_ids)
    found = []
    for part in _parts(selection.custom_ids):
        found += list(connection.execute(mine.where(entries.c.custom_id.in_(part))))
    missing = set(selection.custom_ids) - {row.custom_id for row in found}
    if missing:
        raise BadInput("images", min(missing)[:80], "is no image of this batch; use its custom_id")
    return [(row.row, row.job) for row in found]


def _elsewhere(connection: Connection, batch: str, taken: Sequence[tuple[int, str]]) -> set[str]:
    """The jobs that have a row beside those that are taken."""
    rows, found = {row for row, _ in taken}, set[str]()
    for part in _parts(sorted({job for _, job in taken})):
        others = select(entries.c.batch, entries.c.row, entries.c.job).where(entries.c.job.in_(part))
        for each in connection.execute(others):
            if each.batch != batch or each.row not in rows:
                found.add(each.job)
    return found


def _replaced(connection: Connection, batch: str) -> set[str]:
    """Images of the batch that were re-rolled, and are in no batch any more."""
    nowhere = ~exists().where(entries.c.job == reviews.c.job)
    reviewed = select(reviews.c.job).where(reviews.c.batch == batch, nowhere).distinct()
    return set(connection.execute(reviewed).scalars())


def _check_needed(connection: Connection, found: Found, states: dict[str, str]) -> None:
    """Raise `BadInput` where jobs that stay wait for one that would go without its end."""
    going = set(found.jobs)
    for waiting, wanted in waiting_for(connection):
        for each in wanted:
            open_ones = [job for job in _jobs_of(connection, each) & going if states[job] not in each.enough]
            if open_ones and not waiting <= going:
                fix = "is what other jobs wait for (--after); cancel and delete those first, or wait for it"
                raise BadInput("job", min(open_ones), fix)


def _jobs_of(connection: Connection, each: Predecessor) -> set[str]:
    return set(connection.execute(select(jobs.c.id).where(each.jobs())).scalars())


def _remove_some(
    connection: Connection,
    selection: Selection,
    part: Sequence[str],
    deletion: str,
    cancelled: Collection[str],
) -> list[str]:
    """Delete those of some jobs that may go; returns those that run."""
    before = select(deleted_jobs.c.job).where(
        deleted_jobs.c.deletion == deletion, deleted_jobs.c.job.in_(part)
    )
    stay = set(connection.execute(before).scalars()) | _needed_elsewhere(connection, selection, part)
    locked = select(jobs).where(jobs.c.id.in_(part)).order_by(jobs.c.id).with_for_update()
    rows = [row for row in connection.execute(locked) if row.id not in stay]
    rows = [row for row in rows if row.id not in cancelled or row.state in ENDED]
    stopping = select(attempts.c.job).where(attempts.c.job.in_(part), attempts.c.ended.is_(None))
    busy = set(connection.execute(stopping).scalars()) | {row.id for row in rows if row.state in HOLDING}
    _delete(connection, [row for row in rows if row.id not in busy], deletion)
    return sorted(busy & {row.id for row in rows})


def _needed_elsewhere(connection: Connection, selection: Selection, part: Sequence[str]) -> set[str]:
    """Those of some jobs that have a row beside those that are deleted: others may have submitted them."""
    if selection.batch is None:
        return set()
    named = None if selection.custom_ids is None else set(selection.custom_ids)
    return {
        row.job
        for row in connection.execute(select(entries).where(entries.c.job.in_(part)))
        if row.batch != selection.batch or (named is not None and row.custom_id not in named)
    }


def _delete(connection: Connection, rows: Sequence[Any], deletion: str) -> None:
    """Delete jobs, and all that names them; keep what receipts need."""
    if not rows:
        return
    ids = [row.id for row in rows]
    spent, named = _attempts(connection, ids), _batches(connection, ids)
    files = {each.pop("job"): each for each in files_of(connection, ids)}
    values = [
        {
            **{name: row._mapping[name] for name in ("digest", "owner", "queue", "state", "created")},
            "job": row.id,
            "ended": row.ended if row.state in ENDED and row.ended is not None else row.changed,
            "model_seconds": row.model_seconds,
            "width": row.spec["width"],
            "height": row.spec["height"],
            "batches": named.get(row.id, []),
            "attempts": spent.get(row.id, []),
            "deletion": deletion,
            "files": files[row.id],
        }
        for row in rows
    ]
    connection.execute(insert(deleted_jobs).values(deleted=now()), values)
    mine = select(attempts.c.id).where(attempts.c.job.in_(ids))
    connection.execute(delete(members).where(members.c.attempt.in_(mine)))
    for table in (attempts, events, reviews, image_checks, renditions, entries):
        connection.execute(delete(table).where(table.c.job.in_(ids)))
    forget_words(connection, ids)
    connection.execute(delete(jobs).where(jobs.c.id.in_(ids)))


def _remove_rows(connection: Connection, selection: Selection) -> None:
    """Take the other rows out of the batch: their jobs are in others. A whole batch goes with them."""
    taken = _rows_left(connection, selection)
    stay = _elsewhere(connection, selection.batch or "", taken)
    if not {job for _, job in taken} <= stay:
        raise LostRace(f"batch {selection.batch} was changed meanwhile; delete the rest of it again")
    for part in _parts([row for row, _ in taken]):
        for table in (entries, reviews, renditions):
            mine = (table.c.batch == selection.batch) & table.c.row.in_(part)
            connection.execute(delete(table).where(mine))
    if selection.whole_batch is not None:
        for table in (reviews, renditions):
            connection.execute(delete(table).where(table.c.batch == selection.batch))
        connection.execute(delete(batches).where(batches.c.id == selection.batch))


def _rows_left(connection: Connection, selection: Selection) -> list[tuple[int, str]]:
    mine = select(entries.c.row, entries.c.job).where(entries.c.batch == selection.batch)
    if selection.custom_ids is None:
        return [(row.row, row.job) for row in connection.execute(mine)]
    found: list[Any] = []
    for part in _parts(selection.custom_ids):
        found += connection.execute(mine.where(entries.c.custom_id.in_(part)))
    return [(row.row, row.job) for row in found]


_OF_MEMBERS = ("node", "slots", "slots_before", "left_at")


def _attempts(connection: Connection, ids: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """By job: a row for each member of its attempts, as `jobs.report` reads them."""
    names = ("id", "fence", "created", "ended", "reason", "failed_node")
    statement = (
        select(attempts.c.job, *(attempts.c[name] for name in names))
        .add_columns(*(members.c[name] for name in _OF_MEMBERS))
        .join(members, members.c.attempt == attempts.c.id)
        .where(attempts.c.job.in_(ids))
        .order_by(attempts.c.created, members.c.place)
    )
    found: dict[str, list[dict[str, Any]]] = {}
    for row in connection.execute(statement):
        values = {name: row._mapping[name] for name in (*names, *_OF_MEMBERS)}
        found.setdefault(row.job, []).append(values)
    return found


def _batches(connection: Connection, ids: Sequence[str]) -> dict[str, list[list[str]]]:
    """By job: id and name of its batches."""
    statement = select(entries.c.job, batches.c.id, batches.c.name).join(
        batches, batches.c.id == entries.c.batch
    )
    found: dict[str, list[list[str]]] = {}
    for row in connection.execute(statement.where(entries.c.job.in_(ids)).distinct()):
        found.setdefault(row.job, []).append([row.id, row.name])
    return found


def _renditions(connection: Connection, ids: Sequence[str]) -> dict[str, list[list[str]]]:
    """By job: batch, channel and name of the files that were made of its image."""
    made = select(renditions).where(renditions.c.job.in_(ids))
    found: dict[str, list[list[str]]] = {}
    for row in connection.execute(made):
        found.setdefault(row.job, []).append([row.batch, row.channel, row.file])
    return found


def _folders(connection: Connection, row: Any) -> list[str]:
    """All folders of a job's image in the store, finished and unfinished ones."""
    return list(dict.fromkeys([row.folder or row.digest, row.digest, *attempted_folders(connection, row.id)]))


def _inputs(spec: dict[str, Any]) -> set[str]:
    """Digests of a spec's input files."""
    parts = [spec.get(name) for name in FILE_FIELDS]
    for name in PARTS_OF_FILES:
        parts += spec.get(name) or []
    return {part["digest"] for part in parts if isinstance(part, dict) and part.get("digest")}


def _parts(values: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for start in range(0, len(values), _MANY):
        yield values[start : start + _MANY]
