"""The dispatcher: the agent that holds its lease places queued jobs, whole groups in one transaction."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, exists, func, select

from infra.database import Database, now
from jobs.db.claims import slots_held
from jobs.db.dependencies import is_free, release
from jobs.db.leases import CLOCK_SLACK_S, DISPATCHER, hold_lease, lock_placement, node_is_up
from jobs.db.outcomes import LONGEST_BACKOFF_S, sweep, unreliable_nodes
from jobs.db.queues import DEFAULT_PRIORITY, queue_rules, stop_closed
from jobs.db.rates import Rates, read_rates, slot_seconds_left
from jobs.db.records import QueueRules
from jobs.db.reservations import reserve
from jobs.db.state_machine import change_states
from jobs.db.tables import attempts, jobs, nodes, queues
from jobs.scheduler.pending_jobs import PendingJob
from jobs.scheduler.placement import AGEING_S, Decision, Node, RunningGroup, place
from jobs.scheduler.regrouping import REGROUP_GAIN_S, jobs_to_regroup

LEASE_S = 5.0
Notification = tuple[str, str, int]
"""(node, attempt, fence)"""
_COLUMNS = ("id", "owner", "queue", "least_ranks", "most_ranks", "memory", "model", "work", "progress")
"""What placement needs to know of a job."""
_PER_OWNER, _MAX_CANDIDATES = 64, 500
_LONGEST = 8
_COUNTED = 1_000
"""Queued jobs whose slot seconds are added up. If there are more, some long jobs start before they must."""


def most_of_an_owner(free: int) -> int:
    """Queued jobs of one queue, owner and priority that a round considers, with so many free slots."""
    return max(_PER_OWNER, free)


def most_candidates(free: int) -> int:
    """Queued jobs that a round considers, with so many free slots."""
    return max(_MAX_CANDIDATES, 2 * free)


def most_of_the_longest(free: int) -> int:
    """Queued jobs of one queue, owner and priority that a round considers for their length alone."""
    return free + _LONGEST


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
    `moment` is the time at which the queues' time windows are evaluated, in seconds since the epoch; default
    now. `on_lost` is called with the name of the node of each lost attempt. A running job that would end
    `regroup_gain_s` sooner on more slots may begin anew.
    """
    with database.write() as connection:
        if not hold_lease(connection, DISPATCHER, holder, LEASE_S):
            return []
        if is_steady(connection.execute(select(now())).scalar_one()):
            for node in sweep(connection):
                on_lost(node)
        stop_closed(connection, moment)
        release(connection)
        farm = read_surroundings(connection, moment)
        decision = farm.place()
        groups = decision.placed
        taken = reserve(connection, groups, lambda group: f"placed on {', '.join(group.slots)}")
        if not groups and decision.reserved_for is None:
            _regroup(connection, farm, regroup_gain_s)
        return [(node, *taken[group.job]) for group in groups if group.job in taken for node in group.slots]


def _regroup(connection: Connection, farm: Surroundings, gain_s: float) -> None:
    """Let jobs begin anew on slots that no job waits for."""
    reasons = {
        each.job: f"goes on with {each.ranks} ranks in place of {each.now}, since slots are free"
        for each in jobs_to_regroup(farm.up, farm.running, gain_s)
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
    connection: Connection, moment: float | None = None, pending: int | None = None
) -> Surroundings:
    """The nodes, the groups, and as many queued jobs as the free slots may need, or `pending` more."""
    rules = queue_rules(connection, moment)
    rates = read_rates(connection)
    up, running = nodes_up(connection), running_groups(connection, rates)
    held = sum(group.slots.get(node.name, 0) for group in running for node in up)
    free = max(0, sum(node.slots for node in up) - held) + (pending or 0)
    groups = Counter(group.queue for group in running)
    closed = [queue.name for queue in rules if not queue.accepts(groups[queue.name])]
    most = most_candidates(free) if pending is None else free
    waiting = _pending_jobs(connection, closed, up, rates, free, most) if free else []
    queued_s = _queued_seconds(connection, closed, rates) if waiting else 0.0
    return Surroundings(up=up, running=running, pending=waiting, rules=rules, queued_s=queued_s)


def nodes_up(connection: Connection, *, usable: bool = True) -> list[Node]:
    """The nodes that are up; with `usable` without those that are draining or unhealthy."""
    up = select(nodes).where(node_is_up()).order_by(nodes.c.name)
    if usable:
        up = up.where(nodes.c.draining.is_(False))
    return [
        Node(
            name=row.name,
            slots=row.slots,
            device=row.device,
            numerics=row.numerics or "",
            vram_bytes=None if row.vram_bytes is None else int(row.vram_bytes),
        )
        for row in connection.execute(up)
        if not (usable and row.problems)
    ]


def running_groups(connection: Connection, rates: Rates) -> list[RunningGroup]:
    """The groups that hold slots now. Of images that share a slot, all but the first hold none."""
    statement = (
        select(attempts.c.id.label("attempt"), *(jobs.c[name] for name in (*_COLUMNS, "state")))
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
                anew=_estimated_job(row, rates) if row.state == "rendering" else None,
            )
        )
    return found


def _pending_jobs(
    connection: Connection, closed: list[str], up: list[Node], rates: Rates, free: int, most: int
) -> list[PendingJob]:
    """The `most` most urgent queued jobs of queues that are open, and the longest ones."""
    rows = _considered(connection, closed, free, most)
    avoid = unreliable_nodes(connection, [row.id for row, _, _ in rows])
    return [
        _estimated_job(
            row,
            rates,
            priority=priority,
            waited=waited,
            avoid=_nodes_to_avoid(avoid.get(row.id, frozenset()), row.least_ranks, up),
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
        **more,
    )


def _considered(
    connection: Connection, closed: list[str], free: int, most: int
) -> list[tuple[Any, int, float]]:
    """(job, its priority, seconds of waiting): the `most` most urgent first, then the longest.

    Only a few for each queue, owner and priority (but enough for all free slots), so that the fifty thousand
    jobs of one owner do not hide all others, and so that indexes alone find them, however many are queued.
    The longest are those that may start before their turn (`long_jobs_first`).
    """
    moment: float = connection.execute(select(now())).scalar_one()
    priorities = dict(connection.execute(select(queues.c.name, queues.c.priority)).all())
    queued = (jobs.c.state == "queued") & jobs.c.queue.not_in(closed)
    sources = select(jobs.c.queue, jobs.c.owner, jobs.c.priority).where(queued).distinct()
    columns = [jobs.c[name] for name in (*_COLUMNS, "created")]
    ready = (jobs.c.not_before.is_(None)) | (jobs.c.not_before <= moment) | _waits_too_long(moment)
    ready &= is_free()
    # A group that is still writing its checkpoint ends first.
    stopping = exists().where(attempts.c.job == jobs.c.id, attempts.c.ended.is_(None))
    oldest: list[tuple[Any, int, float]] = []
    longest: list[tuple[Any, int, float]] = []
    for source in connection.execute(sources).all():
        among = (jobs.c.state == "queued") & (jobs.c.queue == source.queue) & (jobs.c.owner == source.owner)
        same = jobs.c.priority.is_(None) if source.priority is None else jobs.c.priority == source.priority
        own = select(*columns).where(among, same, ready, ~stopping)
        first = own.order_by(jobs.c.created, jobs.c.id).limit(most_of_an_owner(free))
        long = own.where(jobs.c.work.is_not(None)).order_by(jobs.c.work.desc())
        long = long.limit(most_of_the_longest(free))
        priority = source.priority
        if priority is None:
            priority = priorities.get(source.queue, DEFAULT_PRIORITY)
        for found, statement in ((oldest, first), (longest, long)):
            rows = connection.execute(statement).all()
            found += [(row, priority, max(0.0, moment - row.created)) for row in rows]
    oldest.sort(key=lambda each: (-each[1] - each[2] / AGEING_S, each[0].id))
    oldest = oldest[:most]
    known = {row.id for row, _, _ in oldest}
    return [*oldest, *(each for each in longest if each[0].id not in known)]


def _queued_seconds(connection: Connection, closed: list[str], rates: Rates) -> float:
    """Slot seconds of the queued jobs of open queues whose rate is known."""
    columns = select(jobs.c.model, (jobs.c.work * (1 - jobs.c.progress)).label("work"))
    counted = columns.where(jobs.c.state == "queued", jobs.c.queue.not_in(closed)).limit(_COUNTED).subquery()
    by_model = select(counted.c.model, func.sum(counted.c.work)).group_by(counted.c.model)
    return sum(rates.get(model, 0.0) * (work or 0.0) for model, work in connection.execute(by_model))


def _waits_too_long(moment: float) -> ColumnElement[bool]:
    """Condition on `jobs`: a job waits for its next try longer than any does, since the database's clock was
    set back."""
    tried = (jobs.c.attempts > 0) | (jobs.c.losses > 0)
    late: ColumnElement[bool] = jobs.c.not_before > moment + LONGEST_BACKOFF_S + CLOCK_SLACK_S
    return tried & late


def _estimated_job(row: Any, rates: Rates, **more: Any) -> PendingJob:
    """What is left of a job, with its time on the smallest group, which is the longest."""
    left = slot_seconds_left(rates, row.model, row.work, row.progress)
    seconds = None if left is None else left / int(row.least_ranks)
    return pending_job(row, estimated_seconds=seconds, work=(row.work or 1.0) * (1 - row.progress), **more)


def _nodes_to_avoid(unreliable: frozenset[str], ranks: int, up: list[Node]) -> frozenset[str]:
    """The unreliable nodes, if the others suffice: an unreliable node is better than none."""
    others = sum(node.slots for node in up if node.name not in unreliable)
    return unreliable if others >= ranks else frozenset()
