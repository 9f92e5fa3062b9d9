"""Jobs join those that a slot renders already: images of one model share its calls.

A job joins in its turn. The placement decides as if the slot's room for more images were free slots of its
node: what it gives to a job that cannot join stays empty, so that the slot comes free for that job. Slots
that are really free are filled first, by the dispatcher. Each job has its own attempt, fence and lease.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Protocol

from sqlalchemy import Connection, exists, select

from jobs.db.claims import claim
from jobs.db.leases import lock_placement
from jobs.db.records import Assignment, PlacedGroup
from jobs.db.reservations import reserve
from jobs.db.tables import attempts, jobs, members
from jobs.scheduler.dispatcher import Surroundings, read_surroundings
from jobs.scheduler.placement import RunningGroup
from jobs.scheduler.warm_reuse import begin_at_once

_LOOKED_AT = 4
"""Queued jobs that are looked at for each one that has room."""


class Alike(Protocol):
    """Which of some jobs can share model calls with those that the slot renders."""

    def __call__(
        self, connection: Connection, ids: Collection[str], *, started: bool = False
    ) -> frozenset[str]:
        """Of queued jobs; of jobs that are rendered, where `started`."""
        ...


def anything_queued(connection: Connection, model: str) -> bool:
    """Whether a look for jobs of a model is worth the lock that `join_slot` takes."""
    queued = select(jobs.c.id).where(jobs.c.state == "queued", jobs.c.model == model).limit(1)
    return connection.execute(queued).first() is not None


def join_slot(
    connection: Connection, beside: Sequence[Assignment], supervisors: Sequence[str], alike: Alike
) -> list[Assignment]:
    """Reserve, claim and begin queued jobs on the slot that renders `beside`: at most one for each name of a
    supervisor. None while its node is draining, and when its slot is no longer its own."""
    lock_placement(connection)
    first = beside[0]
    if taken := _already_taken(connection, first, supervisors):
        return taken
    active = exists().where(attempts.c.id.in_([each.attempt for each in beside]), attempts.c.ended.is_(None))
    surroundings = read_surroundings(connection, pending=_LOOKED_AT * len(supervisors))
    usable = any(node.name == first.node for node in surroundings.up)
    if not usable or not connection.execute(select(active)).scalar():
        return []
    chosen = _jobs_to_join(connection, surroundings, beside, len(supervisors), alike)
    reason = f"joins the images on slot {first.slots[0]} of {first.node}"
    groups = [PlacedGroup(job=job, slots={first.node: 1}) for job in chosen]
    reserved = reserve(connection, groups, lambda group: reason, [first.slots])
    begun = zip((reserved[job][0] for job in chosen if job in reserved), supervisors, strict=False)
    return [begin_at_once(connection, attempt, first, name, reason) for attempt, name in begun]


def _already_taken(connection: Connection, first: Assignment, supervisors: Sequence[str]) -> list[Assignment]:
    """What these supervisors have claimed already, if the reply to the first try was lost."""
    mine = (
        select(members.c.attempt, members.c.claimed_by)
        .join(attempts, attempts.c.id == members.c.attempt)
        .where(attempts.c.ended.is_(None), members.c.claimed_by.in_(supervisors))
    )
    rows = connection.execute(mine).all()
    claims = [claim(connection, row.attempt, first.node, row.claimed_by, first.numerics) for row in rows]
    return [replace(each, begun=True) for each in claims if each is not None]


def _jobs_to_join(
    connection: Connection, farm: Surroundings, beside: Sequence[Assignment], most: int, alike: Alike
) -> list[str]:
    """The jobs whose turn it is, most urgent first."""
    node, pending = beside[0].node, {job.job: job for job in farm.pending}
    running = list(farm.running)
    for group in farm.place().placed:
        job = pending.pop(group.job)
        running.append(RunningGroup(job=job.job, owner=job.owner, queue=job.queue, slots=group.slots))
    able = alike(connection, [job.job for job in pending.values() if job.least == 1])
    share = _share_of_slot(connection, running, len(able), alike)
    room = max(0, min(most, share - len(beside)))
    waiting = [replace(job, most=1) if job.job in able else job for job in pending.values()]
    nodes = [replace(each, slots=each.slots + room) if each.name == node else each for each in farm.up]
    placed = replace(farm, up=nodes, running=running, pending=waiting).place().placed
    return [group.job for group in placed if group.job in able and node in group.slots][:room]


def _share_of_slot(
    connection: Connection, running: Sequence[RunningGroup], waiting: int, alike: Alike
) -> int:
    """Images for each of the slots that render such images, with those that wait: a slot that takes more
    would still render them when the others have nothing to do."""
    images = alike(connection, [group.job for group in running if group.ranks <= 1], started=True)
    active = attempts.c.ended.is_(None) & attempts.c.job.in_(images)
    rows = connection.execute(select(members.c.node, members.c.slots).join(attempts).where(active))
    slots = {(row.node, *row.slots) for row in rows}
    return math.ceil((len(images) + waiting) / max(1, len(slots)))
