"""Queues: their rules, and whether they are open."""

from __future__ import annotations

from collections import Counter
from typing import Any

from sqlalchemy import Connection, delete, func, insert, select, update

from infra.database import now
from jobs.db.claims import slots_held
from jobs.db.dependencies import is_free
from jobs.db.names import check_name
from jobs.db.records import QueueRules
from jobs.db.state_machine import ENDED, change_state
from jobs.db.tables import attempts, batches, jobs, queues
from jobs.db.time_window import TimeWindow
from render.errors import BadInput

DEFAULT_PRIORITY = 50


def set_queue(connection: Connection, name: str, rules: dict[str, Any]) -> dict[str, Any]:
    """Create a queue or update some of its rules: priority, group_limit, time_window, paused, shares.

    Returns the rules as they are stored: a time window has a zone. Raises `BadInput` for an invalid one, and
    for a name that not every database holds.
    """
    check_name("queue", name, queues.c.name)
    if rules.get("time_window") is not None:
        rules = rules | {"time_window": str(TimeWindow.parse(rules["time_window"]))}
    known = connection.execute(select(queues.c.name).where(queues.c.name == name)).first()
    if known is None:
        connection.execute(insert(queues).values(name=name, **rules))
    elif rules:
        connection.execute(update(queues).where(queues.c.name == name).values(**rules))
    return rules


def delete_queue(connection: Connection, name: str) -> None:
    """Delete a queue's rules; raises `BadInput` while it has jobs that have not ended."""
    active = select(func.count()).where(jobs.c.queue == name, jobs.c.state.not_in(ENDED))
    count = connection.execute(active).scalar_one()
    if count:
        raise BadInput(
            "queue", name, f"still has {count} unfinished job(s); cancel them or let them finish first"
        )
    if connection.execute(delete(queues).where(queues.c.name == name)).rowcount == 0:
        raise BadInput("queue", name, "is unknown; chorale queues shows the known ones")


def check_exists(connection: Connection, batch: str | None, queue: str | None) -> None:
    """Raise `BadInput` for a batch or a queue that the farm does not know."""
    if batch is not None:
        known = connection.execute(select(batches.c.id).where(batches.c.id == batch)).first()
        if known is None:
            raise BadInput("batch", batch, "is unknown; chorale batches shows the known ones")
    if queue is not None and not _is_known(connection, queue):
        raise BadInput("queue", queue, "is unknown; chorale queues shows the known ones")


def _is_known(connection: Connection, queue: str) -> bool:
    """Whether a queue has rules, or had a job."""
    ruled = select(queues.c.name).where(queues.c.name == queue)
    used = select(jobs.c.id).where(jobs.c.queue == queue).limit(1)
    return any(connection.execute(statement).first() is not None for statement in (ruled, used))


def list_queues(connection: Connection) -> list[dict[str, Any]]:
    """All queues with rules or jobs: rules, jobs by state, and when each opens or closes next."""
    moment = connection.execute(select(now())).scalar_one()
    rules = {row.name: dict(row._mapping) for row in connection.execute(select(queues))}
    counts: dict[str, dict[str, int]] = {name: {} for name in rules}
    statement = select(jobs.c.queue, jobs.c.state, func.count()).group_by(jobs.c.queue, jobs.c.state)
    for name, state, count in connection.execute(statement):
        counts.setdefault(name, {})[state] = count
    defaults: dict[str, Any] = {
        "priority": DEFAULT_PRIORITY,
        "group_limit": None,
        "time_window": None,
        "paused": False,
        "shares": {},
    }
    return [
        {"name": name, **defaults, **rules.get(name, {}), "jobs": counts[name]}
        | _opening(rules.get(name, {}).get("time_window"), moment)
        for name in sorted(counts)
    ]


def queue_rules(connection: Connection, moment: float | None = None) -> list[QueueRules]:
    """The rules of all queues that have some, now or at `moment` (seconds since the epoch)."""
    moment = connection.execute(select(now())).scalar_one() if moment is None else moment
    return [
        QueueRules(
            name=row.name,
            limit=row.group_limit,
            open=not row.paused and _opening(row.time_window, moment)["open"],
            shares=row.shares,
        )
        for row in connection.execute(select(queues))
    ]


def queue_needs(connection: Connection, moment: float) -> dict[str, tuple[bool, int]]:
    """Queue -> whether it may start jobs at `moment`, and how many slots it needs then.

    Those are the slots of its groups, and while it is open the least that all of its waiting jobs could start
    with, as far as its limit of groups allows. Jobs that are retried later count too, those that wait for
    others do not.
    """
    rules = {each.name: each for each in queue_rules(connection, moment)}
    held, groups = _held(connection)
    waiting = select(jobs.c.queue, jobs.c.least_ranks, func.count().label("jobs"))
    waiting = waiting.where(jobs.c.state == "queued", is_free()).group_by(jobs.c.queue, jobs.c.least_ranks)
    needs = {name: held[name] for name in {*rules, *held}}
    room = {name: each.limit - groups[name] for name, each in rules.items() if each.limit is not None}
    # The largest first: with a limit this is the most that can be needed.
    for row in connection.execute(waiting.order_by(jobs.c.least_ranks.desc())):
        needs.setdefault(row.queue, 0)
        if row.queue not in rules or rules[row.queue].open:
            started = max(0, min(row.jobs, room.get(row.queue, row.jobs)))
            needs[row.queue] += started * row.least_ranks
            if row.queue in room:
                room[row.queue] -= started
    return {name: (name not in rules or rules[name].open, needs[name]) for name in sorted(needs)}


def _held(connection: Connection) -> tuple[Counter[str], Counter[str]]:
    """Slots, and groups, that run now, by queue."""
    running = (
        select(jobs.c.queue, attempts.c.id)
        .join(attempts, attempts.c.job == jobs.c.id)
        .where(attempts.c.ended.is_(None))
    )
    slots, held, groups = slots_held(connection), Counter[str](), Counter[str]()
    for row in connection.execute(running):
        held[row.queue] += sum(len(own) for own in slots.get(row.id, {}).values())
        groups[row.queue] += 1
    return held, groups


def stop_closed(connection: Connection, moment: float | None = None) -> int:
    """Queue the running jobs of queues whose time window has closed. Returns how many those were.

    Their groups write a checkpoint after the step and end. Jobs that are publishing finish.
    """
    moment = connection.execute(select(now())).scalar_one() if moment is None else moment
    stopped = 0
    for queue in connection.execute(select(queues).where(queues.c.time_window.is_not(None))):
        if _opening(queue.time_window, moment)["open"]:
            continue
        running = select(jobs.c.id, jobs.c.state).where(jobs.c.queue == queue.name)
        running = running.where(jobs.c.state.in_(("placing", "rendering"))).order_by(jobs.c.id)
        for job in list(connection.execute(running.with_for_update())):
            reason = f"the time window {queue.time_window} has closed"
            change_state(connection, job.id, job.state, "queued", reason)
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
