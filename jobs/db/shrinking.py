"""A group of several nodes goes on without one that it has lost: the record of its attempt shrinks.

The group itself notices that a node is gone (`render.launch.epoch_server`), and the supervisor of its first
node records it. From then on the node's slots are free, and its supervisor, should it come back, has no part
in the attempt any more: its heartbeat is refused, it ends its ranks, and it can neither end the attempt nor
publish.

The first node may be the one that is lost. Then the supervisor of the next one takes its place, in one
transaction that also puts the lost one out (`take_over`). A node that is draining leaves by itself
(`depart`); to the others it is lost.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from sqlalchemy import Connection, select, update

from infra.database import now
from jobs.db.claims import is_held, is_there
from jobs.db.leases import takes_no_jobs
from jobs.db.records import Assignment
from jobs.db.tables import attempts, jobs, members, nodes
from jobs.errors import LostRace


@dataclass(frozen=True, kw_only=True)
class FirstNode:
    """The first node of a group from now on."""

    place: int
    endpoint: str
    """host:port"""
    places: tuple[int, ...]
    """Those of the nodes that are left."""
    problem: str | None = None
    """Why the group cannot go on, see `leave`."""


def leave(connection: Connection, assignment: Assignment, places: Collection[int]) -> str | None:
    """Record that the group goes on without the nodes of these places; for the supervisor of the first node.

    Returns why it cannot go on: the ranks that are left have too little memory for the image. Does nothing if
    the attempt has ended or is no longer this supervisor's.
    """
    if _lock(connection, assignment) is None:
        return None
    _put_out(connection, assignment, places)
    return _problem(connection, assignment)


def take_over(
    connection: Connection, assignment: Assignment, lost: FirstNode, endpoint: str, *, patient: bool
) -> FirstNode | None:
    """The group has lost its first node: the next one takes its place.

    For the supervisor of another node, which would listen at `endpoint`. Two halves of a group that do not
    reach each other both call for the other's end; here one of them is the first, and the other finds itself
    out. None while it is another node's turn, for which one waits as long as it is `patient`. Raises
    `LostRace` if the attempt has ended, or this node is out itself.
    """
    if _lock(connection, assignment) not in ("rendering", "publishing"):
        raise LostRace(f"attempt {assignment.attempt} is over, or its group has gone on without this node")
    own = attempts.c.id == assignment.attempt
    found: str = connection.execute(select(attempts.c.rendezvous).where(own)).scalar_one()
    there = _places(connection, assignment)
    if found != lost.endpoint:
        # Another one has taken over; or this one, and the answer was lost.
        return FirstNode(place=there[0], endpoint=found, places=there)
    if patient and assignment.place != min(place for place in there if place != lost.place):
        return None
    _put_out(connection, assignment, [place for place in there if place < assignment.place])
    connection.execute(update(attempts).where(own).values(rendezvous=endpoint))
    places, problem = _places(connection, assignment), _problem(connection, assignment)
    return FirstNode(place=assignment.place, endpoint=endpoint, places=places, problem=problem)


def depart(connection: Connection, assignment: Assignment) -> bool:
    """Leave a group that can go on without this node, if the node is draining. Returns whether it has."""
    draining = select(nodes.c.name).where(nodes.c.name == assignment.node, takes_no_jobs())
    if connection.execute(draining).first() is None or _lock(connection, assignment) != "rendering":
        return False
    if len(_places(connection, assignment)) == 1:
        return False
    if _problem(connection, assignment, without=assignment.place) is not None:
        return False
    _put_out(connection, assignment, [assignment.place])
    return True


def _lock(connection: Connection, assignment: Assignment) -> str | None:
    """The state of the job, which stays so until the transaction ends; None if the attempt is no longer this
    supervisor's.

    The job is locked before its members, as everywhere; so no two nodes put each other out.
    """
    locked = select(jobs.c.state, jobs.c.fence).where(jobs.c.id == assignment.job).with_for_update()
    row = connection.execute(locked).one()
    ours = select(members.c.place).join(attempts, attempts.c.id == members.c.attempt)
    held = connection.execute(ours.where(is_held(assignment), attempts.c.ended.is_(None))).first()
    return None if held is None or row.fence != assignment.fence else str(row.state)


def _places(connection: Connection, assignment: Assignment) -> tuple[int, ...]:
    there = select(members.c.place).where(members.c.attempt == assignment.attempt, is_there())
    return tuple(connection.execute(there.order_by(members.c.place)).scalars())


def _put_out(connection: Connection, assignment: Assignment, places: Collection[int]) -> None:
    gone = (members.c.attempt == assignment.attempt) & members.c.place.in_(places) & is_there()
    connection.execute(update(members).where(gone).values(left_at=now()))


def _problem(connection: Connection, assignment: Assignment, without: int | None = None) -> str | None:
    """Why the nodes that are left, or those but one, cannot render the image."""
    rest = (
        select(members.c.place, members.c.slots, nodes.c.vram_bytes)
        .join(nodes, nodes.c.name == members.c.node)
        .where(members.c.attempt == assignment.attempt, is_there())
    )
    rows = [row for row in connection.execute(rest) if row.place != without]
    memory = connection.execute(select(jobs.c.memory).where(jobs.c.id == assignment.job)).scalar_one()
    known = [row.vram_bytes for row in rows if row.vram_bytes is not None]
    ranks = sum(len(row.slots) for row in rows)
    if has_room(ranks, min(known, default=None), memory or ()):
        return None
    left = "1 rank that is left has" if ranks == 1 else f"{ranks} ranks that are left have"
    return f"a node is lost, and the image needs more memory than the {left}"


def has_room(ranks: int, vram_bytes: float | None, memory: Sequence[tuple[int, int]]) -> bool:
    """Whether so many ranks can render a job. `memory` are (ranks, bytes): bytes for each of so many ranks or
    more, ascending; `vram_bytes` are those of the smallest slot, None if unknown."""
    if vram_bytes is None or not memory:
        return True
    enough = [bytes_ for least, bytes_ in memory if least <= ranks]
    # Fewer ranks than the job may be placed on: not more than in proportion, since the model is part of it.
    needed = enough[-1] if enough else memory[0][1] * memory[0][0] / ranks
    return needed <= vram_bytes


def has_left(connection: Connection, assignment: Assignment) -> bool:
    """Whether the group has gone on without this node."""
    own = (members.c.attempt == assignment.attempt) & (members.c.node == assignment.node)
    return connection.execute(select(members.c.node).where(own, ~is_there())).first() is not None
