"""The dispatcher: whoever holds its lease places waiting jobs, whole groups in one transaction."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from sqlalchemy import Connection, func, insert, select, update

from infra.database import Database, now
from jobs.errors import LostRace
from jobs.place.placement import Node, Running, Want, place
from jobs.state.attempts import bad_nodes, reserve, sweep
from jobs.state.queues import DEFAULT_PRIORITY, queue_rules
from jobs.state.tables import attempts, jobs, leases, members, nodes, queues

LEASE_S = 5.0
Bell = tuple[str, str, int]
"""(node, attempt, fence)"""
_LOOKED_AT = 500
"""Waiting jobs that are looked at in one round; there are never that many slots to give at once."""


def dispatch(database: Database, holder: str) -> list[Bell]:
    """One round, if `holder` has or gets the dispatcher's lease; the bells to ring once it is committed."""
    with database.write() as connection:
        if not hold_lease(connection, "dispatcher", holder, LEASE_S):
            return []
        sweep(connection)
        rules = queue_rules(connection)
        closed = [queue.name for queue in rules if not queue.open]
        up = _nodes(connection)
        decision = place(up, _running(connection), _wants(connection, closed, up), rules)
        bells: list[Bell] = []
        for group in decision.placed:
            try:
                attempt, fence = reserve(connection, group, f"placed on {', '.join(group.slots)}")
            except LostRace:
                continue
            bells += [(node, attempt, fence) for node in group.slots]
        return bells


def hold_lease(connection: Connection, name: str, holder: str, seconds: float) -> bool:
    """Take a lease that is free or over, or renew one's own; the row is locked until the transaction ends."""
    moment = now()
    free = (leases.c.holder == holder) | (leases.c.until < moment)
    taken = connection.execute(
        update(leases).where(leases.c.name == name, free).values(holder=holder, until=moment + seconds)
    )
    if taken.rowcount == 1:
        return True
    if connection.execute(select(leases.c.name).where(leases.c.name == name)).first() is not None:
        return False
    connection.execute(insert(leases).values(name=name, holder=holder, until=moment + seconds))
    return True


def _nodes(connection: Connection) -> list[Node]:
    up = select(nodes).where(nodes.c.lease_until > now(), nodes.c.draining.is_(False)).order_by(nodes.c.name)
    return [
        Node(
            name=row.name, slots=row.slots, vram_bytes=None if row.vram_bytes is None else int(row.vram_bytes)
        )
        for row in connection.execute(up)
    ]


def _running(connection: Connection) -> Iterable[Running]:
    statement = (
        select(attempts.c.id, attempts.c.job, jobs.c.owner, jobs.c.queue, members.c.node, members.c.slots)
        .join(members, members.c.attempt == attempts.c.id)
        .join(jobs, jobs.c.id == attempts.c.job)
        .where(attempts.c.ended.is_(None))
    )
    groups: dict[str, Running] = {}
    for row in connection.execute(statement):
        group = groups.setdefault(row.id, Running(job=row.job, owner=row.owner, queue=row.queue, slots={}))
        group.slots[row.node] = row.slots
    return groups.values()


def _wants(connection: Connection, closed: list[str], up: list[Node]) -> list[Want]:
    """The waiting jobs that come first, those of closed queues left out."""
    moment = now()
    priority = func.coalesce(jobs.c.priority, queues.c.priority, DEFAULT_PRIORITY)
    statement = (
        select(jobs, priority.label("points"), (moment - jobs.c.created).label("waited"))
        .outerjoin(queues, queues.c.name == jobs.c.queue)
        .where(
            jobs.c.state == "queued",
            jobs.c.queue.not_in(closed),
            (jobs.c.not_before.is_(None)) | (jobs.c.not_before <= moment),
        )
        .order_by(priority.desc(), jobs.c.created, jobs.c.id)
        .limit(_LOOKED_AT)
    )
    rows: list[Any] = list(connection.execute(statement))
    avoid = bad_nodes(connection, [row.id for row in rows])
    return [
        Want(
            job=row.id,
            owner=row.owner,
            queue=row.queue,
            priority=row.points,
            waited=max(0.0, row.waited),
            least=row.least_ranks,
            most=row.most_ranks,
            memory_bytes=None if row.memory_bytes is None else int(row.memory_bytes),
            avoid=_avoidable(avoid.get(row.id, frozenset()), row.least_ranks, up),
        )
        for row in rows
    ]


def _avoidable(bad: frozenset[str], ranks: int, up: list[Node]) -> frozenset[str]:
    """The bad nodes, if the job could do without them: a bad node is better than none."""
    rest = sum(node.slots for node in up if node.name not in bad)
    return bad if rest >= ranks else frozenset()
