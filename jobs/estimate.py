"""Estimate whether the queues finish within their time windows, for `chorale estimate`."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from sqlalchemy import Connection, func, select

from infra.database import now
from jobs.db.budgets import count_held
from jobs.db.nodes import list_nodes
from jobs.db.queues import list_queues
from jobs.db.rates import read_rates, slot_seconds_left
from jobs.db.state_machine import ENDED
from jobs.db.tables import jobs
from jobs.db.time_window import TimeWindow
from jobs.formatting import plural
from jobs.scheduler.capacity import count_impossible_jobs
from jobs.scheduler.forecast import Load, forecast
from jobs.tags import read_tags


def estimate(connection: Connection) -> list[dict[str, Any]]:
    """For each queue with work: jobs, jobs of unknown duration, jobs that cannot run on the nodes of the farm
    and jobs that wait for a budget, each with a reason, slot hours, the end, whether it fits into the time
    window, and the number of missed deadlines. Times are seconds since the epoch."""
    moment = connection.execute(select(now())).scalar_one()
    up = [node for node in list_nodes(connection) if node["state"] == "up"]
    slots = sum(node["slots"] for node in up)
    known, tallies = read_rates(connection), defaultdict[str, _Tally](_Tally)
    # The database adds up: there may be a hundred thousand jobs.
    active = jobs.c.state.not_in((*ENDED, "paused"))
    work = select(
        jobs.c.queue,
        jobs.c.model,
        jobs.c.require_tag,
        func.count().label("jobs"),
        func.count(jobs.c.work).label("planned"),
        func.sum(jobs.c.work * (1 - jobs.c.progress)).label("work"),
        func.max(jobs.c.most_ranks).label("most_ranks"),
    )
    for row in connection.execute(
        work.where(active).group_by(jobs.c.queue, jobs.c.model, jobs.c.require_tag)
    ):
        tallies[row.queue].add(row, slot_seconds_left(known, row.model, row.work, 0.0))
    due = select(jobs.c.queue, jobs.c.deadline, func.count().label("jobs"))
    due = due.where(active, jobs.c.deadline.is_not(None)).group_by(jobs.c.queue, jobs.c.deadline)
    for row in connection.execute(due):
        tallies[row.queue].deadlines[row.deadline] = row.jobs
    rules = {queue["name"]: queue for queue in list_queues(connection)}
    loads = [_load(name, tally, rules[name], up) for name, tally in sorted(tallies.items())]
    ends = forecast(loads, slots, moment)
    impossible, held = count_impossible_jobs(connection), count_held(connection)
    return [
        _line(load, tallies[load.queue], ends[load.queue], moment)
        | _held(held.get(load.queue))
        | _possible(impossible.get(load.queue))
        for load in loads
    ]


def verdict(line: dict[str, Any]) -> str:
    """Whether a queue's jobs are done in time, for people."""
    if line["cannot_run"]:
        return f"no: {plural(line['cannot_run'], 'job')} {line['cannot_run_reason']}"
    if line.get("held"):
        verb = "waits" if line["held"] == 1 else "wait"
        return f"no: {plural(line['held'], 'job')} {verb} for {line['held_reason']}"
    if line["unknown"]:
        return f"unknown: no measured rate for {plural(line['unknown'], 'job')}"
    missed = line["deadlines_missed"]
    late = f", {plural(missed, 'job')} after the deadline" if missed else ""
    return ("yes" if line["fits"] else "no") + late


def _possible(impossible: tuple[int, str] | None) -> dict[str, Any]:
    """What is said of jobs that cannot run; with one of them a queue is never empty."""
    if impossible is None:
        return {"cannot_run": 0, "cannot_run_reason": None}
    return {"cannot_run": impossible[0], "cannot_run_reason": impossible[1], "ends": None, "fits": False}


def _held(held: tuple[int, str] | None) -> dict[str, Any]:
    """What is said of jobs that wait for a budget; nobody knows what they do in the next period."""
    if held is None:
        return {"held": 0, "held_reason": None}
    return {"held": held[0], "held_reason": held[1], "ends": None, "fits": False}


class _Tally:
    """Totals of a queue's jobs that have not ended."""

    def __init__(self) -> None:
        self.jobs = self.unknown = self.most_ranks = 0
        self.slot_seconds = 0.0
        self.deadlines: dict[float, int] = {}
        """Jobs by their deadline."""
        self.tags: set[frozenset[str]] = set()
        """What its jobs ask for."""

    def add(self, row: Any, slot_seconds: float | None) -> None:
        """Add the jobs of one model; those without a plan have an unknown duration."""
        self.jobs += row.jobs
        self.tags.add(read_tags(row.require_tag))
        self.most_ranks = max(self.most_ranks, row.most_ranks)
        self.unknown += row.jobs if slot_seconds is None else row.jobs - row.planned
        self.slot_seconds += slot_seconds or 0.0


def _load(name: str, tally: _Tally, rules: dict[str, Any], up: list[dict[str, Any]]) -> Load:
    limit, window = rules["group_limit"], rules["time_window"]
    most = None if limit is None else limit * tally.most_ranks
    if frozenset() not in tally.tags:
        # All its jobs need tags, so the slots of other nodes are of no use to them.
        suitable = [node for node in up if any(tags <= set(node["tags"]) for tags in tally.tags)]
        tagged = sum(node["slots"] for node in suitable)
        most = tagged if most is None else min(most, tagged)
    return Load(
        queue=name,
        priority=rules["priority"],
        slot_seconds=tally.slot_seconds,
        most_slots=most,
        window=None if window is None else TimeWindow.parse(window),
        paused=rules["paused"],
    )


def _line(load: Load, tally: _Tally, ends: float | None, moment: float) -> dict[str, Any]:
    closes = None
    if load.window is not None:
        change = load.window.next_change(moment)
        closes = change if load.window.is_open(moment) else load.window.next_change(change)
    return {
        "queue": load.queue,
        "jobs": tally.jobs,
        "unknown": tally.unknown,
        "slot_hours": tally.slot_seconds / 3600,
        "ends": ends,
        "closes": closes,
        "fits": ends is not None and not tally.unknown and (closes is None or ends <= closes),
        "deadlines_missed": sum(
            count for deadline, count in tally.deadlines.items() if ends is None or deadline < ends
        ),
    }
