"""Uptimes of nodes: the time of which receipts account for every slot.

The present uptime of a node is in its row: from `up_since` until its lease ends. It becomes a row of
`uptimes` when the node signs off, or when its name is registered again after its lease has ended.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, func, select, update

from infra.database import insert_unless_there, now
from jobs.db.leases import node_is_up
from jobs.db.tables import nodes, uptimes


@dataclass(frozen=True, kw_only=True)
class Uptime:
    """A time during which the slots of a node were available; seconds since the epoch."""

    node: str
    slots: int
    began: float
    ended: float


def up_since(connection: Connection, name: str) -> Any:
    """When the uptime begins of a node that is registered now: a lease that has not ended goes on.

    One that has ended is recorded. Locks the node's row.
    """
    row = _present(connection, name)
    if row is None or row.up_since is None:
        return now()
    if row.up:
        return row.up_since
    _record(connection, row, row.lease_until)
    return now()


def end_uptime(connection: Connection, name: str) -> None:
    """Record the present uptime of a node that signs off."""
    row = _present(connection, name)
    if row is None or row.up_since is None:
        return
    _record(connection, row, now() if row.up else row.lease_until)
    connection.execute(update(nodes).where(nodes.c.name == name).values(up_since=None))


def uptimes_between(connection: Connection, since: float, until: float, unknown: float) -> Iterator[Uptime]:
    """The uptimes within a period, cut to it. A node of version 0.2 that is up counts from `unknown`."""
    past = select(uptimes).where(uptimes.c.ended > since, uptimes.c.began < until)
    present = select(
        nodes.c.name.label("node"),
        nodes.c.slots,
        func.coalesce(nodes.c.up_since, unknown).label("began"),
        nodes.c.lease_until.label("ended"),
    ).where(nodes.c.lease_until > since)
    for row in [*connection.execute(past), *connection.execute(present)]:
        began, ended = max(since, row.began), min(until, row.ended)
        if ended > began:
            yield Uptime(node=row.node, slots=row.slots, began=began, ended=ended)


def _present(connection: Connection, name: str) -> Any:
    columns = (nodes.c.name, nodes.c.slots, nodes.c.up_since, nodes.c.lease_until)
    return connection.execute(
        select(*columns, node_is_up().label("up")).where(nodes.c.name == name).with_for_update()
    ).one_or_none()


def _record(connection: Connection, row: Any, ended: Any) -> None:
    values = {"node": row.name, "began": row.up_since, "ended": ended, "slots": row.slots}
    connection.execute(insert_unless_there(connection, uptimes).values(**values))
