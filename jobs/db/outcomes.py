"""Outcomes: how an attempt ends, and what becomes of its job.

An attempt acts under its fence and only until it has ended; the first end counts. Calls that come later or
under another fence change nothing.
"""

from __future__ import annotations

from typing import Any, Literal

from sqlalchemy import ColumnElement, Connection, case, exists, func, select, update

from infra.database import built_once, now
from jobs.db.claims import LAUNCHING, LEASE_S, is_added, is_there, without_supervisor
from jobs.db.growing import part_left, slot_seconds_of
from jobs.db.leases import CLOCK_SLACK_S, is_current, node_is_up, takes_no_jobs
from jobs.db.rates import record_rate
from jobs.db.records import Assignment
from jobs.db.state_machine import HOLDING, change_state
from jobs.db.tables import attempts, jobs, members, nodes
from jobs.errors import LostRace

MAX_ATTEMPTS = 4
"""A job fails after so many failed attempts, with the last reason, so that it never blocks its queue."""
MAX_LOSSES = 12
"""A job fails after so many attempts that were lost with their node: it is probably what kills the nodes."""
START_S = 60.0
"""A group that is not complete after so long is released."""
SHRINK_S = 40.0
"""A group has so long to go on without a node, or the node's supervisor to reach the database again."""
_BACKOFF_S = 2.0
"""Delay before the next attempt; doubles with each attempt."""
_MAX_DOUBLINGS = 5
LONGEST_BACKOFF_S = _BACKOFF_S * 2**_MAX_DOUBLINGS

Tally = Literal["attempts", "losses", "outages", "node", "permanent"]
"""What a failed attempt counts as, see `fail`."""


def publish(connection: Connection, assignment: Assignment) -> None:
    """rendering > publishing, unless the job is publishing already. Raises `LostRace`."""
    job = assignment.job
    state = connection.execute(select(jobs.c.state).where(jobs.c.id == job).with_for_update()).scalar()
    if state != "publishing":
        change_state(
            connection, job, "rendering", "publishing", "all steps done", expected_fence=assignment.fence
        )


def finish(
    connection: Connection,
    assignment: Assignment,
    root: str,
    model_seconds: float,
    slot_seconds: float | None = None,
) -> None:
    """The image is published: > done. Raises `LostRace` if the job no longer belongs to this attempt.

    `slot_seconds` is what it took of its slots' time; None for slots that it had to itself.
    """
    job, fence = assignment.job, assignment.fence
    found = connection.execute(*_attempt_and_job(attempt=assignment.attempt)).all()
    there = sum(member.left_at is None for member in found) or assignment.nodes
    if any(member.node == assignment.node and member.left_at is not None for member in found):
        raise LostRace(f"the group of attempt {assignment.attempt} has gone on without this node")
    if found and found[0].state == "rendering":
        change_state(connection, job, "rendering", "publishing", "all steps done", expected_fence=fence)
    change_state(
        connection,
        job,
        "publishing",
        "done",
        f"rendered by {there} node{'' if there == 1 else 's'}",
        expected_fence=fence,
        root=root,
        folder=found[0].folder if found else None,
        progress=1.0,
        model_seconds=found[0].model_seconds + model_seconds if found else model_seconds,
    )
    # Only an attempt that did all of the work gives a rate.
    if fence == 1 and found[0].work:
        if slot_seconds is None:
            slot_seconds = sum(slot_seconds_of(member, member.until) for member in found)
        # The database's clock may have been set back meanwhile.
        if slot_seconds > 0:
            record_rate(connection, found[0].model, found[0].device, found[0].work, slot_seconds)
    _end(connection, assignment.attempt, "done", None)


@built_once
def _attempt_and_job(attempt: Any) -> Any:
    """One row for each member of an attempt, with its job, which is locked."""
    until = func.coalesce(members.c.left_at, now()).label("until")
    names = ("state", "model", "work", "model_seconds")
    return (
        select(*(jobs.c[name] for name in names), until, attempts.c.folder, nodes.c.device)
        .add_columns(*(members.c[name] for name in ("slots", "slots_before", "node", "left_at")))
        .add_columns(attempts.c.created)
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
    never_met: bool = False,
) -> None:
    """End an attempt without an image; queue its job again, or fail it after too many attempts.

    `tally` is what the attempt counts as: a failure that is the job's own fault ("attempts"), a loss with its
    node or an outage, of which many more are allowed, or None for a stop on request. A "permanent" failure
    would be the same everywhere and fails the job at once; one of the "node" (which lacks the job's model)
    does when no other node is up that has not failed it yet. `never_met` means that the group was never
    complete. Does nothing if the attempt has ended; leaves a cancelled job as it is.
    """
    # The job is locked before the attempt, as everywhere, so that two transactions never wait for each other.
    wanted = select(jobs, attempts.c.fence.label("own")).join(attempts, attempts.c.job == jobs.c.id)
    row = connection.execute(wanted.where(attempts.c.id == attempt).with_for_update(of=jobs)).one()
    if not _end(connection, attempt, reason, node) or row.state not in HOLDING or row.fence != row.own:
        return
    own = tally in ("attempts", "node", "permanent")
    tries, losses = row.attempts + own, row.losses + (tally in ("losses", "outages"))
    counts = {"attempts": tries, "losses": losses}
    # Outages pass, so they never fail a job.
    hopeless = tally == "permanent" or (tally == "node" and not _other_nodes(connection, row, node))
    if hopeless or tries >= MAX_ATTEMPTS or (losses >= MAX_LOSSES and tally == "losses"):
        tried = tries + losses
        text = f"gave up after {tried} attempt{'' if tried == 1 else 's'}: {reason}"
        change_state(connection, row.id, row.state, "failed", text, expected_fence=row.own, **counts)
        return
    # The job of a lost node continues on another one at once; after anything else it waits.
    doublings = min(tries + losses, _MAX_DOUBLINGS)
    delay = _BACKOFF_S * 2**doublings if never_met or tally in ("attempts", "outages", "node") else 0.0
    not_before = now() + delay
    change_state(
        connection,
        row.id,
        row.state,
        "queued",
        reason,
        expected_fence=row.own,
        not_before=not_before,
        **counts,
    )


def _other_nodes(connection: Connection, row: Any, node: str | None) -> bool:
    """Whether a node is up on which a job has not failed since it was submitted or tried again."""
    failed = select(attempts.c.failed_node).where(attempts.c.job == row.id, attempts.c.fence < row.fence)
    recent = connection.execute(failed.order_by(attempts.c.fence.desc()).limit(row.attempts))
    up = select(nodes.c.name).where(node_is_up(), ~takes_no_jobs())
    return bool(set(connection.execute(up).scalars()) - set(recent.scalars()) - {node})


def sweep(connection: Connection) -> list[str]:
    """End the attempts whose lease has expired. Returns the name of the lost node of each."""
    for row in list(connection.execute(_orphaned())):
        _end(connection, row.id, f"the job is {row.state}", None)
    silent = (
        select(attempts.c.id, members.c.node, members.c.claimed_by, _expired().label("expired"))
        .add_columns(members.c.slots_before, now().label("moment"), _follows_others().label("follows"))
        .join(jobs, jobs.c.id == attempts.c.job)
        .join(members, members.c.attempt == attempts.c.id)
        .join(nodes, nodes.c.name == members.c.node)
        .where(attempts.c.ended.is_(None), is_there(), _expired() | _overdue())
        .order_by(attempts.c.job, _expired().desc(), members.c.place)
    )
    lost = []
    for row in list(connection.execute(silent)):
        if row.follows and is_added(row):
            # The group goes on without a part that was added.
            if row.expired or not 0 <= row.moment - row.slots_before[0][0] <= START_S:
                part_left(connection, row.id, row.node)
            continue
        lost.append(row)
    for row in lost:
        never = row.claimed_by in (None, LAUNCHING)
        problem = "never started its ranks" if never else "sends no heartbeat"
        fail(connection, row.id, f"node {row.node} {problem}", row.node, "losses", never_met=not row.expired)
    return list({row.id: row.node for row in reversed(lost)}.values())


def unreliable_nodes(
    connection: Connection, job_ids: list[str], failures: int = 2
) -> dict[str, frozenset[str]]:
    """By job: the nodes on which it failed so often that it should try others."""
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


def _expired() -> ColumnElement[bool]:
    """A member whose supervisor's lease has expired, or one without a supervisor whose node's lease has.

    A group that renders goes on without a node that it has lost (`jobs.db.shrinking`), so one that is not
    the first may be silent for longer: its supervisor has lost the database, or the group's has.
    """
    waits = without_supervisor()
    goes_on = _follows_others() & jobs.c.state.in_(("rendering", "publishing"))
    silent_since = case((goes_on, now() - SHRINK_S), else_=now())
    # One that would run longer was given before the database's clock was set back, see `is_current`.
    lives = members.c.lease_until.between(silent_since, now() + LEASE_S + CLOCK_SLACK_S)
    return (~waits & ~lives) | (waits & ~node_is_up())


def _follows_others() -> ColumnElement[bool]:
    """A member that is not the group's first one."""
    before = members.alias()
    return exists().where(
        before.c.attempt == members.c.attempt, before.c.place < members.c.place, before.c.left_at.is_(None)
    )


def _overdue() -> ColumnElement[bool]:
    """A member of a group that takes too long to become complete."""
    # One that was created later than now was before the database's clock was set back.
    age = now() - attempts.c.created
    return members.c.ready.is_(False) & ~age.between(-CLOCK_SLACK_S, START_S)


def _orphaned() -> Any:
    """Active attempts whose job is no longer theirs (cancelled, paused, under a newer fence) and whose ranks
    are gone too: until then their slots are not free."""
    moved_on = jobs.c.state.not_in(HOLDING) | (jobs.c.fence != attempts.c.fence)
    working = exists().where(members.c.attempt == attempts.c.id, is_current(members.c.lease_until, LEASE_S))
    return (
        select(attempts.c.id, jobs.c.state)
        .join(jobs, jobs.c.id == attempts.c.job)
        .where(attempts.c.ended.is_(None), moved_on, ~working)
    )


def _end(connection: Connection, attempt: str, reason: str, node: str | None) -> bool:
    ended = connection.execute(*_ended(attempt=attempt, reason=reason, node=node))
    return bool(ended.rowcount == 1)


@built_once
def _ended(attempt: Any, reason: Any, node: Any) -> Any:
    active = update(attempts).where(attempts.c.id == attempt, attempts.c.ended.is_(None))
    return active.values(ended=now(), reason=reason, failed_node=node, secret=None)
