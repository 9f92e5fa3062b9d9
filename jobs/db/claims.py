"""Claims: a supervisor takes its node's share of an attempt, and the group meets."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, Connection, exists, func, select, update

from infra.database import built_once, now
from jobs.db.folders import folder_name
from jobs.db.records import Assignment
from jobs.db.tables import attempts, jobs, members, nodes

LEASE_S = 6.0
"""A member is lost when it has not renewed its lease for so long: six heartbeats."""
LAUNCHING = "launching"
"""In place of a supervisor's name: the node's agent has claimed the part and is starting its supervisor."""
NO_FAILURE = ("stopped", "the job is")
"""Prefixes of the reasons of attempts that ended because of a command or a time window."""


def unclaimed(connection: Connection, node: str) -> dict[str, tuple[int, ...]]:
    """The active attempts that wait for a supervisor on this node, oldest first, each with its slots.

    An attempt that is `LAUNCHING` is among them: its supervisor may have died before it took over.
    """
    statement = (
        select(members.c.attempt, members.c.slots)
        .join(attempts, attempts.c.id == members.c.attempt)
        .where(members.c.node == node, without_supervisor(), attempts.c.ended.is_(None), is_there())
        .order_by(attempts.c.created)
    )
    return {row.attempt: tuple(row.slots) for row in connection.execute(statement)}


def without_supervisor() -> ColumnElement[bool]:
    """Condition on `members`: no supervisor has claimed the part."""
    return members.c.claimed_by.is_(None) | (members.c.claimed_by == LAUNCHING)


def slots_to_launch(
    connection: Connection, attempt: str, fence: int, node: str
) -> tuple[tuple[int, ...] | None, str]:
    """What a message to launch an attempt on this node asks for: the slots, or None and why there is nothing
    to launch."""
    wanted = (
        select(members.c.slots, members.c.claimed_by, attempts.c.fence, attempts.c.ended)
        .join(attempts, attempts.c.id == members.c.attempt)
        .where(_member(attempt, node))
    )
    row = connection.execute(wanted).one_or_none()
    if row is None or row.fence != fence:
        return None, "this node has no part in such an attempt"
    if row.ended is not None:
        return None, "the attempt is over"
    if row.claimed_by not in (None, LAUNCHING):
        return None, "a supervisor has claimed the part already"
    return tuple(row.slots), ""


def claim_to_launch(connection: Connection, attempt: str, node: str) -> bool:
    """Claim a node's share of an attempt for the supervisor that the node's agent starts next.

    Until that one takes over with `claim`, the part is the agent's: no warm group takes it, and it has no
    lease of its own but is lost with its node. False if a supervisor has it or the attempt has ended.
    """
    share = update(members).where(_member(attempt, node), without_supervisor(), is_active(attempt))
    return bool(connection.execute(share.values(claimed_by=LAUNCHING)).rowcount == 1)


def claim(
    connection: Connection, attempt: str, node: str, supervisor: str, numerics: str | None = None
) -> Assignment | None:
    """Claim a node's share of an attempt. None if another supervisor has it or the attempt has ended.

    `numerics` is the identity of the node's numerics. That of the first node decides the image's folder.
    """
    claimed = connection.execute(*_claim(attempt=attempt, node=node, supervisor=supervisor))
    if claimed.rowcount != 1:
        return None
    row = connection.execute(*_share(attempt=attempt, node=node)).one()
    folder = row.digest if numerics is None else folder_name(row.digest, numerics)
    if row.place == 0 and numerics is not None:
        record_folder(connection, attempt, folder)
    return Assignment(
        attempt=attempt,
        node=node,
        supervisor=supervisor,
        job=row.job,
        digest=row.digest,
        fence=row.fence,
        spec=row.spec,
        place=row.place,
        slots=tuple(row.slots),
        nodes=row.nodes,
        address=row.address,
        secret=row.secret,
        folder=folder,
        numerics=numerics,
        follows=row.follows,
        added=is_added(row),
        failures=row.attempts + row.losses,
    )


@built_once
def _claim(attempt: Any, node: Any, supervisor: Any) -> Any:
    # A claim of our own is accepted: the reply to the first try may have been lost.
    unclaimed_or_ours = without_supervisor() | (members.c.claimed_by == supervisor)
    share = update(members).where(_member(attempt, node), unclaimed_or_ours, is_active(attempt))
    return share.values(claimed_by=supervisor, lease_until=now() + LEASE_S)


@built_once
def _share(attempt: Any, node: Any) -> Any:
    count = select(func.count()).where(members.c.attempt == attempt).scalar_subquery().label("nodes")
    own = (attempts.c.job, attempts.c.fence, attempts.c.secret, attempts.c.follows)
    names = (members, jobs.c.digest, jobs.c.spec, jobs.c.attempts, jobs.c.losses, *own)
    return (
        select(*names, nodes.c.address, count)
        .join(attempts, attempts.c.id == members.c.attempt)
        .join(jobs, jobs.c.id == attempts.c.job)
        .join(nodes, nodes.c.name == members.c.node)
        .where(_member(attempt, node))
    )


def record_folder(connection: Connection, attempt: str, folder: str) -> None:
    """Record the image's folder in the farm's store."""
    connection.execute(*_recorded_folder(attempt=attempt, folder=folder))


@built_once
def _recorded_folder(attempt: Any, folder: Any) -> Any:
    return update(attempts).where(attempts.c.id == attempt).values(folder=folder)


def attempt_folder(connection: Connection, assignment: Assignment) -> str:
    """The image's folder as the first node of the group has recorded it."""
    recorded = select(attempts.c.folder).where(attempts.c.id == assignment.attempt)
    return str(connection.execute(recorded).scalar_one() or assignment.digest)


def next_offer(connection: Connection, last: Assignment) -> tuple[str | None, bool]:
    """What is placed on the slots of an attempt that has ended: (attempt, whether the slots are still free).

    The attempt is None unless it has exactly these slots, one node and no supervisor.
    """
    holding = (
        select(members.c.attempt, members.c.slots, members.c.claimed_by)
        .join(attempts, attempts.c.id == members.c.attempt)
        .where(members.c.node == last.node, attempts.c.ended.is_(None), is_there())
    )
    for row in connection.execute(holding):
        if not set(row.slots) & set(last.slots):
            continue
        nodes_of_group = select(func.count()).where(members.c.attempt == row.attempt)
        fits = tuple(row.slots) == last.slots and connection.execute(nodes_of_group).scalar_one() == 1
        return (row.attempt if fits and row.claimed_by is None else None), False
    return None, True


def make_ready(connection: Connection, assignment: Assignment, rendezvous: str | None) -> None:
    """Record that this node's supervisor is ready. The first node passes the rendezvous endpoint as well."""
    connection.execute(*_ready(attempt=assignment.attempt, node=assignment.node))
    if rendezvous is not None:
        connection.execute(*_endpoint(attempt=assignment.attempt, endpoint=rendezvous))


@built_once
def _ready(attempt: Any, node: Any) -> Any:
    return update(members).where(_member(attempt, node)).values(ready=True)


@built_once
def _endpoint(attempt: Any, endpoint: Any) -> Any:
    return update(attempts).where(attempts.c.id == attempt).values(rendezvous=endpoint)


def rendezvous_endpoint(connection: Connection, assignment: Assignment) -> str | None:
    """The rendezvous endpoint (`host:port`), or None until every member is ready; a part that was added waits
    for nobody but the first node."""
    missing = select(members.c.node).where(
        members.c.attempt == assignment.attempt, members.c.ready.is_(False)
    )
    if not assignment.added and connection.execute(missing).first() is not None:
        return None
    endpoint: str | None = connection.execute(
        select(attempts.c.rendezvous).where(attempts.c.id == assignment.attempt)
    ).scalar_one()
    return endpoint


def attempt_ages(connection: Connection, assignment: Assignment) -> tuple[float, float | None]:
    """Seconds since the attempt was placed, and since the previous one ended if that was a failure."""
    job, fence = assignment.job, assignment.fence
    own = (attempts.c.job == job) & (attempts.c.fence == fence)
    placed: float = connection.execute(select(now() - attempts.c.created).where(own)).scalar_one()
    before = (attempts.c.job == job) & (attempts.c.fence == fence - 1)
    last = connection.execute(
        select((now() - attempts.c.ended).label("ago"), attempts.c.reason).where(before)
    )
    row = last.one_or_none()
    failed = row is not None and row.ago is not None and not row.reason.startswith(NO_FAILURE)
    return placed, row.ago if row is not None and failed else None


def release(connection: Connection, assignment: Assignment) -> None:
    """End this member's lease: its ranks are gone, so its slots can be placed again at once."""
    connection.execute(update(members).where(is_held(assignment)).values(lease_until=0.0))


def slots_held(connection: Connection) -> dict[str, dict[str, tuple[int, ...]]]:
    """The slots that each active attempt holds, by attempt and node, oldest first.

    Images that one slot renders at once hold it together: it counts for the oldest of them.
    """
    holding = (
        select(members.c.attempt, members.c.node, members.c.slots)
        .join(attempts, attempts.c.id == members.c.attempt)
        .where(attempts.c.ended.is_(None), is_there())
        .order_by(attempts.c.created, attempts.c.id)
    )
    counted = set[tuple[str, int]]()
    found: dict[str, dict[str, tuple[int, ...]]] = {}
    for row in connection.execute(holding):
        own = tuple(slot for slot in row.slots if (row.node, slot) not in counted)
        counted.update((row.node, slot) for slot in own)
        found.setdefault(row.attempt, {})[row.node] = own
    return found


def is_held(assignment: Assignment) -> ColumnElement[bool]:
    """Condition on `members`: the row of this assignment, still claimed by its supervisor, of a node that is
    part of the group."""
    own = members.c.claimed_by == assignment.supervisor
    return _member(assignment.attempt, assignment.node) & own & is_there()


def is_there() -> ColumnElement[bool]:
    """Condition on `members`: the group has not gone on without this node."""
    there: ColumnElement[bool] = members.c.left_at.is_(None)
    return there


def is_added(part: Any) -> bool:
    """Whether a part was added to a group that renders: it had no slots before (`jobs.db.growing`)."""
    return bool(part.slots_before) and not part.slots_before[0][1]


def is_active(attempt: Any) -> ColumnElement[bool]:
    """Condition: the attempt has not ended."""
    return exists().where(attempts.c.id == attempt, attempts.c.ended.is_(None))


def _member(attempt: Any, node: Any) -> ColumnElement[bool]:
    same: ColumnElement[bool] = (members.c.attempt == attempt) & (members.c.node == node)
    return same
