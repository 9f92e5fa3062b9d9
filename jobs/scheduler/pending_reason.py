"""What a queued job waits for, so that nobody has to guess why it does not start."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import Connection, select

from infra.database import now
from jobs.db.queues import queue_rules
from jobs.db.rates import read_rates
from jobs.db.tables import jobs
from jobs.scheduler.dispatcher import nodes_up, pending_job, running_groups
from jobs.scheduler.placement import Node, Size, fits


def pending_reason(connection: Connection, job: str) -> str | None:
    """As a person would say it after "it waits for"; None for a job that is not queued."""
    row = connection.execute(select(jobs).where(jobs.c.id == job)).one()
    if row.state != "queued":
        return None
    moment = connection.execute(select(now())).scalar_one()
    if row.not_before is not None and row.not_before > moment:
        return f"its time, {datetime.fromtimestamp(row.not_before).astimezone():%Y-%m-%d %H:%M %Z}"
    up = nodes_up(connection)
    return _of_its_queue(connection, row.queue, moment) or (_of_nodes(row, up) if up else "a node that is up")


def _of_its_queue(connection: Connection, name: str, moment: float) -> str | None:
    groups = sum(group.queue == name for group in running_groups(connection, read_rates(connection)))
    for queue in queue_rules(connection, moment):
        if queue.name == name and not queue.open:
            return f"queue {name} to open"
        if queue.name == name and not queue.takes(groups):
            return f"room in queue {name}, which takes {queue.limit} at once"
    return None


def _of_nodes(row: Any, up: list[Node]) -> str:
    want = pending_job(row)
    if fits(up, want):
        return "its turn"
    sizes = ", or ".join(_as_text(size) for size in reversed(want.sizes))
    return f"more or larger nodes than are up: it takes {sizes}"


def _as_text(size: Size) -> str:
    ranks = "1 rank" if size.least == 1 else f"{size.least} ranks"
    each = " each" if size.least > 1 else ""
    return ranks if size.memory_bytes is None else f"{ranks} with {size.memory_bytes / 2**30:.1f} GiB{each}"
