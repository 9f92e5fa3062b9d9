"""The job's state machine: every change of a job's state is made here, by compare-and-set, and recorded.

    queued > placing > rendering > publishing > done
    with paused, failed and cancelled beside them

A change names the state that it believes the job to be in, and the fence of its attempt where it speaks for
one. If either is not so any more, somebody else was faster: `LostRace`, and nothing has changed. So two
supervisors, a replayed message or a node that wakes up after its lease can do no harm.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

from sqlalchemy import Connection, Text, bindparam, insert, literal, select, update
from sqlalchemy.sql.dml import ReturningInsert, ReturningUpdate
from sqlalchemy.sql.elements import ClauseElement

from infra.database import now
from jobs.db.tables import events, jobs
from jobs.errors import IllegalChange, LostRace, UnknownJob

ALLOWED: dict[str, frozenset[str]] = {
    "queued": frozenset({"placing", "paused", "cancelled"}),
    "placing": frozenset({"rendering", "queued", "paused", "failed", "cancelled"}),
    "rendering": frozenset({"publishing", "queued", "paused", "failed", "cancelled"}),
    "publishing": frozenset({"done", "queued", "failed"}),
    "paused": frozenset({"queued", "cancelled"}),
    "failed": frozenset({"queued", "cancelled"}),
    "cancelled": frozenset({"queued"}),
    "done": frozenset(),
}
"""From each state to the states that may follow. Once publishing, a picture is let be finished."""

STATES = tuple(ALLOWED)
HOLDING = ("placing", "rendering", "publishing")
"""The states in which a job holds slots."""
ENDED = ("done", "failed", "cancelled")


def change(
    connection: Connection,
    job: str,
    old: str,
    new: str,
    reason: str,
    *,
    under: int | None = None,
    **values: Any,
) -> None:
    """Move a job from `old` to `new`, and set `values` with it.

    Raises `IllegalChange` for a step that the machine does not have, `LostRace` when the job is not in
    `old`, or no longer under the fence `under`, and `UnknownJob`.
    """
    _check(f"job {job}", old, new)
    written = {name: value for name, value in values.items() if isinstance(value, ClauseElement)}
    given = {name: value for name, value in values.items() if name not in written}
    moved = _moved(new, under is not None, tuple(given))
    if written:
        moved = moved.values(**written)
    told: dict[str, Any] = {"own_job": job, "own_old": old, "own_reason": reason}
    told |= {f"own_{name}": value for name, value in given.items()}
    told |= {} if under is None else {"own_under": under}
    if connection.dialect.name == "postgresql":
        # One statement, since there each is a way over the network.
        both = _recorded(moved, old, new) if written else _recorded_once(moved, old, new)
        done = connection.execute(both, told).first() is not None
    else:
        fence = connection.execute(moved, told).scalar()
        done = fence is not None
        if fence is not None:
            _record(connection, {job: fence}, old, new, {job: reason})
    if not done:
        raise _lost(connection, job, old, under)


@cache
def _moved(new: str, under: bool, names: tuple[str, ...]) -> ReturningUpdate[Any]:
    """The change of one job; what it sets beside its state is filled in by name."""
    own = (jobs.c.id == bindparam("own_job")) & (jobs.c.state == bindparam("own_old"))
    if under:
        own &= jobs.c.fence == bindparam("own_under")
    given: dict[str, Any] = {name: bindparam(f"own_{name}") for name in names}
    statement = update(jobs).where(own).values(**_told(new), reason=bindparam("own_reason"), **given)
    return statement.returning(jobs.c.fence, jobs.c.id)


def _recorded(moved: ReturningUpdate[Any], old: str, new: str) -> ReturningInsert[Any]:
    """A change and its event in one statement; returns a row if there was one."""
    job = moved.cte("moved")
    reason = bindparam("own_reason", type_=Text)
    event = select(now(), job.c.id, job.c.fence, literal(old), literal(new), reason)
    names = ("time", "job", "fence", "old", "new", "reason")
    return insert(events).from_select(names, event).returning(events.c.fence)


_recorded_once = cache(_recorded)


def change_all(
    connection: Connection, reasons: Mapping[str, str], old: str, new: str, **values: Any
) -> dict[str, int]:
    """Move those of many jobs that are in `old`, each with its reason: their fences afterwards, by job.

    A job that somebody else was faster to move is left out and left alone. Whoever calls this keeps every
    dispatcher out first, see `lock_placement`. Raises `IllegalChange`.
    """
    _check("a job", old, new)
    # Locked in the order of their names, so that what is read here is what is changed below.
    there = select(jobs.c.id).where(jobs.c.id.in_(sorted(reasons)), jobs.c.state == old)
    found = connection.execute(there.order_by(jobs.c.id).with_for_update()).scalars().all()
    if not found:
        return {}
    own = (jobs.c.id == bindparam("own_id")) & (jobs.c.state == old)
    each = update(jobs).where(own).values(**_told(new), reason=bindparam("own_reason"), **values)
    connection.execute(each, [{"own_id": job, "own_reason": reasons[job]} for job in found])
    held = select(jobs.c.id, jobs.c.fence).where(jobs.c.id.in_(found))
    fences = {row.id: row.fence for row in connection.execute(held)}
    _record(connection, fences, old, new, reasons)
    return fences


def _check(what: str, old: str, new: str) -> None:
    if new not in ALLOWED[old]:
        raise IllegalChange(f"{what} cannot go from {old} to {new}")


def _told(new: str) -> dict[str, Any]:
    """What every change to a state sets."""
    told: dict[str, Any] = {"state": new, "changed": now()}
    if new in ENDED:
        told["ended"] = now()
    elif new == "rendering":
        told["started"] = now()
    return told


def _record(
    connection: Connection, fences: Mapping[str, int], old: str, new: str, reasons: Mapping[str, str]
) -> None:
    both = {"old": old, "new": new}
    rows = [{"job": job, "fence": fence, "reason": reasons[job]} | both for job, fence in fences.items()]
    connection.execute(insert(events).values(time=now()), rows)


def _lost(connection: Connection, job: str, old: str, fence: int | None) -> LostRace | UnknownJob:
    found = connection.execute(select(jobs.c.state, jobs.c.fence).where(jobs.c.id == job)).one_or_none()
    if found is None:
        return UnknownJob(f"job {job} is not known; chorale list shows those that are")
    wanted = old if fence is None else f"{old} under fence {fence}"
    return LostRace(f"job {job} is {found.state} under fence {found.fence}, not {wanted}")
