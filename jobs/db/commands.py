"""What people do to jobs: cancel, pause, resume, retry, and give them another priority."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from itertools import islice

from sqlalchemy import Connection, select, update

from infra.database import Database
from jobs.db.leases import lock_placement
from jobs.db.state_machine import ALLOWED, change
from jobs.db.tables import jobs
from jobs.errors import IllegalChange, LostRace

VERBS: dict[str, tuple[tuple[str, ...], str]] = {
    "cancel": (("queued", "paused", "placing", "rendering", "failed"), "cancelled"),
    "pause": (("queued", "placing", "rendering"), "paused"),
    "resume": (("paused",), "queued"),
    "retry": (("failed", "cancelled"), "queued"),
}
"""From which states, and to which one, each verb takes a job."""

_AT_A_TIME = 200

assert all(new in ALLOWED[old] for olds, new in VERBS.values() for old in olds)


def apply_command(connection: Connection, verb: str, job: str, who: str) -> str:
    """Do it, and give the state that the job had; a group that renders it sees the change and stops.

    Raises `IllegalChange` for a job that cannot be so treated, with its state.
    """
    olds, new = VERBS[verb]
    state: str = connection.execute(select(jobs.c.state).where(jobs.c.id == job)).scalar_one()
    if state not in olds:
        raise IllegalChange(f"job {job} is {state}; to {verb} is for jobs that are {' or '.join(olds)}")
    fresh = {"attempts": 0, "losses": 0, "not_before": None} if verb == "retry" else {}
    change(connection, job, state, new, f"{verb} by {who}", **fresh)
    return state


def apply_to_all(database: Database, verb: str, chosen: Iterable[str], who: str) -> int:
    """Do it to all jobs that can be so treated; how many those were.

    In parts and in the order of their ids, so that nobody waits long for the database, and two of us
    never for each other.
    """
    done, rest = 0, iter(sorted(chosen))
    while part := list(islice(rest, _AT_A_TIME)):
        with database.write() as connection:
            lock_placement(connection)
            for job in part:
                with contextlib.suppress(IllegalChange, LostRace):
                    apply_command(connection, verb, job, who)
                    done += 1
    return done


def set_priority(connection: Connection, job: str, priority: int) -> None:
    """Give a job a priority of its own, 0 to 100, instead of its queue's."""
    connection.execute(update(jobs).where(jobs.c.id == job).values(priority=priority))
