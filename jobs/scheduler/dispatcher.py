"""The dispatcher: the agent that holds its lease places queued jobs, whole groups in one transaction."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import Connection, select

from infra.database import Database, now
from jobs.db.claims import slots_held
from jobs.db.dependencies import release
from jobs.db.growing import elastic_parts
from jobs.db.leases import DISPATCHER, hold_lease, lock_placement, node_is_up, takes_no_jobs
from jobs.db.maintenance import entries_by_node, keep_maintenance, seconds_until
from jobs.db.outcomes import sweep, unreliable_nodes
from jobs.db.queues import queue_rules, stop_closed
from jobs.db.rates import Rates, read_rates, slot_seconds_left
from jobs.db.records import QueueRules
from jobs.db.reservations import reserve
from jobs.db.state_machine import change_states
from jobs.db.tables import attempts, jobs, nodes
from jobs.scheduler.candidates import COLUMNS, Room, considered, most_candidates, queued_seconds
from jobs.scheduler.growing import GROW_SHARE
from jobs.scheduler.pending_jobs import PendingJob
from jobs.scheduler.placement import Decision, Node, RunningGroup, free_counts, place
from jobs.scheduler.regrouping import REGROUP_GAIN_S, jobs_to_regroup
from jobs.scheduler.resizing import Parts, add_nodes, grow, jobs_that_cannot_grow, lent_slots, shrink
from jobs.tags import read_tags

LEASE_S = 5.0
Notification = tuple[str, str, int]
"""(node, attempt, fence)"""


def dispatch(
    database: Database,
    holder: str,
    *,
    is_steady: Callable[[float], bool] = lambda clock: True,
    moment: float | None = None,
    on_lost: Callable[[str], None] = lambda node: None,
    regroup_gain_s: float = REGROUP_GAIN_S,
) -> list[Notification]:
    """One round, if `holder` has or gets the dispatcher's lease. Returns the notifications to send.

    `is_steady` is given the database's clock; where it is False no attempt is declared lost: right after an
    outage of the database, or a change of its clock, all leases look expired.
    `moment` is the time at which the time windows of queues and of maintenance are evaluated, in seconds
    since the epoch; default now. `on_lost` is called with the name of the node of each lost attempt. A
    running job that would end `regroup_gain_s` sooner on more slots may begin anew.
    """
    with database.write() as connection:
        if not hold_lease(connection, DISPATCHER, holder, LEASE_S):
            return []
        if is_steady(connection.execute(select(now())).scalar_one()):
            for node in sweep(connection):
                on_lost(node)
        stop_closed(connection, moment)
        keep_maintenance(connection, moment)
        release(connection)
        parts = elastic_parts(connection)
        farm = read_surroundings(connection, moment, lent=lent_slots(parts), regroups=True)
        decision = farm.place()
        groups = decision.placed
        taken = reserve(connection, groups, lambda group: f"placed on {', '.join(group.slots)}")
        added: list[Notification] = []
        if groups or decision.reserved_for is not None:
            _shrink(connection, parts, farm, decision)
        elif not grow(connection, parts, farm.up, farm.running, regroup_gain_s * GROW_SHARE):
            added = add_nodes(connection, parts, farm.up, farm.running, regroup_gain_s)
            if not added:
                _regroup(connection, farm, parts, regroup_gain_s)
        placed = [(node, *taken[group.job]) for group in groups if group.job in taken for node in group.slots]
        return placed + added


def _shrink(connection: Connection, parts: Parts, farm: Surroundings, decision: Decision) -> None:
    """Have groups give back what they were lent, for jobs that still wait."""
    placed = {group.job: group for group in decision.placed}
    begun = [
        RunningGroup(job=job.job, owner=job.owner, queue=job.queue, slots=placed[job.job].slots)
        for job in farm.pending
        if job.job in placed
    ]
    waiting = [job for job in farm.pending if job.job not in placed]
    shrink(connection, parts, farm.up, [*farm.running, *begun], waiting, farm.rules, farm.queued_s)


def _regroup(connection: Connection, farm: Surroundings, parts: Parts, gain_s: float) -> None:
    """Let jobs begin anew on slots that no job waits for, if they cannot have them as they are."""
    able = jobs_that_cannot_grow(parts, farm.up)
    known = [group if group.job in able else replace(group, anew=None) for group in farm.running]
    reasons = {
        each.job: f"goes on with {each.ranks} ranks in place of {each.now}, since slots are free"
        for each in jobs_to_regroup(farm.up, known, gain_s)
    }
    if reasons:
        lock_placement(connection)
        change_states(connection, reasons, "rendering", "queued")


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What a placement is decided on."""

    up: list[Node]
    """The nodes that take jobs."""
    running: list[RunningGroup]
    pending: list[PendingJob]
    """The most urgent queued jobs, the first one first."""
    rules: list[QueueRules]
    queued_s: float
    """Slot seconds of all queued jobs, as far as they are known."""

    def place(self) -> Decision:
        """Which of the pending jobs start now, and where."""
        return place(self.up, self.running, self.pending, self.rules, self.queued_s)


def decide(connection: Connection, moment: float | None = None) -> Decision:
    """Which queued jobs start now, and where."""
    return read_surroundings(connection, moment).place()


def read_surroundings(
    connection: Connection,
    moment: float | None = None,
    pending: int | None = None,
    *,
    lent: int = 0,
    regroups: bool = False,
) -> Surroundings:
    """The nodes, the groups, and as many queued jobs as the free slots may need, with `lent` ones that may
    come back, or `pending` more. With `regroups` the groups have what is left of their jobs."""
    rules = queue_rules(connection, moment)
    rates = read_rates(connection)
    up, running = nodes_up(connection, moment=moment), running_groups(connection, rates, anew=regroups)
    free_of = {name: max(0, count) for name, count in free_counts(up, running).items()}
    more = lent + (pending or 0)
    free = sum(free_of.values()) + more
    groups = Counter(group.queue for group in running)
    closed = [queue.name for queue in rules if not queue.accepts(groups[queue.name])]
    most = most_candidates(free) if pending is None else free
    room = Room(up, free_of, more)
    waiting = _pending_jobs(connection, closed, room, rates, free, most) if free else []
    queued_s = queued_seconds(connection, closed, rates) if waiting else 0.0
    return Surroundings(up=up, running=running, pending=waiting, rules=rules, queued_s=queued_s)


def nodes_up(connection: Connection, *, usable: bool = True, moment: float | None = None) -> list[Node]:
    """The nodes that are up; with `usable` without those that are draining or unhealthy."""
    up = select(nodes).where(node_is_up()).order_by(nodes.c.name)
    if usable:
        up = up.where(~takes_no_jobs())
    planned = entries_by_node(connection)
    at: float = connection.execute(select(now())).scalar_one() if moment is None else moment
    return [
        Node(
            name=row.name,
            slots=row.slots,
            device=row.device,
            numerics=row.numerics or "",
            vram_bytes=None if row.vram_bytes is None else int(row.vram_bytes),
            tags=read_tags(row.tags) | read_tags(row.own_tags),
            maintenance=seconds_until(planned.get(row.name, ()), at),
        )
        for row in connection.execute(up)
        if not (usable and row.problems)
    ]


def running_groups(connection: Connection, rates: Rates, *, anew: bool = False) -> list[RunningGroup]:
    """The groups that hold slots now; with `anew` those that render have what is left of their jobs. Of
    images that share a slot, all but the first hold none."""
    statement = (
        select(attempts.c.id.label("attempt"), *(jobs.c[name] for name in (*COLUMNS, "state")))
        .join(jobs, jobs.c.id == attempts.c.job)
        .where(attempts.c.ended.is_(None))
    )
    slots, found = slots_held(connection), []
    for row in connection.execute(statement):
        left = slot_seconds_left(rates, row.model, row.work, row.progress)
        held = {node: len(own) for node, own in slots.get(row.attempt, {}).items()}
        found.append(
            RunningGroup(
                job=row.id,
                owner=row.owner,
                queue=row.queue,
                slots=held,
                ends_in=None if left is None else left / max(1, sum(held.values())),
                anew=estimated_job(row, rates) if anew and row.state == "rendering" else None,
            )
        )
    return found


def _pending_jobs(
    connection: Connection, closed: list[str], room: Room, rates: Rates, free: int, most: int
) -> list[PendingJob]:
    """The `most` most urgent queued jobs of queues that are open, and the longest ones."""
    rows = considered(connection, closed, room, free, most)
    avoid = unreliable_nodes(connection, [row.id for row, _, _ in rows])
    return [
        estimated_job(
            row,
            rates,
            priority=priority,
            waited=waited,
            avoid=_nodes_to_avoid(avoid.get(row.id, frozenset()), row, room.up),
        )
        for row, priority, waited in rows
    ]


def pending_job(row: Any, **more: Any) -> PendingJob:
    """A job's row as a `PendingJob`; `more` sets the fields that are not in the row."""
    return PendingJob(
        job=row.id,
        owner=row.owner,
        queue=row.queue,
        least=row.least_ranks,
        most=row.most_ranks,
        memory=tuple((ranks, bytes_) for ranks, bytes_ in row.memory or ()),
        tags=read_tags(row.require_tag),
        **more,
    )


def estimated_job(row: Any, rates: Rates, **more: Any) -> PendingJob:
    """What is left of a job, with its time on the smallest group, which is the longest."""
    left = slot_seconds_left(rates, row.model, row.work, row.progress)
    seconds = None if left is None else left / int(row.least_ranks)
    return pending_job(row, estimated_seconds=seconds, work=(row.work or 1.0) * (1 - row.progress), **more)


def _nodes_to_avoid(unreliable: frozenset[str], job: Any, up: Sequence[Node]) -> frozenset[str]:
    """The unreliable nodes, if the others suffice: an unreliable node is better than none."""
    tags = read_tags(job.require_tag)
    others = sum(node.slots for node in up if node.name not in unreliable and tags <= node.tags)
    return unreliable if others >= job.least_ranks else frozenset()
