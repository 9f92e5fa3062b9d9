"""What people do to jobs: cancel, pause, resume, retry, and give them another priority."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy import Connection, select, update

from jobs.errors import IllegalChange, LostRace
from jobs.state.machine import ALLOWED, change
from jobs.state.tables import jobs

VERBS: dict[str, tuple[tuple[str, ...], str]] = {
    "cancel": (("queued", "paused", "placing", "rendering", "failed"), "cancelled"),
    "pause": (("queued", "placing", "rendering"), "paused"),
    "resume": (("paused",), "queued"),
    "retry": (("failed", "cancelled"), "queued"),
}
"""From which states, and to which one, each verb takes a job."""

assert all(new in ALLOWED[old] for olds, new in VERBS.values() for old in olds)


def act(connection: Connection, verb: str, job: str, who: str) -> str:
    """Do it, and give the state that the job had; a group that renders it sees the change and stops.

    Raises `IllegalChange` for a job that cannot be so treated, with its state.
    """
    olds, new = VERBS[verb]
    state: str = connection.execute(select(jobs.c.state).where(jobs.c.id == job)).scalar_one()
    if state not in olds:
        raise IllegalChange(f"job {job} is {state}; to {verb} is for jobs that are {' or '.join(olds)}")
    fresh = {"attempts": 0} if verb == "retry" else {}
    change(connection, job, state, new, f"{verb} by {who}", **fresh)
    return state


def act_on_all(connection: Connection, verb: str, chosen: Iterable[str], who: str) -> int:
    """Do it to all jobs that can be so treated; how many those were."""
    done = 0
    for job in chosen:
        try:
            act(connection, verb, job, who)
        except (IllegalChange, LostRace):
            continue
        done += 1
    return done


def set_priority(connection: Connection, job: str, priority: int) -> None:
    """Give a job a priority of its own, 0 to 100, instead of its queue's."""
    connection.execute(update(jobs).where(jobs.c.id == job).values(priority=priority))
