"""Attempts: a group's try at a job, from the reservation of its slots to its end.

Whoever speaks for an attempt does so under its fence and while it has not ended; everybody else is told so
and changes nothing. An attempt ends once: the first end counts.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import ColumnElement, Connection, exists, func, insert, select, update

from infra.database import built_once, now
from jobs.db.rates import learn
from jobs.db.state_machine import HOLDING, change, change_all
from jobs.db.tables import attempts, jobs, members, nodes
from jobs.scheduler.placement import PlacedGroup

MOST_ATTEMPTS = 4
"""After so many the job is failed, with the last reason, so that a poison job never blocks its queue."""
MOST_LOSSES = 12
"""After so many attempts that were lost with their node, the job is taken to be what kills them."""
LEASE_S = 6.0
"""A member that has not been heard of for so long is lost; six beats."""
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
    connection: Connection,
    groups: Sequence[PlacedGroup],
    reason: Callable[[PlacedGroup], str],
    slots: tuple[int, ...] | None = None,
) -> dict[str, tuple[str, int]]:
    """Take the slots of whole groups for their queued jobs: (attempt, fence) by job, without the jobs that
    are gone. Statements are for all groups at once, since each is a way to the database and back.

    `slots` are the numbers to take, for one group on one node; without them any free ones.
    """
    if slots is None:
        parts = _deal(groups, _free_slots(connection, {node for group in groups for node in group.slots}))
    else:
        parts = {group.job: [list(slots)] for group in groups}
    reasons = {group.job: reason(group) for group in groups if group.job in parts}
    fences = change_all(connection, reasons, "queued", "placing", fence=jobs.c.fence + 1)
    if not fences:
        return {}
    made = {job: (uuid.uuid4().hex[:16], fence) for job, fence in fences.items()}
    rows = [{"id": attempt, "job": job, "fence": fence} for job, (attempt, fence) in made.items()]
    connection.execute(insert(attempts).values(created=now()), rows)
    held = [
        {"attempt": made[group.job][0], "node": node, "place": place, "slots": parts[group.job][place]}
        for group in groups
        if group.job in made
        for place, node in enumerate(group.slots)
    ]
    connection.execute(insert(members), held)
    return made


def _deal(groups: Sequence[PlacedGroup], free: dict[str, list[int]]) -> dict[str, list[list[int]]]:
    """Numbers of slots for each node of each group, by job; a group that lacks one is left out whole."""
    dealt: dict[str, list[list[int]]] = {}
    for group in groups:
        if all(len(free.get(node, ())) >= count for node, count in group.slots.items()):
            dealt[group.job] = [[free[node].pop(0) for _ in range(n)] for node, n in group.slots.items()]
    return dealt


def _free_slots(connection: Connection, names: set[str]) -> dict[str, list[int]]:
    """The numbers of the slots of some nodes that no living attempt holds, by node."""
    holding = (
        select(members.c.node, members.c.slots)
        .join(attempts, attempts.c.id == members.c.attempt)
        .where(members.c.node.in_(names), attempts.c.ended.is_(None))
    )
    taken: dict[str, set[int]] = {name: set() for name in names}
    for row in connection.execute(holding):
        taken[row.node].update(row.slots)
    have = connection.execute(select(nodes.c.name, nodes.c.slots).where(nodes.c.name.in_(names)))
    return {row.name: [n for n in range(row.slots) if n not in taken[row.name]] for row in have}


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
    taken = connection.execute(*_taken(attempt=attempt, node=node, supervisor=supervisor))
    if taken.rowcount != 1:
        return None
    row = connection.execute(*_part(attempt=attempt, node=node)).one()
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
    )


@built_once
def _taken(attempt: Any, node: Any, supervisor: Any) -> Any:
    # Ours: the answer to a first try may have been lost on the way.
    unclaimed_or_ours = members.c.claimed_by.is_(None) | (members.c.claimed_by == supervisor)
    open_part = update(members).where(_member(attempt, node), unclaimed_or_ours, _living(attempt))
    return open_part.values(claimed_by=supervisor, lease_until=now() + LEASE_S)


@built_once
def _part(attempt: Any, node: Any) -> Any:
    count = select(func.count()).where(members.c.attempt == attempt).scalar_subquery().label("nodes")
    names = (members, jobs.c.digest, jobs.c.spec, attempts.c.job, attempts.c.fence, nodes.c.address, count)
    return (
        select(*names)
        .join(attempts, attempts.c.id == members.c.attempt)
        .join(jobs, jobs.c.id == attempts.c.job)
        .join(nodes, nodes.c.name == members.c.node)
        .where(_member(attempt, node))
    )


def next_offer(connection: Connection, last: Assignment) -> tuple[str | None, bool]:
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


def release(connection: Connection, part: Assignment) -> None:
    """Say that this node's ranks are gone, so that its slots can be given away at once."""
    connection.execute(update(members).where(_held(part)).values(lease_until=0.0))


def make_ready(connection: Connection, part: Assignment, rendezvous: str | None) -> None:
    """Say that this node's supervisor stands by; the first node also says where the ranks shall meet."""
    connection.execute(*_ready(attempt=part.attempt, node=part.node))
    if rendezvous is not None:
        connection.execute(*_meeting(attempt=part.attempt, point=rendezvous))


@built_once
def _ready(attempt: Any, node: Any) -> Any:
    return update(members).where(_member(attempt, node)).values(ready=True)


@built_once
def _meeting(attempt: Any, point: Any) -> Any:
    return update(attempts).where(attempts.c.id == attempt).values(rendezvous=point)


def rendezvous_endpoint(connection: Connection, part: Assignment) -> str | None:
    """Where the ranks meet, once every member is ready; None until then."""
    late = select(members.c.node).where(members.c.attempt == part.attempt, members.c.ready.is_(False))
    if connection.execute(late).first() is not None:
        return None
    point: str | None = connection.execute(
        select(attempts.c.rendezvous).where(attempts.c.id == part.attempt)
    ).scalar_one()
    return point


def attempt_ages(connection: Connection, part: Assignment) -> tuple[float, float | None]:
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
    found = connection.execute(*_whole(attempt=part.attempt)).all()
    if found and found[0].state == "rendering":
        change(connection, part.job, "rendering", "publishing", "all steps done", under=part.fence)
    change(
        connection,
        part.job,
        "publishing",
        "done",
        f"rendered by {part.nodes} node{'' if part.nodes == 1 else 's'}",
        under=part.fence,
        root=root,
        progress=1.0,
        model_seconds=found[0].model_seconds + model_seconds if found else model_seconds,
    )
    # What an earlier attempt has done already did not cost this one anything.
    if part.fence == 1 and found[0].work:
        slot_seconds = found[0].age * sum(len(member.slots) for member in found)
        learn(connection, found[0].model, found[0].device, found[0].work, slot_seconds)
    _end(connection, part.attempt, "done", None)


@built_once
def _whole(attempt: Any) -> Any:
    """An attempt's job, locked, with each of its members: what there is to know at its end."""
    age = (now() - attempts.c.created).label("age")
    names = ("state", "model", "work", "model_seconds")
    return (
        select(*(jobs.c[name] for name in names), age, members.c.slots, nodes.c.device)
        .join(attempts, attempts.c.job == jobs.c.id)
        .join(members, members.c.attempt == attempts.c.id)
        .join(nodes, nodes.c.name == members.c.node)
        .where(attempts.c.id == attempt)
        .order_by(members.c.place)
        .with_for_update(of=jobs)
    )


def fail(
    connection: Connection,
    attempt: str,
    reason: str,
    node: str | None,
    tally: Tally | None = "attempts",
    *,
    late: bool = False,
) -> None:
    """End an attempt without an image, and put its job back into the queue, or fail it after too many.

    `tally` says what it counts as: an attempt that failed by the job's own fault, or one that was lost with
    its node or by an outage, of which it takes many more; None for a stop that was asked for. `late` says
    that the group has never met. Harmless when the attempt has ended, or the job has been cancelled.
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
    pause = _BACKOFF_S * 2**doublings if late or tally in ("attempts", "outages") else 0.0
    later = now() + pause
    change(connection, row.id, row.state, "queued", reason, under=row.own, not_before=later, **tallies)


def sweep(connection: Connection) -> list[str]:
    """End the attempts that nobody answers for any more; the nodes that did not, one for each attempt."""
    for row in list(connection.execute(_left_over())):
        _end(connection, row.id, f"{_WENT_ANOTHER_WAY} {row.state}", None)
    silent = (
        select(attempts.c.id, members.c.node, members.c.claimed_by, _gone().label("gone"))
        .join(members, members.c.attempt == attempts.c.id)
        .join(nodes, nodes.c.name == members.c.node)
        .where(attempts.c.ended.is_(None), _gone() | _overdue())
        .order_by(attempts.c.job, _gone().desc(), members.c.place)
    )
    lost = list(connection.execute(silent))
    for row in lost:
        what = "was never started" if row.claimed_by is None else "has not been heard of"
        fail(connection, row.id, f"node {row.node} {what}", row.node, "losses", late=not row.gone)
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


def _member(attempt: Any, node: Any) -> ColumnElement[bool]:
    same: ColumnElement[bool] = (members.c.attempt == attempt) & (members.c.node == node)
    return same


def _held(part: Assignment) -> ColumnElement[bool]:
    return _member(part.attempt, part.node) & (members.c.claimed_by == part.supervisor)


def _living(attempt: Any) -> ColumnElement[bool]:
    return exists().where(attempts.c.id == attempt, attempts.c.ended.is_(None))


def _gone() -> ColumnElement[bool]:
    """A claimed member whose lease is over, or an unclaimed one whose node's is."""
    claimed = members.c.claimed_by.is_not(None)
    return (claimed & (members.c.lease_until < now())) | (~claimed & (nodes.c.lease_until < now()))


def _overdue() -> ColumnElement[bool]:
    """A member of a group that takes too long to meet."""
    return members.c.ready.is_(False) & (attempts.c.created + START_S < now())


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
    ended = connection.execute(*_ended(attempt=attempt, reason=reason, node=node))
    return bool(ended.rowcount == 1)


@built_once
def _ended(attempt: Any, reason: Any, node: Any) -> Any:
    living = update(attempts).where(attempts.c.id == attempt, attempts.c.ended.is_(None))
    return living.values(ended=now(), reason=reason, failed_node=node)
