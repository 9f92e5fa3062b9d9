"""Follow-ups: work that follows images, kept in the database until it is done.

A message to a worker carries a follow-up's id only. It may be lost (the follow-up is announced again),
doubled or replayed (a follow-up is begun by one worker at a time, and never again once it has ended).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, select, update

from infra.database import insert_unless_there, now
from jobs.db.leases import CLOCK_SLACK_S, is_current
from jobs.db.tables import follow_ups

MAX_TRIES = 8
_ANNOUNCED_S = 60.0
"""A follow-up that was announced and has not ended is announced again after so long."""
_BACKOFF_S, _MAX_BACKOFF_S = 5.0, 240.0
"""Delay before the second try, doubled before each next one; less than Redis waits for an acknowledgement."""
_MOST = 100
LONGEST_LEASE_S = 6 * 3600.0
"""Of a worker on a follow-up."""


@dataclass(frozen=True, kw_only=True)
class FollowUp:
    """One that this worker has begun."""

    id: str
    kind: str
    payload: dict[str, Any]


def add(connection: Connection, id: str, kind: str, payload: dict[str, Any]) -> None:
    """Add a follow-up unless it is there already, ended or not."""
    values = {"id": id, "kind": kind, "payload": payload, "tries": 0, "reason": ""}
    row = insert_unless_there(connection, follow_ups)
    connection.execute(row.values(created=now(), due=now()), [values])


def take_due(connection: Connection, kinds: Collection[str]) -> list[str]:
    """The follow-ups that are to be announced now, oldest first; they are not due again for a while."""
    due = select(follow_ups.c.id).where(_is_due(), follow_ups.c.kind.in_(kinds))
    found = connection.execute(due.order_by(follow_ups.c.due, follow_ups.c.id).limit(_MOST)).scalars().all()
    again = now() + _ANNOUNCED_S
    return [
        id
        for id in found
        if connection.execute(
            update(follow_ups).where(follow_ups.c.id == id, _is_due()).values(due=again)
        ).rowcount
        == 1
    ]


def begin(connection: Connection, id: str, lease_s: float) -> FollowUp | None:
    """Claim a follow-up for this worker. None if it has ended, or another worker is at it."""
    free = follow_ups.c.claimed_until.is_(None) | ~is_current(follow_ups.c.claimed_until, lease_s)
    mine = (follow_ups.c.id == id) & follow_ups.c.ended.is_(None) & free
    if connection.execute(update(follow_ups).where(mine).values(claimed_until=now() + lease_s)).rowcount != 1:
        return None
    row = connection.execute(select(follow_ups).where(follow_ups.c.id == id)).one()
    return FollowUp(id=row.id, kind=row.kind, payload=row.payload)


def extend(connection: Connection, id: str, lease_s: float) -> None:
    """Keep a follow-up for this worker, which is still at it."""
    mine = (follow_ups.c.id == id) & follow_ups.c.ended.is_(None) & follow_ups.c.claimed_until.is_not(None)
    connection.execute(update(follow_ups).where(mine).values(claimed_until=now() + lease_s))


def kind_of(connection: Connection, id: str) -> str | None:
    """The kind of a follow-up; None for an unknown id."""
    kind: str | None = connection.execute(select(follow_ups.c.kind).where(follow_ups.c.id == id)).scalar()
    return kind


def keep_payload(connection: Connection, id: str, payload: dict[str, Any]) -> None:
    """Record how far a follow-up has come, so that its next try goes on from there."""
    connection.execute(update(follow_ups).where(follow_ups.c.id == id).values(payload=payload))


def end(connection: Connection, id: str, reason: str) -> None:
    """It is done, or given up."""
    connection.execute(update(follow_ups).where(follow_ups.c.id == id).values(ended=now(), reason=reason))


def fail(connection: Connection, id: str, reason: str) -> float | None:
    """A try failed: returns the seconds until the next one, or None if that was the last."""
    tries: int = connection.execute(select(follow_ups.c.tries).where(follow_ups.c.id == id)).scalar_one() + 1
    if tries >= MAX_TRIES:
        end(connection, id, f"gave up after {tries} tries: {reason}")
        return None
    delay = min(_MAX_BACKOFF_S, _BACKOFF_S * 2.0 ** (tries - 1))
    failed = update(follow_ups).where(follow_ups.c.id == id)
    values = {"tries": tries, "reason": reason, "claimed_until": None, "due": now() + delay}
    connection.execute(failed.values(**values))
    return delay


def _is_due() -> ColumnElement[bool]:
    claimed = follow_ups.c.claimed_until
    idle = claimed.is_(None) | ~is_current(claimed, LONGEST_LEASE_S)
    # None is due later than after the longest delay, unless the database's clock was set back.
    longest = max(_ANNOUNCED_S, _MAX_BACKOFF_S) + CLOCK_SLACK_S
    waits = (follow_ups.c.due > now()) & (follow_ups.c.due < now() + longest)
    return follow_ups.c.ended.is_(None) & ~waits & idle
