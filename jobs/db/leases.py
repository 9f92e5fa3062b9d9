"""Leases of roles that one agent holds at a time, such as the dispatcher's."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, Connection, func, select, update

from infra.database import insert_unless_there, now
from jobs.db.tables import leases, nodes

DISPATCHER = "dispatcher"
NODE_LEASE_S = 6.0
"""Nothing is placed on a node that has not renewed its lease for so long."""
CLOCK_SLACK_S = 2.0
"""How much longer than a lease one may still run: clocks are set by less than this all the time."""


def is_current(until: ColumnElement[Any], seconds: float) -> ColumnElement[bool]:
    """Condition: a lease of `seconds` at most has not ended.

    One that would run longer was given before the database's clock was set back. Its holder, if there still
    is one, has renewed it a second later; without this, a dead one would hold it for as long as the clock was
    set back by.
    """
    return until.between(now(), now() + seconds + CLOCK_SLACK_S)


def node_is_up() -> ColumnElement[bool]:
    """Condition on `nodes`: its agent holds its lease."""
    return is_current(nodes.c.lease_until, NODE_LEASE_S)


def takes_no_jobs() -> ColumnElement[bool]:
    """Condition on `nodes`: it is draining, because somebody said so, for maintenance or before a restart."""
    condition: ColumnElement[bool] = (
        nodes.c.draining.is_(True)
        | nodes.c.maintained_until.is_not(None)
        | nodes.c.restart_asked.is_not(None)
    )
    return condition


def hold_lease(connection: Connection, name: str, holder: str, seconds: float) -> bool:
    """Take a lease that is free or expired, or renew one's own. Locks the row until the transaction ends."""
    moment = now()
    free = (leases.c.holder == holder) | ~is_current(leases.c.until, seconds)
    taken = connection.execute(
        update(leases).where(leases.c.name == name, free).values(holder=holder, until=moment + seconds)
    )
    if taken.rowcount == 1:
        return True
    fresh = insert_unless_there(connection, leases).values(name=name, holder=holder, until=moment + seconds)
    connection.execute(fresh)
    now_held: str = connection.execute(select(leases.c.holder).where(leases.c.name == name)).scalar_one()
    return now_held == holder


def holder_of(connection: Connection, name: str) -> str | None:
    """Who holds a lease now; None if nobody does."""
    held = select(leases.c.holder).where(leases.c.name == name, leases.c.until > now())
    holder: str | None = connection.execute(held).scalar()
    return holder or None


_INPUTS_LOCK = 0x63686F72
"""Number of the advisory lock; any that nothing else uses."""


def lock_placement(connection: Connection) -> None:
    """Block every dispatcher until this transaction ends.

    A transaction that changes several jobs takes this lock first, as the dispatcher does, so that no two of
    them deadlock on each other's jobs.
    """
    locked = select(leases.c.holder).where(leases.c.name == DISPATCHER).with_for_update()
    if connection.execute(locked).first() is None:
        # No dispatcher has been here yet, and a row that is not there locks nobody.
        free = insert_unless_there(connection, leases).values(name=DISPATCHER, holder="", until=0.0)
        connection.execute(free)
        connection.execute(locked)


def lock_inputs(connection: Connection) -> None:
    """Until this transaction ends, no batch begins to be stored and no input is deleted by others.

    SQLite has one writer at a time anyway.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(select(func.pg_advisory_xact_lock(_INPUTS_LOCK)))
