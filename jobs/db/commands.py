"""Commands of people: cancel, pause, resume and retry jobs, and set their priority."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from itertools import islice

from sqlalchemy import Connection, select, update

from infra.database import Database
from jobs.db.leases import lock_placement
from jobs.db.state_machine import ALLOWED, change_state
from jobs.db.tables import jobs
from jobs.errors import IllegalChange, LostRace

VERBS: dict[str, tuple[tuple[str, ...], str]] = {
    "cancel": (("queued", "paused", "placing", "rendering", "failed"), "cancelled"),
    "pause": (("queued", "placing", "rendering"), "paused"),
    "resume": (("paused",), "queued"),
    "retry": (("failed", "cancelled"), "queued"),
}
"""For each verb: the states that it applies to, and the state that it leads to."""

_PARTICIPLES = {"cancel": "cancelled", "pause": "paused", "resume": "resumed", "retry": "retried"}
_BATCH_SIZE = 200

assert all(new in ALLOWED[old] for olds, new in VERBS.values() for old in olds)


def apply_command(connection: Connection, verb: str, job: str, who: str) -> str:
    """Apply a verb to a job and return the state that it had. A group that renders the job sees it and stops.

    Raises `IllegalChange` if the verb does not apply to the job's state.
    """
    olds, new = VERBS[verb]
    state: str = connection.execute(select(jobs.c.state).where(jobs.c.id == job)).scalar_one()
    if state not in olds:
        raise IllegalChange(
            f"job {job} is {state}; only {' or '.join(olds)} jobs can be {_PARTICIPLES[verb]}"
        )
    reset = {"attempts": 0, "losses": 0, "not_before": None} if verb == "retry" else {}
    change_state(connection, job, state, new, f"{verb} by {who}", **reset)
    return state


def apply_to_all(database: Database, verb: str, chosen: Iterable[str], who: str) -> int:
    """Apply a verb to all jobs that it applies to. Returns how many those were.

    Works in small transactions, so that nobody waits long for the database, and in the order of the ids, so
    that two callers do not deadlock.
    """
    done, rest = 0, iter(sorted(chosen))
    while part := list(islice(rest, _BATCH_SIZE)):
        with database.write() as connection:
            lock_placement(connection)
            for job in part:
                with contextlib.suppress(IllegalChange, LostRace):
                    apply_command(connection, verb, job, who)
                    done += 1
    return done


def set_priority(connection: Connection, job: str, priority: int) -> None:
    """Set a job's own priority, 0 to 100, which replaces its queue's."""
    connection.execute(update(jobs).where(jobs.c.id == job).values(priority=priority))


def move_to_queue(connection: Connection, job: str, queue: str) -> bool:
    """Move a job to another queue, whose priority it has unless it has its own. False for a job that holds
    slots, or has its image: it stays."""
    movable = jobs.c.state.in_(("queued", "paused", "failed", "cancelled"))
    moved = update(jobs).where(jobs.c.id == job, movable).values(queue=queue)
    return connection.execute(moved).rowcount == 1
