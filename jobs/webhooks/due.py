"""Which webhooks have something to be told, so that what belongs together is one message."""

from __future__ import annotations

from typing import Any

from sqlalchemy import ColumnElement, Connection, and_, exists, func, select, update

from infra.database import now
from jobs.db.follow_ups import add
from jobs.db.leases import CLOCK_SLACK_S
from jobs.db.queues import queue_rules
from jobs.db.state_machine import ENDED
from jobs.db.tables import batches, entries, jobs, webhooks
from jobs.farm import Farm

WEBHOOK, MAIL = "webhook", "mail"
"""Kinds of the follow-ups that tell one: by HTTP, and by mail, which not every process can send."""
_LONGEST_S = 86_400.0
"""Jobs that have ended are told of after a day, even while others of their queue go on."""
_ACTIVE = ("queued", "placing", "rendering", "publishing")
"""Not paused: somebody has to resume such a job first."""


def note_due(farm: Farm, moment: float | None = None) -> list[str]:
    """Add a follow-up for each webhook that has something to send; returns their ids.

    - per job: as soon as jobs have ended, those of one round together;
    - per batch: when a batch has ended;
    - per queue: when nothing of its jobs is left that may run, or the time windows of those have closed.

    `moment` is the time at which time windows are evaluated, in seconds since the epoch; default now. Raises
    `ServiceError` if the database is unreachable.
    """
    with farm.database.read() as connection:
        if connection.execute(select(webhooks.c.id).limit(1)).first() is None:
            return []
    with farm.database.write() as connection:
        until: float = connection.execute(select(now())).scalar_one()
        _follow_clock(connection, until)
        rows = list(connection.execute(select(webhooks).order_by(webhooks.c.id).with_for_update()))
        found = {row.id: _due(connection, row, until, moment) for row in rows}
        return [
            _note(connection, row, until, found[row.id] or []) for row in rows if found[row.id] is not None
        ]


def _follow_clock(connection: Connection, until: float) -> None:
    """Where the database's clock was set back, tell of what ends from now on: some twice, rather than none
    until the clock is where it was."""
    ahead = webhooks.c.told > until + CLOCK_SLACK_S
    connection.execute(update(webhooks).where(ahead).values(told=until))


def scope_of(row: Any) -> ColumnElement[bool]:
    """The jobs that a webhook is for."""
    wanted: list[ColumnElement[bool]] = [jobs.c.state.is_not(None)]
    if row.queue is not None:
        wanted.append(jobs.c.queue == row.queue)
    if row.owner is not None:
        wanted.append(jobs.c.owner == row.owner)
    if row.batch is not None:
        wanted.append(jobs.c.id.in_(select(entries.c.job).where(entries.c.batch == row.batch)))
    return and_(*wanted)


def ended_between(row: Any, since: float, until: float) -> ColumnElement[bool]:
    """Those of them that have ended in a period."""
    return and_(scope_of(row), jobs.c.state.in_(ENDED), jobs.c.ended > since, jobs.c.ended <= until)


def _note(connection: Connection, row: Any, until: float, ended_batches: list[str]) -> str:
    id = f"webhook:{row.id}:{until:.3f}"
    payload = {"webhook": row.id, "since": row.told, "until": until, "batches": ended_batches}
    add(connection, id, MAIL if row.kind == "mail" else WEBHOOK, payload)
    connection.execute(update(webhooks).where(webhooks.c.id == row.id).values(told=until))
    return id


def _due(connection: Connection, row: Any, until: float, moment: float | None) -> list[str] | None:
    """The batches to tell of, empty for a message about jobs; None if there is nothing to tell yet."""
    if row.per == "batch":
        return _ended_batches(connection, row, until) or None
    first = select(func.min(jobs.c.ended)).where(ended_between(row, row.told, until))
    earliest = connection.execute(first).scalar()
    if earliest is None:
        return None
    over = row.per == "job" or earliest < until - _LONGEST_S or _is_over(connection, row, moment)
    return [] if over else None


def _is_over(connection: Connection, row: Any, moment: float | None) -> bool:
    """Whether no job of a webhook's may go on before its queue opens again."""
    going = select(jobs.c.queue).where(scope_of(row), jobs.c.state.in_(_ACTIVE)).distinct()
    names = set(connection.execute(going).scalars())
    return names <= {queue.name for queue in queue_rules(connection, moment) if not queue.open}


def _ended_batches(connection: Connection, row: Any, until: float) -> list[str]:
    """The batches of which a job has ended since the last message, and all have ended now."""
    recent = (
        select(entries.c.batch)
        .join(jobs, jobs.c.id == entries.c.job)
        .where(ended_between(row, row.told, until))
    )
    if row.batch is not None:
        recent = recent.where(entries.c.batch == row.batch)
    left = exists().where(
        entries.c.batch == batches.c.id, jobs.c.id == entries.c.job, jobs.c.state.not_in(ENDED)
    )
    over = select(batches.c.id).where(
        batches.c.id.in_(recent), batches.c.submitted.is_not(None), ~left.correlate(batches)
    )
    return sorted(connection.execute(over).scalars())
