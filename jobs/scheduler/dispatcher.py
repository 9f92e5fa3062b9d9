"""The dispatcher: the agent that holds its lease places queued jobs, whole groups in one transaction."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, exists, select

from infra.database import Database, now
from jobs.db.claims import slots_held
from jobs.db.dependencies import is_free, release
from jobs.db.leases import DISPATCHER, hold_lease
from jobs.db.outcomes import sweep, unreliable_nodes
from jobs.db.queues import DEFAULT_PRIORITY, queue_rules, stop_closed
from jobs.db.rates import Rates, read_rates, slot_seconds_left
from jobs.db.records import QueueRules
from jobs.db.reservations import reserve
from jobs.db.tables import attempts, jobs, nodes, queues
from jobs.scheduler.placement import AGEING_S, Decision, Node, PendingJob, RunningGroup, place

LEASE_S = 5.0
Notification = tuple[str, str, int]
"""(node, attempt, fence)"""
_PER_OWNER, _MAX_CANDIDATES = 64, 500


def most_of_an_owner(free: int) -> int:
    """Queued jobs of one queue, owner and priority that a round considers, with so many free slots."""
    return max(_PER_OWNER, free)


def most_candidates(free: int) -> int:
    """Queued jobs that a round considers, with so many free slots."""
    return max(_MAX_CANDIDATES, 2 * free)


def dispatch(
    database: Database,
    holder: str,
    *,
    sweeping: bool = True,
    moment: float | None = None,
    on_lost: Callable[[str], None] = lambda node: None,
) -> list[Notification]:
    """One round, if `holder` has or gets the dispatcher's lease. Returns the notifications to send.

    Without `sweeping` no attempt is declared lost: right after a database outage all leases look expired.
    `moment` is the time at which the queues' time windows are evaluated, in seconds since the epoch; default
    now. `on_lost` is called with the name of the node of each lost attempt.
    """
    with database.write() as connection:
        if not hold_lease(connection, DISPATCHER, holder, LEASE_S):
            return []
        if sweeping:
            for node in sweep(connection):
                on_lost(node)
        stop_closed(connection, moment)
        release(connection)
        groups = decide(connection, moment).placed
        taken = reserve(connection, groups, lambda group: f"placed on {', '.join(group.slots)}")
        return [(node, *taken[group.job]) for group in groups if group.job in taken for node in group.slots]


@dataclass(frozen=True, kw_only=True)
class Surroundings:
    """What a placement is decided on."""

    up: list[Node]
    """The nodes that take jobs."""
    running: list[RunningGroup]
    pending: list[PendingJob]
    """The most urgent queued jobs, the first one first."""
    rules: list[QueueRules]


def decide(connection: Connection, moment: float | None = None) -> Decision:
    """Which queued jobs start now, and where."""
    farm = read_surroundings(connection, moment)
    return place(farm.up, farm.running, farm.pending, farm.rules) if farm.pending else Decision(placed=())


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
    waiting = _pending_jobs(connection, closed, up, rates, free) if free else []
    if pending is not None:
        waiting = waiting[:free]
    return Surroundings(up=up, running=running, pending=waiting, rules=rules)


def nodes_up(connection: Connection, *, usable: bool = True) -> list[Node]:
    """The nodes that are up; with `usable` without those that are draining or unhealthy."""
    up = select(nodes).where(nodes.c.lease_until > now()).order_by(nodes.c.name)
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
        select(
            attempts.c.id,
            attempts.c.job,
            *(jobs.c[name] for name in ("owner", "queue", "model", "work", "progress")),
        )
        .join(jobs, jobs.c.id == attempts.c.job)
        .where(attempts.c.ended.is_(None))
    )
    slots, found = slots_held(connection), []
    for row in connection.execute(statement):
        left = slot_seconds_left(rates, row.model, row.work, row.progress)
        held = {node: len(own) for node, own in slots.get(row.id, {}).items()}
        found.append(
            RunningGroup(
                job=row.job,
                owner=row.owner,
                queue=row.queue,
                slots=held,
                ends_in=None if left is None else left / max(1, sum(held.values())),
            )
        )
    return found


def _pending_jobs(
    connection: Connection, closed: list[str], up: list[Node], rates: Rates, free: int
) -> list[PendingJob]:
    """The most urgent queued jobs of queues that are open."""
    rows = _most_urgent(connection, closed, free)
    avoid = unreliable_nodes(connection, [row.id for row, _, _ in rows])
    return [
        pending_job(
            row,
            priority=priority,
            waited=waited,
            estimated_seconds=_estimated_seconds(row, rates),
            work=(row.work or 1.0) * (1 - row.progress),
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


def _most_urgent(connection: Connection, closed: list[str], free: int) -> list[tuple[Any, int, float]]:
    """(job, its priority, seconds of waiting), most urgent first.

    Only a few for each queue, owner and priority (but enough for all free slots), so that the fifty thousand
    jobs of one owner do not hide all others, and so that the index alone finds them, however many are queued.
    """
    moment: float = connection.execute(select(now())).scalar_one()
    priorities = dict(connection.execute(select(queues.c.name, queues.c.priority)).all())
    queued = (jobs.c.state == "queued") & jobs.c.queue.not_in(closed)
    sources = select(jobs.c.queue, jobs.c.owner, jobs.c.priority).where(queued).distinct()
    names = ("id", "owner", "queue", "least_ranks", "most_ranks", "memory", "model", "work", "progress")
    columns = [jobs.c[name] for name in (*names, "created")]
    ready = (jobs.c.not_before.is_(None)) | (jobs.c.not_before <= moment)
    ready &= is_free()
    # A group that is still writing its checkpoint ends first.
    stopping = exists().where(attempts.c.job == jobs.c.id, attempts.c.ended.is_(None))
    found: list[tuple[Any, int, float]] = []
    for source in connection.execute(sources).all():
        among = (jobs.c.state == "queued") & (jobs.c.queue == source.queue) & (jobs.c.owner == source.owner)
        same = jobs.c.priority.is_(None) if source.priority is None else jobs.c.priority == source.priority
        first = select(*columns).where(among, same, ready, ~stopping)
        first = first.order_by(jobs.c.created, jobs.c.id).limit(most_of_an_owner(free))
        priority = source.priority
        if priority is None:
            priority = priorities.get(source.queue, DEFAULT_PRIORITY)
        found += [(row, priority, max(0.0, moment - row.created)) for row in connection.execute(first).all()]
    found.sort(key=lambda each: (-each[1] - each[2] / AGEING_S, each[0].id))
    return found[: most_candidates(free)]


def _estimated_seconds(row: Any, rates: Rates) -> float | None:
    """Remaining time on the smallest group, which is the longest."""
    left = slot_seconds_left(rates, row.model, row.work, row.progress)
    return None if left is None else left / int(row.least_ranks)


def _nodes_to_avoid(unreliable: frozenset[str], ranks: int, up: list[Node]) -> frozenset[str]:
    """The unreliable nodes, if the others suffice: an unreliable node is better than none."""
    others = sum(node.slots for node in up if node.name not in unreliable)
    return unreliable if others >= ranks else frozenset()
