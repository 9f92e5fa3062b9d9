"""Attempts: a group's try at a job, from the reservation of its slots to its end.

Whoever speaks for an attempt does so under its fence and while it has not ended; everybody else is told so
and changes nothing. An attempt ends once: the first end counts.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import ColumnElement, Connection, exists, func, insert, select, update

from infra.database import now
from jobs.place.placement import Placed
from jobs.state.machine import HOLDING, change
from jobs.state.rates import learn
from jobs.state.tables import attempts, jobs, members, nodes

MOST_ATTEMPTS = 4
"""After so many the job is failed, with the last reason, so that a poison job never blocks its queue."""
MOST_LOSSES = 12
"""After so many attempts that were lost with their node, the job is taken to be what kills them."""
LEASE_S = 10.0
"""A member that has not been heard of for so long is lost."""
START_S = 60.0
"""A group that is not complete after so long is released."""
_BACKOFF_S = 2.0
"""Doubles with each attempt."""
_MOST_DOUBLINGS = 5


Tally = Literal["attempts", "losses", "outages"]
Verdict = Literal["go on", "stop", "leave"]
"""Of a supervisor's beat: stop after the step and keep what is done, or leave at once."""
_WENT_ANOTHER_WAY = "the job is"
_NO_FAILURE = ("stopped", _WENT_ANOTHER_WAY)
"""So begin the reasons of attempts that ended because people or time windows wanted it."""
_INTERRUPTED = ("paused", "queued")
"""States of a job that shall go on later, with an attempt that still lives."""


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """A node's part of an attempt, claimed by one supervisor."""

    attempt: str
    node: str
    supervisor: str
    job: str
    digest: str
    fence: int
    spec: dict[str, Any]
    place: int
    slots: tuple[int, ...]
    nodes: int
    address: str
    """This node's own."""
    begun: bool = False
    """The group is there already; nobody has to be waited for."""


def reserve(
    connection: Connection, placed: Placed, reason: str, slots: tuple[int, ...] | None = None
) -> tuple[str, int]:
    """Take a whole group's slots for a queued job: (attempt, fence). `LostRace` when the job is gone.

    `slots` are the numbers to take, for a group on one node; without them any free ones.
    """
    change(
        connection,
        placed.job,
        "queued",
        "placing",
        reason,
        fence=jobs.c.fence + 1,
    )
    fence: int = connection.execute(select(jobs.c.fence).where(jobs.c.id == placed.job)).scalar_one()
    attempt = uuid.uuid4().hex[:16]
    connection.execute(insert(attempts).values(id=attempt, job=placed.job, fence=fence, created=now()))
    connection.execute(
        insert(members),
        [
            {
                "attempt": attempt,
                "node": node,
                "place": place,
                "slots": _free_slots(connection, node, count) if slots is None else list(slots),
            }
            for place, (node, count) in enumerate(placed.slots.items())
        ],
    )
    return attempt, fence


def _free_slots(connection: Connection, node: str, count: int) -> list[int]:
    """The numbers of `count` slots of a node that no living attempt holds."""
    holding = (
        select(members.c.slots)
        .join(attempts, attempts.c.id == members.c.attempt)
        .where(members.c.node == node, attempts.c.ended.is_(None))
    )
    taken = {number for slots in connection.execute(holding).scalars() for number in slots}
    have: int = connection.execute(select(nodes.c.slots).where(nodes.c.name == node)).scalar_one()
    return [number for number in range(have) if number not in taken][:count]


def unclaimed(connection: Connection, node: str) -> list[str]:
    """The living attempts that wait for a supervisor of this node."""
    statement = (
        select(members.c.attempt)
        .join(attempts, attempts.c.id == members.c.attempt)
        .where(members.c.node == node, members.c.claimed_by.is_(None), attempts.c.ended.is_(None))
        .order_by(attempts.c.created)
    )
    return list(connection.execute(statement).scalars())


def claim(connection: Connection, attempt: str, node: str, supervisor: str) -> Assignment | None:
    """Take a node's part of an attempt; None when another supervisor has it or the attempt has ended."""
    # Ours: the answer to a first try may have been lost on the way.
    unclaimed_or_ours = members.c.claimed_by.is_(None) | (members.c.claimed_by == supervisor)
    taken = connection.execute(
        update(members)
        .where(_member(attempt, node), unclaimed_or_ours, _living(attempt))
        .values(claimed_by=supervisor, lease_until=now() + LEASE_S)
    )
    if taken.rowcount != 1:
        return None
    row = connection.execute(
        select(members, jobs.c.digest, jobs.c.spec, attempts.c.job, attempts.c.fence, nodes.c.address)
        .join(attempts, attempts.c.id == members.c.attempt)
        .join(jobs, jobs.c.id == attempts.c.job)
        .join(nodes, nodes.c.name == members.c.node)
        .where(_member(attempt, node))
    ).one()
    count = select(func.count()).where(members.c.attempt == attempt)
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
        nodes=connection.execute(count).scalar_one(),
        address=row.address,
    )


def offered(connection: Connection, last: Assignment) -> tuple[str | None, bool]:
    """What waits for the very slots of an attempt that is over: (attempt, are the slots still free?)."""
    holding = (
        select(members.c.attempt, members.c.slots, members.c.claimed_by)
        .join(attempts, attempts.c.id == members.c.attempt)
        .where(members.c.node == last.node, attempts.c.ended.is_(None))
    )
    for row in connection.execute(holding):
        if not set(row.slots) & set(last.slots):
            continue
        alone = select(func.count()).where(members.c.attempt == row.attempt)
        fits = tuple(row.slots) == last.slots and connection.execute(alone).scalar_one() == 1
        return (row.attempt if fits and row.claimed_by is None else None), False
    return None, True


def beat(
    connection: Connection,
    part: Assignment,
    progress: float | None = None,
    live: dict[str, Any] | None = None,
) -> Verdict:
    """Renew the member's lease, say what its ranks are at, and hear how the attempt stands."""
    ours = (jobs.c.id == part.job) & (jobs.c.fence == part.fence)
    state = connection.execute(select(jobs.c.state).where(ours)).scalar()
    if state not in (*HOLDING, *_INTERRUPTED):
        return "leave"
    told = {} if live is None else {"live": live}
    held = connection.execute(
        update(members).where(_held(part), _living(part.attempt)).values(lease_until=now() + LEASE_S, **told)
    )
    if held.rowcount != 1:
        return "leave"
    if progress is not None:
        # What is further than ever before was not lost in vain: a long job may lose many nodes on its way.
        further = ours & (jobs.c.progress < progress)
        connection.execute(update(jobs).where(further).values(progress=progress, losses=0))
    return "go on" if state in HOLDING else "stop"


def let_go(connection: Connection, part: Assignment) -> None:
    """Say that this node's ranks are gone, so that its slots can be given away at once."""
    connection.execute(update(members).where(_held(part)).values(lease_until=0.0))


def make_ready(connection: Connection, part: Assignment, rendezvous: str | None) -> None:
    """Say that this node's supervisor stands by; the first node also says where the ranks shall meet."""
    connection.execute(update(members).where(_member(part.attempt, part.node)).values(ready=True))
    if rendezvous is not None:
        connection.execute(
            update(attempts).where(attempts.c.id == part.attempt).values(rendezvous=rendezvous)
        )


def meeting_point(connection: Connection, part: Assignment) -> str | None:
    """Where the ranks meet, once every member is ready; None until then."""
    late = select(members.c.node).where(members.c.attempt == part.attempt, members.c.ready.is_(False))
    if connection.execute(late).first() is not None:
        return None
    point: str | None = connection.execute(
        select(attempts.c.rendezvous).where(attempts.c.id == part.attempt)
    ).scalar_one()
    return point


def ages(connection: Connection, part: Assignment) -> tuple[float, float | None]:
    """Seconds since the attempt was placed, and since the one before it ended, where that was a failure."""
    own = (attempts.c.job == part.job) & (attempts.c.fence == part.fence)
    placed: float = connection.execute(select(now() - attempts.c.created).where(own)).scalar_one()
    before = (attempts.c.job == part.job) & (attempts.c.fence == part.fence - 1)
    last = connection.execute(
        select((now() - attempts.c.ended).label("ago"), attempts.c.reason).where(before)
    )
    row = last.one_or_none()
    failed = row is not None and row.ago is not None and not row.reason.startswith(_NO_FAILURE)
    return placed, row.ago if row is not None and failed else None


def publish(connection: Connection, part: Assignment) -> None:
    """rendering > publishing, unless that has been said already; raises `LostRace`."""
    state = connection.execute(select(jobs.c.state).where(jobs.c.id == part.job).with_for_update()).scalar()
    if state != "publishing":
        change(connection, part.job, "rendering", "publishing", "all steps done", under=part.fence)


def finish(connection: Connection, part: Assignment, root: str, model_seconds: float) -> None:
    """The image is there: > done. Raises `LostRace` when the job is no longer this attempt's."""
    publish(connection, part)
    seconds = jobs.c.model_seconds + model_seconds
    change(
        connection,
        part.job,
        "publishing",
        "done",
        f"rendered by {part.nodes} node{'' if part.nodes == 1 else 's'}",
        under=part.fence,
        root=root,
        progress=1.0,
        model_seconds=seconds,
    )
    learn(connection, part.attempt)
    _end(connection, part.attempt, "done", None)


def fail(
    connection: Connection, attempt: str, reason: str, node: str | None, tally: Tally | None = "attempts"
) -> None:
    """End an attempt without an image, and put its job back into the queue, or fail it after too many.

    `tally` says what it counts as: an attempt that failed by the job's own fault, or one that was lost with
    its node or by an outage, of which it takes many more; None for a stop that was asked for. Harmless when
    the attempt has ended, or the job has been cancelled.
    """
    # The job before the attempt, as everywhere, so that two of us never wait for each other; and locked, so
    # that nobody changes it between this look and our change.
    wanted = select(jobs, attempts.c.fence.label("own")).join(attempts, attempts.c.job == jobs.c.id)
    row = connection.execute(wanted.where(attempts.c.id == attempt).with_for_update(of=jobs)).one()
    if not _end(connection, attempt, reason, node) or row.state not in HOLDING or row.fence != row.own:
        return
    tries, losses = row.attempts + (tally == "attempts"), row.losses + (tally in ("losses", "outages"))
    tallies = {"attempts": tries, "losses": losses}
    # Outages end by themselves, and then everything goes on.
    if tries >= MOST_ATTEMPTS or (losses >= MOST_LOSSES and tally == "losses"):
        text = f"gave up after {tries + losses} attempts: {reason}"
        change(connection, row.id, row.state, "failed", text, under=row.own, **tallies)
        return
    # A lost node's job goes on at once, on another; what else there was may need some time to pass.
    doublings = min(tries + losses, _MOST_DOUBLINGS)
    pause = _BACKOFF_S * 2**doublings if tally in ("attempts", "outages") else 0.0
    later = now() + pause
    change(connection, row.id, row.state, "queued", reason, under=row.own, not_before=later, **tallies)


def sweep(connection: Connection) -> list[str]:
    """End the attempts that nobody answers for any more; the nodes that did not, one for each attempt."""
    for row in list(connection.execute(_left_over())):
        _end(connection, row.id, f"{_WENT_ANOTHER_WAY} {row.state}", None)
    silent = (
        select(attempts.c.id, members.c.node, members.c.claimed_by)
        .join(members, members.c.attempt == attempts.c.id)
        .join(nodes, nodes.c.name == members.c.node)
        .where(attempts.c.ended.is_(None), _silent())
        .order_by(attempts.c.job, members.c.place)
    )
    lost = list(connection.execute(silent))
    for row in lost:
        what = "was never started" if row.claimed_by is None else "has not been heard of"
        fail(connection, row.id, f"node {row.node} {what}", row.node, "losses")
    return list({row.id: row.node for row in reversed(lost)}.values())


def bad_nodes(connection: Connection, job_ids: list[str], failures: int = 2) -> dict[str, frozenset[str]]:
    """Per job, the nodes that it has failed on so often that it should try others."""
    statement = (
        select(attempts.c.job, attempts.c.failed_node)
        .where(attempts.c.job.in_(job_ids), attempts.c.failed_node.is_not(None))
        .group_by(attempts.c.job, attempts.c.failed_node)
        .having(func.count() >= failures)
    )
    found: dict[str, set[str]] = {}
    for job, node in connection.execute(statement):
        found.setdefault(job, set()).add(node)
    return {job: frozenset(names) for job, names in found.items()}


def _member(attempt: str, node: str) -> ColumnElement[bool]:
    return (members.c.attempt == attempt) & (members.c.node == node)


def _held(part: Assignment) -> ColumnElement[bool]:
    return _member(part.attempt, part.node) & (members.c.claimed_by == part.supervisor)


def _living(attempt: str) -> ColumnElement[bool]:
    return exists().where(attempts.c.id == attempt, attempts.c.ended.is_(None))


def _silent() -> ColumnElement[bool]:
    """A claimed member whose lease is over; an unclaimed one whose node's is; a group that took too long."""
    claimed = members.c.claimed_by.is_not(None)
    overdue = members.c.ready.is_(False) & (attempts.c.created + START_S < now())
    lost = claimed & (members.c.lease_until < now())
    return lost | (~claimed & (nodes.c.lease_until < now())) | overdue


def _left_over() -> Any:
    """Living attempts whose job has gone another way (cancelled, paused, under a newer fence), and whose
    ranks are gone too: until then their slots are not free."""
    gone = jobs.c.state.not_in(HOLDING) | (jobs.c.fence != attempts.c.fence)
    working = exists().where(members.c.attempt == attempts.c.id, members.c.lease_until > now())
    return (
        select(attempts.c.id, jobs.c.state)
        .join(jobs, jobs.c.id == attempts.c.job)
        .where(attempts.c.ended.is_(None), gone, ~working)
    )


def _end(connection: Connection, attempt: str, reason: str, node: str | None) -> bool:
    ended = connection.execute(
        update(attempts)
        .where(attempts.c.id == attempt, attempts.c.ended.is_(None))
        .values(ended=now(), reason=reason, failed_node=node)
    )
    return ended.rowcount == 1
