"""Dependencies: the jobs of a submission wait until other jobs, or all jobs of other batches, have ended.

The model is Slurm's: `after` waits for images that are done (afterok), `after any` for jobs that have ended
in any way (afterany). A job that waits for one that failed or was cancelled stays queued: whoever retries the
other lets both go on.

No job waits for itself, whatever is submitted: a submission names jobs and whole batches that are there
already, and its own new jobs are in none of them. What could close a circle afterwards drops the dependency
instead (`without_circles`, and a job that takes another's place in a batch).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import ColumnElement, Connection, Select, func, insert, or_, select, update

from infra.database import now
from jobs.db.state_machine import ENDED
from jobs.db.tables import dependencies, entries, jobs, predecessors
from jobs.formatting import plural

_CHUNK = 5000
"""Ids of one query: databases limit how many values it may have."""


@dataclass(frozen=True, kw_only=True)
class Predecessor:
    """A job or a batch that has to end first."""

    kind: Literal["job", "batch"]
    id: str
    any: bool
    """Whether it may end in any way, not only done."""

    @property
    def enough(self) -> tuple[str, ...]:
        """The states of its jobs that let others start."""
        return ENDED if self.any else ("done",)

    @property
    def hopeless(self) -> tuple[str, ...]:
        """The states of its jobs that somebody has to change first."""
        return tuple(state for state in ENDED if state not in self.enough)

    def jobs(self) -> ColumnElement[bool]:
        """Its jobs."""
        if self.kind == "job":
            return jobs.c.id == self.id
        return jobs.c.id.in_(select(entries.c.job).where(entries.c.batch == self.id))


def add_dependency(connection: Connection, id: str, wanted: Collection[Predecessor]) -> None:
    """Add a dependency, under the id of the batch whose jobs wait."""
    connection.execute(insert(dependencies).values(id=id))
    rows = [{"dependency": id, "kind": each.kind, "target": each.id, "any_end": each.any} for each in wanted]
    connection.execute(insert(predecessors), rows)


def release(connection: Connection) -> int:
    """Let the jobs start whose predecessors have ended. Returns of how many submissions those are."""
    over = [id for id, wanted in _waiting(connection).items() if not any(_unmet(connection, wanted))]
    if over:
        connection.execute(update(dependencies).where(dependencies.c.id.in_(over)).values(released=now()))
    return len(over)


def is_free() -> ColumnElement[bool]:
    """Whether a job waits for no other one."""
    waiting = select(dependencies.c.id).where(dependencies.c.released.is_(None))
    return or_(jobs.c.dependency.is_(None), jobs.c.dependency.not_in(waiting))


def without_circles(connection: Connection, dependency: str, ids: Iterable[str]) -> set[str]:
    """Those of these jobs that `dependency` does not wait for itself, over any number of others."""
    upstream, todo, seen = set[str](), [dependency], {dependency}
    waiting = _waiting(connection)
    while todo:
        for each in waiting.get(todo.pop(), ()):
            for row in connection.execute(select(jobs.c.id, jobs.c.dependency).where(each.jobs())):
                upstream.add(row.id)
                if row.dependency is not None and row.dependency not in seen:
                    seen.add(row.dependency)
                    todo.append(row.dependency)
    return set(ids) - upstream


def let_start(connection: Connection, ids: Collection[str]) -> None:
    """Drop the dependencies of queued jobs that another batch has taken in, for others may wait for it."""
    mine = jobs.c.id.in_(ids) & jobs.c.dependency.is_not(None) & (jobs.c.state == "queued")
    connection.execute(update(jobs).where(mine).values(dependency=None))


def waits_for(connection: Connection, ids: Collection[str]) -> dict[str, str]:
    """Of these jobs: the queued ones that wait for others, each with what it waits for."""
    reasons = {id: _reason(connection, wanted) for id, wanted in _waiting(connection).items()}
    if not reasons:
        return {}
    asked, found = list(ids), dict[str, str]()
    for start in range(0, len(asked), _CHUNK):
        mine = select(jobs.c.id, jobs.c.dependency).where(
            jobs.c.id.in_(asked[start : start + _CHUNK]),
            jobs.c.state == "queued",
            jobs.c.dependency.in_(list(reasons)),
        )
        found |= {row.id: reasons[row.dependency] for row in connection.execute(mine)}
    return found


def waiting_for(connection: Connection) -> list[tuple[set[str], list[Predecessor]]]:
    """The jobs that wait for others, each set of them with what it waits for."""
    found = []
    for id, wanted in _waiting(connection).items():
        mine = select(jobs.c.id).where(jobs.c.dependency == id, jobs.c.state.not_in(ENDED))
        found.append((set(connection.execute(mine).scalars()), wanted))
    return found


def hopeless(connection: Connection) -> dict[str, str]:
    """The dependencies that wait for jobs that failed or were cancelled, each with what it waits for."""
    return {
        id: _reason(connection, wanted)
        for id, wanted in _waiting(connection).items()
        if any(_count(connection, each, each.hopeless) for each in wanted)
    }


def show_dependency(connection: Connection, id: str | None) -> list[dict[str, Any]]:
    """What a job waits for, or has waited for: `kind`, `id`, `any`, and whether it is `met`."""
    if id is None:
        return []
    released = connection.execute(select(dependencies.c.released).where(dependencies.c.id == id)).scalar()
    return [
        {"kind": each.kind, "id": each.id, "any": each.any}
        | {"met": released is not None or not any(_unmet(connection, [each]))}
        for each in _predecessors_of(connection, [id]).get(id, ())
    ]


def _waiting(connection: Connection) -> dict[str, list[Predecessor]]:
    """The dependencies that are not released, each with its predecessors."""
    waiting = select(dependencies.c.id).where(dependencies.c.released.is_(None))
    return _predecessors_of(connection, waiting)


def _predecessors_of(
    connection: Connection, ids: Sequence[str] | Select[Any]
) -> dict[str, list[Predecessor]]:
    found: dict[str, list[Predecessor]] = {}
    rows = select(predecessors).where(predecessors.c.dependency.in_(ids))
    for row in connection.execute(rows.order_by(predecessors.c.dependency, predecessors.c.target)):
        known = Predecessor(kind=row.kind, id=row.target, any=row.any_end)
        found.setdefault(row.dependency, []).append(known)
    return found


def _unmet(connection: Connection, wanted: Iterable[Predecessor]) -> Iterable[Predecessor]:
    """Those with a job that has not ended as it should."""
    for each in wanted:
        left = select(jobs.c.id).where(each.jobs(), jobs.c.state.not_in(each.enough)).limit(1)
        if connection.execute(left).first() is not None:
            yield each


def _count(connection: Connection, each: Predecessor, states: Collection[str]) -> int:
    counted = select(func.count()).select_from(jobs).where(each.jobs(), jobs.c.state.in_(states))
    return int(connection.execute(counted).scalar_one())


def _reason(connection: Connection, wanted: Iterable[Predecessor]) -> str:
    """`job 3fa9..., which is rendering`, or `batch 8c1f... (3 jobs to go, 1 failed)`; the worst one first."""
    unmet = sorted(_unmet(connection, wanted), key=lambda each: not _count(connection, each, each.hopeless))
    if not unmet:
        return "its turn"
    text, more = _shown(connection, unmet[0]), len(unmet) - 1
    return f"{text}, and {more} more" if more else text


def _shown(connection: Connection, each: Predecessor) -> str:
    if each.kind == "job":
        state = connection.execute(select(jobs.c.state).where(jobs.c.id == each.id)).scalar_one()
        verb = "has" if state == "failed" else "was" if state == "cancelled" else "is"
        return f"job {each.id}, which {verb} {state}"
    rows = select(jobs.c.state, func.count().label("jobs")).where(each.jobs()).group_by(jobs.c.state)
    counts = {row.state: row.jobs for row in connection.execute(rows)}
    going = sum(count for state, count in counts.items() if state not in ENDED)
    parts = [f"{plural(going, 'job')} to go"] if going else []
    parts += [f"{counts[state]:,} {state}" for state in each.hopeless if counts.get(state)]
    return f"batch {each.id} ({', '.join(parts)})"
