"""The dispatcher: whoever holds its lease places waiting jobs, whole groups in one transaction."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

from sqlalchemy import Connection, exists, select

from infra.database import Database, now
from jobs.db.attempts import bad_nodes, reserve, sweep
from jobs.db.leases import DISPATCHER, hold_lease
from jobs.db.queues import DEFAULT_PRIORITY, queue_rules, stop_closed
from jobs.db.rates import Rates, read_rates, slot_seconds_left
from jobs.db.tables import attempts, jobs, members, nodes, queues
from jobs.scheduler.placement import AGEING_S, Decision, Node, PendingJob, RunningGroup, place

LEASE_S = 5.0
Bell = tuple[str, str, int]
"""(node, attempt, fence)"""
_OF_EACH = 64
_LOOKED_AT = 500
"""Waiting jobs that are looked at in one round; there are never that many slots to give at once."""


def dispatch(
    database: Database,
    holder: str,
    *,
    sweeping: bool = True,
    moment: float | None = None,
    on_lost: Callable[[str], None] = lambda node: None,
) -> list[Bell]:
    """One round, if `holder` has or gets the dispatcher's lease; the bells to ring once it is committed.

    Without `sweeping` nobody is given up: right after the database was away, all leases look old.
    `moment` is when the queues' time windows are looked at, in seconds since the epoch; now unless told.
    `on_lost` hears of each attempt that was lost, by its node's name.
    """
    with database.write() as connection:
        if not hold_lease(connection, DISPATCHER, holder, LEASE_S):
            return []
        if sweeping:
            for node in sweep(connection):
                on_lost(node)
        stop_closed(connection, moment)
        groups = decide(connection, moment).placed
        taken = reserve(connection, groups, lambda group: f"placed on {', '.join(group.slots)}")
        return [(node, *taken[group.job]) for group in groups if group.job in taken for node in group.slots]


def decide(connection: Connection, moment: float | None = None) -> Decision:
    """Which waiting jobs start now, and where."""
    rules = queue_rules(connection, moment)
    rates = read_rates(connection)
    up, running = nodes_up(connection), running_groups(connection, rates)
    held = sum(group.slots.get(node.name, 0) for group in running for node in up)
    if sum(node.slots for node in up) <= held:
        return Decision(placed=())
    groups = Counter(group.queue for group in running)
    closed = [queue.name for queue in rules if not queue.takes(groups[queue.name])]
    return place(up, running, _wants(connection, closed, up, rates), rules)


def nodes_up(connection: Connection) -> list[Node]:
    up = select(nodes).where(nodes.c.lease_until > now(), nodes.c.draining.is_(False)).order_by(nodes.c.name)
    return [
        Node(
            name=row.name,
            slots=row.slots,
            device=row.device,
            vram_bytes=None if row.vram_bytes is None else int(row.vram_bytes),
        )
        for row in connection.execute(up)
    ]


def running_groups(connection: Connection, rates: Rates) -> list[RunningGroup]:
    statement = (
        select(
            attempts.c.id,
            attempts.c.job,
            *(jobs.c[name] for name in ("owner", "queue", "model", "work", "progress")),
            members.c.node,
            members.c.slots,
        )
        .join(members, members.c.attempt == attempts.c.id)
        .join(jobs, jobs.c.id == attempts.c.job)
        .where(attempts.c.ended.is_(None))
    )
    rows = list(connection.execute(statement))
    slots: dict[str, dict[str, int]] = defaultdict(dict)
    for row in rows:
        slots[row.id][row.node] = len(row.slots)
    found = {}
    for row in rows:
        left = slot_seconds_left(rates, row.model, row.work, row.progress)
        held = slots[row.id]
        found[row.id] = RunningGroup(
            job=row.job,
            owner=row.owner,
            queue=row.queue,
            slots=held,
            ends_in=None if left is None else left / sum(held.values()),
        )
    return list(found.values())


def _wants(connection: Connection, closed: list[str], up: list[Node], rates: Rates) -> list[PendingJob]:
    """The waiting jobs that come first, those of closed queues left out."""
    rows = _first_in_line(connection, closed)
    avoid = bad_nodes(connection, [row.id for row, _, _ in rows])
    return [
        pending_job(
            row,
            priority=priority,
            waited=waited,
            lasts=_lasts(row, rates),
            avoid=_avoidable(avoid.get(row.id, frozenset()), row.least_ranks, up),
        )
        for row, priority, waited in rows
    ]


def pending_job(row: Any, **more: Any) -> PendingJob:
    """A job's row as the placement sees it, with what the row does not tell."""
    return PendingJob(
        job=row.id,
        owner=row.owner,
        queue=row.queue,
        least=row.least_ranks,
        most=row.most_ranks,
        memory=tuple((ranks, bytes_) for ranks, bytes_ in row.memory or ()),
        **more,
    )


def _first_in_line(connection: Connection, closed: list[str]) -> list[tuple[Any, int, float]]:
    """(job, its priority, seconds that it has waited), the most urgent first.

    A few of each line, so that one owner's fifty thousand do not hide everybody else's, and so that the
    index alone leads to them, however many wait.
    """
    moment: float = connection.execute(select(now())).scalar_one()
    own = dict(connection.execute(select(queues.c.name, queues.c.priority)).all())
    queued = (jobs.c.state == "queued") & jobs.c.queue.not_in(closed)
    lines = select(jobs.c.queue, jobs.c.owner, jobs.c.priority).where(queued).distinct()
    names = ("id", "owner", "queue", "least_ranks", "most_ranks", "memory", "model", "work", "progress")
    columns = [jobs.c[name] for name in (*names, "created")]
    ready = (jobs.c.not_before.is_(None)) | (jobs.c.not_before <= moment)
    # A group that keeps a checkpoint of it just now comes to its end first.
    stopping = exists().where(attempts.c.job == jobs.c.id, attempts.c.ended.is_(None))
    found: list[tuple[Any, int, float]] = []
    for line in connection.execute(lines).all():
        among = (jobs.c.state == "queued") & (jobs.c.queue == line.queue) & (jobs.c.owner == line.owner)
        same = jobs.c.priority.is_(None) if line.priority is None else jobs.c.priority == line.priority
        first = select(*columns).where(among, same, ready, ~stopping)
        first = first.order_by(jobs.c.created, jobs.c.id).limit(_OF_EACH)
        priority = line.priority
        if priority is None:
            priority = own.get(line.queue, DEFAULT_PRIORITY)
        found += [(row, priority, max(0.0, moment - row.created)) for row in connection.execute(first).all()]
    found.sort(key=lambda each: (-each[1] - each[2] / AGEING_S, each[0].id))
    return found[:_LOOKED_AT]


def _lasts(row: Any, rates: Rates) -> float | None:
    """On as few ranks as it takes, which is the longest."""
    left = slot_seconds_left(rates, row.model, row.work, row.progress)
    return None if left is None else left / int(row.least_ranks)


def _avoidable(bad: frozenset[str], ranks: int, up: list[Node]) -> frozenset[str]:
    """The bad nodes, if the job could do without them: a bad node is better than none."""
    rest = sum(node.slots for node in up if node.name not in bad)
    return bad if rest >= ranks else frozenset()
