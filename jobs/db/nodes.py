"""Nodes: machines with an agent, kept alive by a lease."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, insert, select, update

from infra.database import Database, built_once, insert_unless_there, now
from jobs.db.claims import slots_held
from jobs.db.leases import NODE_LEASE_S, node_is_up, takes_no_jobs
from jobs.db.maintenance import Maintenance, entries_by_node
from jobs.db.names import unknown_node
from jobs.db.tables import nodes
from jobs.db.uptimes import end_uptime, up_since
from jobs.tags import read_tags
from render.errors import BadInput
from render.launch.gpus import local_bfloat16


@dataclass(frozen=True, kw_only=True)
class Holder:
    """The agent that holds a node's lease."""

    agent: str | None
    """Its identity; None for one of version 0.2 or older."""
    address: str
    lease_until: float


def register(connection: Connection, name: str, **info: Any) -> None:
    """Insert or update a node: address, slots, device, numerics, vram_bytes, agent, problems. Starts its
    lease, whoever holds it."""
    values = info | {"lease_until": now() + NODE_LEASE_S, "up_since": up_since(connection, name)}
    if connection.execute(update(nodes).where(nodes.c.name == name).values(**values)).rowcount == 0:
        connection.execute(insert(nodes).values(name=name, **values))


def farm_bfloat16(database: Database) -> bool | None:
    """Whether the GPUs of a farm's nodes have bfloat16, as `render.models.number_format` asks; None for nodes
    without GPU. A farm whose nodes have GPUs is taken to; one without nodes is what this machine is."""
    with database.read() as connection:
        devices = set(connection.execute(select(nodes.c.device)).scalars())
    if not devices:
        return local_bfloat16()
    return True if devices - {"cpu"} else None


def take_lease(connection: Connection, name: str, agent: str, **info: Any) -> Holder | None:
    """Register a node, unless another agent of this name holds its lease. Returns that one.

    What was to be restarted has been.
    """
    own = {"up_since": up_since(connection, name), "restart_asked": None}
    values = info | {"agent": agent, "lease_until": now() + NODE_LEASE_S} | own
    free = (nodes.c.agent == agent) | ~node_is_up()
    if connection.execute(update(nodes).where(nodes.c.name == name, free).values(**values)).rowcount == 1:
        return None
    row = {"name": name, "draining": False} | values
    connection.execute(insert_unless_there(connection, nodes).values(**row))
    held = connection.execute(
        select(nodes.c.agent, nodes.c.address, nodes.c.lease_until).where(nodes.c.name == name)
    ).one()
    if held.agent == agent:
        return None
    return Holder(agent=held.agent, address=held.address, lease_until=held.lease_until)


@dataclass(frozen=True, kw_only=True)
class Renewal:
    """What a node learns when it renews its lease."""

    draining: bool
    moment: float
    """The database's clock, in seconds since the epoch."""
    restart: bool = False
    """Whether its agent is asked to begin anew."""


def renew(connection: Connection, name: str, agent: str, problems: list[dict[str, str]]) -> Renewal | None:
    """Renew the lease of the node, and record its problems.

    None if the node's row is gone or another agent holds its lease.
    """
    row = connection.execute(*_renewed(name=name, agent=agent, problems=problems)).one_or_none()
    if row is None:
        return None
    return Renewal(
        draining=bool(row.draining),
        moment=row.lease_until - NODE_LEASE_S,
        restart=row.restart_asked is not None,
    )


@built_once
def _renewed(name: Any, agent: Any, problems: Any) -> Any:
    ours = (nodes.c.agent == agent) | nodes.c.agent.is_(None) | ~node_is_up()
    renewed = update(nodes).where(nodes.c.name == name, ours)
    values = {"lease_until": now() + NODE_LEASE_S, "agent": agent, "problems": problems}
    return renewed.values(**values).returning(nodes.c.draining, nodes.c.lease_until, nodes.c.restart_asked)


def sign_off(connection: Connection, name: str, agent: str) -> None:
    """End the lease of a node that shuts down in order; nothing more is placed on it."""
    if (
        connection.execute(select(nodes.c.name).where(_held_by(name, agent)).with_for_update()).first()
        is None
    ):
        return
    end_uptime(connection, name)
    connection.execute(update(nodes).where(_held_by(name, agent)).values(lease_until=0.0))


def _held_by(name: str, agent: str) -> ColumnElement[bool]:
    return (nodes.c.name == name) & (nodes.c.agent == agent)


def set_draining(connection: Connection, name: str, draining: bool) -> None:
    """Start or stop draining a node; raises `BadInput` for an unknown one. One that is undrained is not
    restarted either."""
    change_row(connection, name, draining=draining, **({} if draining else {"restart_asked": None}))


def ask_restart(connection: Connection, name: str) -> None:
    """Have the agent of a node begin anew once nothing runs there; until then no jobs start. Raises
    `BadInput` for a node that is down."""
    here = connection.execute(select(node_is_up()).where(nodes.c.name == name)).scalar()
    if here is not None and not here:
        raise BadInput("node", name, "is down; start its agent on its machine")
    change_row(connection, name, restart_asked=now())


def change_row(connection: Connection, name: str, **values: Any) -> None:
    """Set columns of a node; raises `BadInput` for an unknown one."""
    if connection.execute(update(nodes).where(nodes.c.name == name).values(**values)).rowcount == 0:
        raise unknown_node(name)


def list_nodes(connection: Connection) -> list[dict[str, Any]]:
    """All nodes by name, each with its slots in use, its `tags` (`own_tags` are those of its agent's
    settings), its `maintenance`, whether its lease is current (`up`), and its `state`: up, draining (by hand,
    until the maintenance ends that lasts, or before a restart), unhealthy (with `problems`) or down."""
    used = Counter[str]()
    for by_node in slots_held(connection).values():
        for name, slots in by_node.items():
            used[name] += len(slots)
    columns = [column for column in nodes.c if column.name not in ("agent", "up_since")]
    conditions = node_is_up().label("up"), takes_no_jobs().label("takes_none"), now().label("moment")
    found = connection.execute(select(*columns, *conditions).order_by(nodes.c.name))
    planned = entries_by_node(connection)
    return [_node(row, used[row.name], planned.get(row.name, [])) for row in found]


def _node(row: Any, used: int, planned: list[Maintenance]) -> dict[str, Any]:
    # What was wrong with a node that is down may be mended by now.
    problems = (row.problems or []) if row.up else []
    state = "down" if not row.up else "unhealthy" if problems else "draining" if row.takes_none else "up"
    own = read_tags(row.own_tags)
    tags = {"tags": sorted(read_tags(row.tags) | own), "own_tags": sorted(own)}
    known = {key: value for key, value in row._mapping.items() if key not in ("takes_none", "moment")} | tags
    known["maintenance"] = [each.shown(row.moment) for each in planned if each.next(row.moment) is not None]
    return known | {"up": bool(row.up), "problems": problems, "state": state, "used": used}
