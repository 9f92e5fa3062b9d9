"""The reason why a queued job does not start yet."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import Connection, select

from infra.database import now
from jobs.db.deleted_jobs import files_left
from jobs.db.nodes import list_nodes
from jobs.db.queues import queue_rules
from jobs.db.rates import read_rates
from jobs.db.tables import jobs
from jobs.formatting import duration
from jobs.scheduler.capacity import size_text
from jobs.scheduler.dispatcher import estimated_job, nodes_up, pending_job, running_groups
from jobs.scheduler.pending_jobs import PendingJob
from jobs.scheduler.placement import Node, fits, place
from jobs.scheduler.waiting import what_jobs_wait_for
from jobs.tags import tags_text


def pending_reason(connection: Connection, job: str) -> str | None:
    """Completes the sentence "the job waits for ..."; None for a job that is not queued."""
    row = connection.execute(select(jobs).where(jobs.c.id == job)).one()
    if row.state != "queued":
        return None
    if (others := what_jobs_wait_for(connection, [job]).get(job)) is not None:
        return others
    if connection.execute(select(jobs.c.id).where(jobs.c.id == job, files_left())).first() is not None:
        return "the files of its deleted image to be gone"
    moment = connection.execute(select(now())).scalar_one()
    if row.not_before is not None and row.not_before > moment:
        return f"its start time, {datetime.fromtimestamp(row.not_before).astimezone():%Y-%m-%d %H:%M %Z}"
    up = nodes_up(connection)
    return (
        _queue_reason(connection, row.queue, moment)
        or (_node_reason(row, up) if up else _absence(connection))
        or _maintenance_reason(estimated_job(row, read_rates(connection)), up, moment)
        or "its turn"
    )


def _absence(connection: Connection) -> str:
    """What is missing where no node takes jobs."""
    there = [node for node in list_nodes(connection) if node["up"]]
    if not there:
        return "a node"
    unhealthy = [node for node in there if node["problems"]]
    kept = [node for node in there if node["maintained_until"] is not None]
    if kept and not unhealthy:
        first = min(kept, key=lambda node: (node["maintained_until"], node["name"]))
        end = f"{datetime.fromtimestamp(first['maintained_until']).astimezone():%Y-%m-%d %H:%M %Z}"
        return f"the end of the maintenance of node {first['name']} ({end})"
    if not unhealthy:
        return "a node that is not draining"
    first = unhealthy[0]
    return f"a healthy node ({first['name']}: {first['problems'][0]['text']})"


def _queue_reason(connection: Connection, name: str, moment: float) -> str | None:
    groups = sum(group.queue == name for group in running_groups(connection, read_rates(connection)))
    for queue in queue_rules(connection, moment):
        if queue.name == name and not queue.open:
            return f"queue {name} to open"
        if queue.name == name and not queue.accepts(groups):
            return f"queue {name}, which runs at most {queue.limit} at a time"
    return None


def _maintenance_reason(job: PendingJob, up: list[Node], moment: float) -> str | None:
    """Where it fits on nodes that run nothing else, but not before their maintenance."""
    if place(up, [], [job], []).placed:
        return None
    planned = [(node.maintenance[1], node.name) for node in up if node.maintenance and job.tags <= node.tags]
    if not planned:
        return None
    ends_in, name = min(planned)
    end = f"{datetime.fromtimestamp(moment + ends_in).astimezone():%Y-%m-%d %H:%M %Z}"
    takes = duration(job.estimated_seconds or 0.0)
    return (
        f"the end of the maintenance of node {name} ({end}): it takes about {takes}, more than is left before"
    )


def _node_reason(row: Any, up: list[Node]) -> str | None:
    job = pending_job(row)
    if fits(up, job):
        return None
    sizes = ", or ".join(size_text(size) for size in reversed(job.sizes))
    if not job.tags:
        return f"more or larger nodes: needs {sizes}"
    if not any(job.tags <= node.tags for node in up):
        return f"a node with {tags_text(job.tags)} that takes jobs"
    return f"more or larger nodes with {tags_text(job.tags)}: needs {sizes}"
