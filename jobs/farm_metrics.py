"""The farm-wide gauges of `/metrics`, read from the database in the background and at most every 10 s.

Every agent exports the same values, so it does not matter which agents are up.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from typing import Any

from sqlalchemy import Connection, func, select

from infra.database import Database, now
from infra.errors import ServiceError
from infra.metrics import NODE_CHECKS
from infra.metrics_exporter import Value
from jobs.db.dependencies import is_free
from jobs.db.nodes import list_nodes
from jobs.db.queues import list_queues, queue_needs
from jobs.db.state_machine import ENDED, HOLDING
from jobs.db.tables import jobs
from jobs.db.time_window import TimeWindow
from jobs.estimate import estimate

logger = logging.getLogger(__name__)

_REFRESH_S = 10.0
"""Time between two reads."""
_PAUSE_FACTOR = 20
"""After a slow read, the pause is at least so many times its duration."""
_FIRST_READ_S = 2.0
"""A scrape waits at most so long for the first read."""
_FORGET_S = 86_400.0
"""A node that has been lost for longer is not exported."""


class FarmMetrics:
    """Called by each scrape. A thread does the reads, so a slow database does not slow down a scrape."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._values: list[Value] = []
        self._due = 0.0
        self._reader: threading.Thread | None = None
        self._lock = threading.Lock()

    def __call__(self) -> list[Value]:
        with self._lock:
            reader = self._reader
            if reader is None and time.monotonic() >= self._due:
                reader = threading.Thread(target=self._read, daemon=True, name="gauges")
                self._reader = reader
                reader.start()
            first = not self._values
        if reader is not None and first:
            reader.join(_FIRST_READ_S)
        return self._values

    def _read(self) -> None:
        started = time.monotonic()
        try:
            with self._database.read() as connection:
                values = [*read_gauges(connection), _value("chorale_database_up", 1)]
        except Exception as exc:
            # Stale values would look current.
            values = [_value("chorale_database_up", 0)]
            if not isinstance(exc, ServiceError):
                logger.exception("the farm's gauges could not be read")
        took = time.monotonic() - started
        with self._lock:
            self._values = values
            self._due = time.monotonic() + max(_REFRESH_S, _PAUSE_FACTOR * took)
            self._reader = None


def read_gauges(connection: Connection) -> Iterator[Value]:
    """All gauges except `chorale_database_up`."""
    moment: float = connection.execute(select(now())).scalar_one()
    yield from _nodes(connection, moment)
    yield from _queues(connection, moment)
    for name, (is_open, slots) in queue_needs(connection, moment).items():
        yield _value("chorale_queue_open", is_open, queue=name)
        yield _value("chorale_queue_slots_needed", slots, queue=name)
    for line in estimate(connection):
        if line["ends"] is not None and not line["unknown"]:
            yield _value("chorale_queue_left_seconds", max(0.0, line["ends"] - moment), queue=line["queue"])
        yield _value("chorale_queue_deadlines_missed", line["deadlines_missed"], queue=line["queue"])


def _nodes(connection: Connection, moment: float) -> Iterator[Value]:
    for node in list_nodes(connection):
        name = node["name"]
        if node["up"]:
            yield _value("chorale_node_up", 1, node=name)
            failed = {problem["check"] for problem in node["problems"]}
            for check in NODE_CHECKS:
                yield _value("chorale_node_unhealthy", check in failed, node=name, reason=check)
            if node["state"] == "up":
                yield _value("chorale_slots", node["slots"], node=name)
                yield _value("chorale_slots_free", max(0, node["slots"] - node["used"]), node=name)
        elif 0 < moment - node["lease_until"] < _FORGET_S:
            # A node that shut down in order has a lease of 0.
            yield _value("chorale_node_up", 0, node=name)


def _queues(connection: Connection, moment: float) -> Iterator[Value]:
    first = func.min(jobs.c.created).label("first")
    # A job that waits for others is not late.
    waiting = select(jobs.c.queue, first).where(jobs.c.state == "queued", is_free()).group_by(jobs.c.queue)
    oldest = {row.queue: row.first for row in connection.execute(waiting)}
    for queue in list_queues(connection):
        name, counts = queue["name"], queue["jobs"]
        since = oldest.get(name)
        yield _value("chorale_queue_depth", counts.get("queued", 0), queue=name)
        yield _value("chorale_queue_running", sum(counts.get(state, 0) for state in HOLDING), queue=name)
        yield _value("chorale_queue_oldest_seconds", 0.0 if since is None else moment - since, queue=name)
        yield _value(
            "chorale_queue_overdue_seconds", _overdue(queue["time_window"], since, moment), queue=name
        )
        for outcome in ENDED:
            yield _value("chorale_jobs_ended", counts.get(outcome, 0), queue=name, outcome=outcome)


def _overdue(window: str | None, since: float | None, moment: float) -> float:
    """Seconds since the end of the first whole window after `since`; 0 before, and without a window."""
    if window is None or since is None:
        return 0.0
    parsed = TimeWindow.parse(window)
    opens = parsed.next_change(since)
    if parsed.is_open(since):
        opens = parsed.next_change(opens)
    return max(0.0, moment - parsed.next_change(opens))


def _value(name: str, value: Any, **labels: str) -> Value:
    return name, labels, float(value)
