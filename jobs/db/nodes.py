"""Nodes: machines with an agent, kept alive by a lease."""

from __future__ import annotations

from collections import Counter
from typing import Any

from sqlalchemy import Connection, insert, select, update

from infra.database import built_once, now
from jobs.db.tables import attempts, members, nodes
from render.errors import BadInput

LEASE_S = 6.0
"""Nothing is placed on a node that has not renewed its lease for so long."""


def register(connection: Connection, name: str, **info: Any) -> None:
    """Insert or update a node: address, slots, device, numerics, vram_bytes. Starts its lease."""
    values = info | {"lease_until": now() + LEASE_S}
    if connection.execute(update(nodes).where(nodes.c.name == name).values(**values)).rowcount == 0:
        connection.execute(insert(nodes).values(name=name, **values))


def renew(connection: Connection, name: str) -> None:
    """Renew the node's lease."""
    connection.execute(*_renewed(name=name))


@built_once
def _renewed(name: Any) -> Any:
    return update(nodes).where(nodes.c.name == name).values(lease_until=now() + LEASE_S)


def sign_off(connection: Connection, name: str) -> None:
    """End the lease of a node that shuts down in order; nothing more is placed on it."""
    connection.execute(update(nodes).where(nodes.c.name == name).values(lease_until=0.0))


def set_draining(connection: Connection, name: str, draining: bool) -> None:
    """Start or stop draining a node; raises `BadInput` for an unknown one."""
    if connection.execute(update(nodes).where(nodes.c.name == name).values(draining=draining)).rowcount == 0:
        raise BadInput("node", name, "is unknown; chorale nodes shows the known ones")


def list_nodes(connection: Connection) -> list[dict[str, Any]]:
    """All nodes by name, each with its slots in use and whether its lease is current."""
    held = (
        select(members.c.node, members.c.slots)
        .join(attempts, attempts.c.id == members.c.attempt)
        .where(attempts.c.ended.is_(None))
    )
    used = Counter[str]()
    for row in connection.execute(held):
        used[row.node] += len(row.slots)
    found = connection.execute(
        select(nodes, (nodes.c.lease_until > now()).label("up")).order_by(nodes.c.name)
    )
    return [dict(row._mapping) | {"up": bool(row.up), "used": used[row.name]} for row in found]
