"""Heartbeats: a supervisor renews its lease, reports progress and learns how its attempt stands."""

from __future__ import annotations

from typing import Any, Literal

from sqlalchemy import Connection, select, update

from infra.database import now
from jobs.db.claims import LEASE_S, is_active, is_held
from jobs.db.records import Assignment
from jobs.db.state_machine import HOLDING
from jobs.db.tables import jobs, members

Verdict = Literal["continue", "stop", "abandon"]
"""Answer to a heartbeat: go on, stop after the step with a checkpoint, or end at once."""
_INTERRUPTED = ("paused", "queued")
"""States of a job that was interrupted while its attempt is still active; it continues later."""


def heartbeat(
    connection: Connection,
    assignment: Assignment,
    progress: float | None = None,
    live: dict[str, Any] | None = None,
    elastic: bool | None = None,
) -> Verdict:
    """Renew the member's lease, and store its progress (0 to 1), the snapshot `live` for the board, and
    whether its group takes more slots (`jobs.db.growing`)."""
    ours = (jobs.c.id == assignment.job) & (jobs.c.fence == assignment.fence)
    state = connection.execute(select(jobs.c.state).where(ours)).scalar()
    if state not in (*HOLDING, *_INTERRUPTED):
        return "abandon"
    changes = {name: each for name, each in (("live", live), ("elastic", elastic)) if each is not None}
    renewed = connection.execute(
        update(members)
        .where(is_held(assignment), is_active(assignment.attempt))
        .values(lease_until=now() + LEASE_S, **changes)
    )
    if renewed.rowcount != 1:
        return "abandon"
    if progress is not None:
        # Progress beyond what earlier attempts reached resets the losses: a long job may outlive many nodes.
        further = ours & (jobs.c.progress < progress)
        connection.execute(update(jobs).where(further).values(progress=progress, losses=0))
    return "continue" if state in HOLDING else "stop"
