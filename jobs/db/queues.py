"""Queues: their rules, and whether they are open."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, delete, func, insert, select, update

from infra.database import now
from jobs.db.state_machine import ENDED, change
from jobs.db.tables import jobs, queues
from jobs.db.time_window import TimeWindow
from jobs.scheduler.placement import Queue
from render.errors import BadInput

DEFAULT_PRIORITY = 50


def set_queue(connection: Connection, name: str, rules: dict[str, Any]) -> None:
    """Make a queue or change some of its rules: priority, group_limit, time_window, paused, shares.

    Raises `BadInput` for a window that is none.
    """
    if rules.get("time_window") is not None:
        rules = rules | {"time_window": str(TimeWindow.parse(rules["time_window"]))}
    known = connection.execute(select(queues.c.name).where(queues.c.name == name)).first()
    if known is None:
        connection.execute(insert(queues).values(name=name, **rules))
    elif rules:
        connection.execute(update(queues).where(queues.c.name == name).values(**rules))


def delete_queue(connection: Connection, name: str) -> None:
    """Forget a queue's rules; raises `BadInput` while jobs wait or render in it."""
    living = select(func.count()).where(jobs.c.queue == name, jobs.c.state.not_in(ENDED))
    count = connection.execute(living).scalar_one()
    if count:
        raise BadInput("queue", name, f"still has {count} jobs; cancel them or let them finish first")
    if connection.execute(delete(queues).where(queues.c.name == name)).rowcount == 0:
        raise BadInput("queue", name, "is not known; chorale queues shows those that are")


def list_queues(connection: Connection) -> list[dict[str, Any]]:
    """All queues with rules or jobs: rules, jobs by state, and when each opens or closes next."""
    moment = connection.execute(select(now())).scalar_one()
    rules = {row.name: dict(row._mapping) for row in connection.execute(select(queues))}
    counts: dict[str, dict[str, int]] = {name: {} for name in rules}
    statement = select(jobs.c.queue, jobs.c.state, func.count()).group_by(jobs.c.queue, jobs.c.state)
    for name, state, count in connection.execute(statement):
        counts.setdefault(name, {})[state] = count
    bare: dict[str, Any] = {
        "priority": DEFAULT_PRIORITY,
        "group_limit": None,
        "time_window": None,
        "paused": False,
        "shares": {},
    }
    return [
        {"name": name, **bare, **rules.get(name, {}), "jobs": counts[name]}
        | _opening(rules.get(name, {}).get("time_window"), moment)
        for name in sorted(counts)
    ]


def queue_rules(connection: Connection, moment: float | None = None) -> list[Queue]:
    """What the placement has to know of the queues that have rules, now or at a moment."""
    moment = connection.execute(select(now())).scalar_one() if moment is None else moment
    return [
        Queue(
            name=row.name,
            limit=row.group_limit,
            open=not row.paused and _opening(row.time_window, moment)["open"],
            shares=row.shares,
        )
        for row in connection.execute(select(queues))
    ]


def stop_closed(connection: Connection, moment: float | None = None) -> int:
    """Put the jobs of queues whose window has closed back; how many those were.

    Their groups see it, keep a checkpoint after the step, and end. What is being published is let finish.
    """
    moment = connection.execute(select(now())).scalar_one() if moment is None else moment
    stopped = 0
    for queue in connection.execute(select(queues).where(queues.c.time_window.is_not(None))):
        if _opening(queue.time_window, moment)["open"]:
            continue
        going = select(jobs.c.id, jobs.c.state).where(jobs.c.queue == queue.name)
        going = going.where(jobs.c.state.in_(("placing", "rendering"))).order_by(jobs.c.id)
        for job in list(connection.execute(going.with_for_update())):
            change(connection, job.id, job.state, "queued", f"the window {queue.time_window} has closed")
            stopped += 1
    return stopped


def is_open(window: str, moment: float) -> bool:
    """Is a time window open at a moment?"""
    return TimeWindow.parse(window).is_open(moment)


def _opening(window: str | None, moment: float) -> dict[str, Any]:
    if window is None:
        return {"open": True, "changes": None}
    parsed = TimeWindow.parse(window)
    return {"open": parsed.is_open(moment), "changes": parsed.next_change(moment)}
