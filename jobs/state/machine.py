"""The job's state machine: every change of a job's state is made here, by compare-and-set, and recorded.

    queued > placing > rendering > publishing > done
    with paused, failed and cancelled beside them

A change names the state that it believes the job to be in, and the fence of its attempt where it speaks for
one. If either is not so any more, somebody else was faster: `LostRace`, and nothing has changed. So two
supervisors, a replayed message or a node that wakes up after its lease can do no harm.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, insert, select, update

from infra.database import now
from jobs.errors import IllegalChange, LostRace, UnknownJob
from jobs.state.tables import events, jobs

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
    if new not in ALLOWED[old]:
        raise IllegalChange(f"job {job} cannot go from {old} to {new}")
    moment = now()
    if new in ENDED:
        values.setdefault("ended", moment)
    elif new == "rendering":
        values.setdefault("started", moment)
    statement = update(jobs).where(jobs.c.id == job, jobs.c.state == old)
    if under is not None:
        statement = statement.where(jobs.c.fence == under)
    changed = connection.execute(statement.values(state=new, reason=reason, changed=moment, **values))
    if changed.rowcount != 1:
        raise _lost(connection, job, old, under)
    held = connection.execute(select(jobs.c.fence).where(jobs.c.id == job)).scalar_one()
    connection.execute(
        insert(events).values(time=now(), job=job, fence=held, old=old, new=new, reason=reason)
    )


def _lost(connection: Connection, job: str, old: str, fence: int | None) -> LostRace | UnknownJob:
    found = connection.execute(select(jobs.c.state, jobs.c.fence).where(jobs.c.id == job)).one_or_none()
    if found is None:
        return UnknownJob(f"job {job} is not known; chorale list shows those that are")
    wanted = old if fence is None else f"{old} under fence {fence}"
    return LostRace(f"job {job} is {found.state} under fence {found.fence}, not {wanted}")
