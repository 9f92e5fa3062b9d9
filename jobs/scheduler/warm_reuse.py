"""Warm reuse: a group whose model is loaded goes from one job to the next without giving up its slots.

The supervisor of the first node of a group of several chooses the next attempt, which then names the one
before it (`follows`). The others claim their parts of what follows theirs. A part of such an attempt that a
new supervisor claims means that the group is not whole any more; then the job is queued again.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

from sqlalchemy import Connection, exists, func, select, update

from jobs.db.claims import claim, is_there, make_ready
from jobs.db.leases import lock_placement
from jobs.db.outcomes import finish
from jobs.db.records import Assignment, PlacedGroup
from jobs.db.reservations import reserve
from jobs.db.state_machine import change_state
from jobs.db.tables import attempts, members, nodes
from jobs.scheduler.dispatcher import decide

Shape = tuple[tuple[str, tuple[int, ...]], ...]
"""(node, slots) of a group, the first node first."""


def finish_and_take_next(
    connection: Connection,
    assignment: Assignment,
    root: str,
    model_seconds: float,
    slot_seconds: float | None = None,
) -> Assignment | None:
    """publishing > done for a group, and the next job for its slots; for the first node of the group.

    The placement decides as it does for free slots, so priorities, limits and time windows hold. None if it
    gives the slots to a group of another shape or to no job, and while other images are rendered on them
    (`jobs.scheduler.joining`). Raises `LostRace` if the job no longer belongs to this attempt.
    """
    lock_placement(connection)
    if (taken := _already_taken(connection, assignment)) is not None:
        return taken
    finish(connection, assignment, root, model_seconds, slot_seconds)
    shared = slot_seconds is not None
    if shared and waiting_for_slots(connection, assignment) != "nothing":
        return None
    shape = shape_of(connection, assignment.attempt)
    if len(shape) > 1 and not _all_may_follow(connection, shape):
        return None
    counts = {node: len(slots) for node, slots in shape}
    placed = next((group for group in decide(connection).placed if group.slots == counts), None)
    if placed is None:
        return None
    reason = f"next for the warm group on {', '.join(counts)}"
    follows = assignment.attempt if len(shape) > 1 else None
    group = PlacedGroup(job=placed.job, slots=counts)
    reserved = reserve(connection, [group], lambda group: reason, [slots for _, slots in shape], follows)
    if placed.job not in reserved:
        return None
    attempt = reserved[placed.job][0]
    if len(shape) == 1:
        return begin_at_once(connection, attempt, assignment, assignment.supervisor, reason)
    return _claim(connection, attempt, assignment)


def begin_at_once(
    connection: Connection, attempt: str, last: Assignment, supervisor: str, reason: str
) -> Assignment:
    """Claim an attempt that was reserved in this transaction for a group that is there: > rendering."""
    claimed = claim(connection, attempt, last.node, supervisor, last.numerics)
    assert claimed is not None, "no other process has seen the attempt yet"
    make_ready(connection, claimed, None)
    change_state(connection, claimed.job, "placing", "rendering", reason, expected_fence=claimed.fence)
    return replace(claimed, begun=True)


Waiting = Literal["nothing", "group", "others"]


def waiting_for_slots(connection: Connection, last: Assignment) -> Waiting:
    """What holds a warm group's slots on this node now: nothing, a group on exactly its slots, or others."""
    held = connection.execute(_holding(last).add_columns(members.c.slots)).all()
    taken = [row.attempt for row in held if set(row.slots) & set(last.slots)]
    if not taken:
        return "nothing"
    shape = shape_of(connection, last.attempt)
    return "group" if all(shape_of(connection, attempt) == shape for attempt in taken) else "others"


def next_for_group(connection: Connection, last: Assignment) -> Assignment | None:
    """The part that this node's supervisor of a warm group goes on with.

    The first node takes what was placed on exactly its group's slots and nobody has claimed; the others take
    what follows their attempt.
    """
    following = select(attempts.c.id).where(attempts.c.follows == last.attempt, attempts.c.ended.is_(None))
    found = connection.execute(following).scalar()
    if found is None and last.place == 0:
        found = _adopt(connection, last)
    return None if found is None else _claim(connection, found, last)


def shape_of(connection: Connection, attempt: str) -> Shape:
    """The nodes and slots of an attempt's group."""
    rows = (
        select(members.c.node, members.c.slots)
        .where(members.c.attempt == attempt, is_there())
        .order_by(members.c.place)
    )
    return tuple((row.node, tuple(row.slots)) for row in connection.execute(rows))


def _adopt(connection: Connection, last: Assignment) -> str | None:
    """The attempt that was placed on the slots of the warm group; from here on it follows the last one."""
    lock_placement(connection)
    shape = shape_of(connection, last.attempt)
    placed = _holding(last).where(members.c.claimed_by.is_(None))
    for attempt in list(connection.execute(placed).scalars()):
        if shape_of(connection, attempt) != shape or not _all_may_follow(connection, shape):
            continue
        claimed = exists().where(members.c.attempt == attempt, members.c.claimed_by.is_not(None))
        free = (
            (attempts.c.id == attempt) & attempts.c.follows.is_(None) & attempts.c.ended.is_(None) & ~claimed
        )
        if connection.execute(update(attempts).where(free).values(follows=last.attempt)).rowcount == 1:
            return str(attempt)
    return None


def _holding(last: Assignment) -> Any:
    """The active attempts on this node, without the last one."""
    return (
        select(members.c.attempt)
        .join(attempts, attempts.c.id == members.c.attempt)
        .where(members.c.node == last.node, is_there())
        .where(attempts.c.ended.is_(None), attempts.c.id != last.attempt)
    )


def _all_may_follow(connection: Connection, shape: Shape) -> bool:
    """Agents of version 0.2 and older do not keep such groups."""
    names = [node for node, _ in shape]
    able = select(func.count()).where(nodes.c.name.in_(names), nodes.c.agent.is_not(None))
    return bool(connection.execute(able).scalar_one() == len(names))


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
    return None if claimed is None else replace(claimed, begun=claimed.nodes == 1)


def _claim(connection: Connection, attempt: str, last: Assignment) -> Assignment | None:
    return claim(connection, attempt, last.node, last.supervisor, last.numerics)
