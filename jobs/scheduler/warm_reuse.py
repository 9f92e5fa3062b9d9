"""Warm reuse: a group whose model is loaded goes from one job to the next without giving up its slots."""

from __future__ import annotations

from dataclasses import replace

from sqlalchemy import Connection, select

from jobs.db.claims import claim, make_ready
from jobs.db.leases import lock_placement
from jobs.db.outcomes import finish
from jobs.db.records import Assignment
from jobs.db.reservations import reserve
from jobs.db.state_machine import change_state
from jobs.db.tables import attempts, members
from jobs.scheduler.dispatcher import decide


def finish_and_take_next(
    connection: Connection, assignment: Assignment, root: str, model_seconds: float
) -> Assignment | None:
    """publishing > done for a group on one node, and the next job for its slots.

    The placement decides as it does for free slots, so priorities, limits and time windows hold. None if it
    gives the slots to a group of another shape or to no job. Raises `LostRace` if the job no longer belongs
    to this attempt.
    """
    lock_placement(connection)
    if (taken := _already_taken(connection, assignment)) is not None:
        return taken
    finish(connection, assignment, root, model_seconds)
    wanted = {assignment.node: len(assignment.slots)}
    placed = next((group for group in decide(connection).placed if group.slots == wanted), None)
    if placed is None:
        return None
    reason = f"next for the warm group on {assignment.node}"
    reserved = reserve(connection, [placed], lambda group: reason, assignment.slots)
    if placed.job not in reserved:
        return None
    claimed = _claim(connection, reserved[placed.job][0], assignment)
    assert claimed is not None, "no other process has seen the attempt yet"
    make_ready(connection, claimed, None)
    change_state(connection, claimed.job, "placing", "rendering", reason, expected_fence=claimed.fence)
    return replace(claimed, begun=True)


def _already_taken(connection: Connection, assignment: Assignment) -> Assignment | None:
    """The attempt that this supervisor has claimed already, if the reply to its first try was lost."""
    mine = (
        select(attempts.c.id)
        .join(members, members.c.attempt == attempts.c.id)
        .where(attempts.c.ended.is_(None), members.c.claimed_by == assignment.supervisor)
        .where(attempts.c.id != assignment.attempt)
    )
    attempt = connection.execute(mine).scalar()
    if attempt is None:
        return None
    claimed = _claim(connection, attempt, assignment)
    return None if claimed is None else replace(claimed, begun=True)


def _claim(connection: Connection, attempt: str, last: Assignment) -> Assignment | None:
    return claim(connection, attempt, last.node, last.supervisor, last.numerics)
