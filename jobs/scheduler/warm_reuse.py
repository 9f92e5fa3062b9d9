"""From one job to the next on a warm group: the slots never become free in between."""

from __future__ import annotations

from dataclasses import replace

from sqlalchemy import Connection, select

from jobs.db.attempts import Assignment, claim, finish, make_ready, reserve
from jobs.db.leases import lock_placement
from jobs.db.state_machine import change
from jobs.db.tables import attempts, members
from jobs.scheduler.dispatcher import decide


def finish_and_take_next(
    connection: Connection, part: Assignment, root: str, model_seconds: float
) -> Assignment | None:
    """Publishing > done for a group of one node, and the job that the placement gives to its slots now.

    The placement decides as for free slots, so a job with a better claim elsewhere, a limit or a window
    counts as always; None when it gives them to a group of another shape or to nobody.
    Raises `LostRace` when the job is no longer this attempt's.
    """
    lock_placement(connection)
    if (taken := _taken(connection, part)) is not None:
        return taken
    finish(connection, part, root, model_seconds)
    wanted = {part.node: len(part.slots)}
    placed = next((group for group in decide(connection).placed if group.slots == wanted), None)
    if placed is None:
        return None
    reason = f"next for the warm group on {part.node}"
    reserved = reserve(connection, [placed], lambda group: reason, part.slots)
    if placed.job not in reserved:
        return None
    given = claim(connection, reserved[placed.job][0], part.node, part.supervisor)
    assert given is not None, "nobody else knows of the attempt yet"
    make_ready(connection, given, None)
    change(connection, given.job, "placing", "rendering", reason, under=given.fence)
    return replace(given, begun=True)


def _taken(connection: Connection, part: Assignment) -> Assignment | None:
    """What this supervisor has taken already, where the answer to its first try was lost on the way."""
    mine = (
        select(attempts.c.id)
        .join(members, members.c.attempt == attempts.c.id)
        .where(attempts.c.ended.is_(None), members.c.claimed_by == part.supervisor)
        .where(attempts.c.id != part.attempt)
    )
    attempt = connection.execute(mine).scalar()
    if attempt is None:
        return None
    given = claim(connection, attempt, part.node, part.supervisor)
    return None if given is None else replace(given, begun=True)
