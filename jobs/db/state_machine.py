"""The job's state machine. Every state change is made here, by compare-and-set, and recorded as an event.

    queued > placing > rendering > publishing > done
    and paused, failed, cancelled

A change names the expected state and, on behalf of an attempt, the expected fence. If either differs, the
change raises `LostRace` and nothing is written. This makes a second supervisor, a replayed message or a node
that wakes up after its lease harmless.
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
"""The states that may follow each state. A job that is publishing can no longer be cancelled or paused."""

STATES = tuple(ALLOWED)
HOLDING = ("placing", "rendering", "publishing")
"""States in which a job holds slots."""
ENDED = ("done", "failed", "cancelled")


def change_state(
    connection: Connection,
    job: str,
    old: str,
    new: str,
    reason: str,
    *,
    expected_fence: int | None = None,
    **values: Any,
) -> None:
    """Move a job from `old` to `new` and set the columns `values`.

    Raises `IllegalChange` for a transition that does not exist, `LostRace` if the job is not in `old` or no
    longer has the fence `expected_fence`, and `UnknownJob`.
    """
    _check(f"job {job}", old, new)
    expressions = {name: value for name, value in values.items() if isinstance(value, ClauseElement)}
    literals = {name: value for name, value in values.items() if name not in expressions}
    statement = _update_of_one(new, expected_fence is not None, tuple(literals))
    if expressions:
        statement = statement.values(**expressions)
    parameters: dict[str, Any] = {"own_job": job, "own_old": old, "own_reason": reason}
    parameters |= {f"own_{name}": value for name, value in literals.items()}
    parameters |= {} if expected_fence is None else {"own_expected_fence": expected_fence}
    if connection.dialect.name == "postgresql":
        # One statement, because each is a round trip over the network.
        both = (_with_event if expressions else _with_event_cached)(statement, old, new)
        changed = connection.execute(both, parameters).first() is not None
    else:
        fence = connection.execute(statement, parameters).scalar()
        changed = fence is not None
        if fence is not None:
            _record_events(connection, {job: fence}, old, new, {job: reason})
    if not changed:
        raise _lost_race(connection, job, old, expected_fence)


@cache
def _update_of_one(new: str, fenced: bool, names: tuple[str, ...]) -> ReturningUpdate[Any]:
    """The UPDATE of one job; the values of further columns are bound by name."""
    own = (jobs.c.id == bindparam("own_job")) & (jobs.c.state == bindparam("own_old"))
    if fenced:
        own &= jobs.c.fence == bindparam("own_expected_fence")
    given: dict[str, Any] = {name: bindparam(f"own_{name}") for name in names}
    statement = update(jobs).where(own).values(**_state_values(new), reason=bindparam("own_reason"), **given)
    return statement.returning(jobs.c.fence, jobs.c.id)


def _with_event(statement: ReturningUpdate[Any], old: str, new: str) -> ReturningInsert[Any]:
    """An UPDATE and the INSERT of its event in one statement; returns a row if a job was changed."""
    job = statement.cte("moved")
    reason = bindparam("own_reason", type_=Text)
    event = select(now(), job.c.id, job.c.fence, literal(old), literal(new), reason)
    names = ("time", "job", "fence", "old", "new", "reason")
    return insert(events).from_select(names, event).returning(events.c.fence)


_with_event_cached = cache(_with_event)


def change_states(
    connection: Connection, reasons: Mapping[str, str], old: str, new: str, **values: Any
) -> dict[str, int]:
    """Move many jobs from `old` to `new`, each with its reason. Returns their new fences by job.

    Jobs that are not in `old` are left out and stay unchanged. Call `lock_placement` first. Raises
    `IllegalChange`.
    """
    _check("a job", old, new)
    # Locked in the order of their ids, so that what is read here is what is changed below.
    there = select(jobs.c.id).where(jobs.c.id.in_(sorted(reasons)), jobs.c.state == old)
    found = connection.execute(there.order_by(jobs.c.id).with_for_update()).scalars().all()
    if not found:
        return {}
    own = (jobs.c.id == bindparam("own_id")) & (jobs.c.state == old)
    each = update(jobs).where(own).values(**_state_values(new), reason=bindparam("own_reason"), **values)
    connection.execute(each, [{"own_id": job, "own_reason": reasons[job]} for job in found])
    held = select(jobs.c.id, jobs.c.fence).where(jobs.c.id.in_(found))
    fences = {row.id: row.fence for row in connection.execute(held)}
    _record_events(connection, fences, old, new, reasons)
    return fences


def _check(what: str, old: str, new: str) -> None:
    if new not in ALLOWED[old]:
        raise IllegalChange(f"{what} cannot go from {old} to {new}")


def _state_values(new: str) -> dict[str, Any]:
    """The columns that every change to a state sets."""
    values: dict[str, Any] = {"state": new, "changed": now()}
    if new in ENDED:
        values["ended"] = now()
    elif new == "rendering":
        values["started"] = now()
    return values


def _record_events(
    connection: Connection, fences: Mapping[str, int], old: str, new: str, reasons: Mapping[str, str]
) -> None:
    both = {"old": old, "new": new}
    rows = [{"job": job, "fence": fence, "reason": reasons[job]} | both for job, fence in fences.items()]
    connection.execute(insert(events).values(time=now()), rows)


def _lost_race(connection: Connection, job: str, old: str, fence: int | None) -> LostRace | UnknownJob:
    found = connection.execute(select(jobs.c.state, jobs.c.fence).where(jobs.c.id == job)).one_or_none()
    if found is None:
        return UnknownJob(f"unknown job {job}; chorale list shows the known ones")
    wanted = old if fence is None else f"{old} under fence {fence}"
    return LostRace(f"job {job} is {found.state} under fence {found.fence}, not {wanted}")
