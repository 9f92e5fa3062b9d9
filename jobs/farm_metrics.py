"""The farm-wide gauges of `/metrics`: read from the database beside the scrapes, and seldom.

Every agent shows the same ones, so that it does not matter which of them are alive.
"""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Iterator
from typing import Any

from sqlalchemy import Connection, func, select

from infra.database import Database, now
from infra.errors import ServiceError
from infra.metrics_exporter import Value
from jobs.db.nodes import list_nodes
from jobs.db.queues import list_queues
from jobs.db.state_machine import ENDED, HOLDING
from jobs.db.tables import jobs
from jobs.db.time_window import TimeWindow
from jobs.estimate import estimate

_FRESH_S = 10.0
"""Between two looks into the database."""
_SHARE = 20
"""A look that takes long is followed by a pause of so many times that."""
_PATIENCE_S = 2.0
"""A scrape waits so long for the first look, and shows what it has then."""
_LOST_S = 86_400.0
"""A node that has been away for longer is forgotten."""


class FarmMetrics:
    """Called by each scrape; a look that is due is made by a thread, so a slow database slows no scrape."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._values: list[Value] = []
        self._due = 0.0
        self._looking: threading.Thread | None = None
        self._lock = threading.Lock()

    def __call__(self) -> list[Value]:
        with self._lock:
            looking = self._looking
            if looking is None and time.monotonic() >= self._due:
                looking = threading.Thread(target=self._look, daemon=True, name="gauges")
                self._looking = looking
                looking.start()
            first = not self._values
        if looking is not None and first:
            looking.join(_PATIENCE_S)
        return self._values

    def _look(self) -> None:
        started = time.monotonic()
        try:
            with self._database.read() as connection:
                values = [*read_gauges(connection), _value("chorale_database_up", 1)]
        except Exception as exc:
            # What was last known would look like the truth.
            values = [_value("chorale_database_up", 0)]
            if not isinstance(exc, ServiceError):
                traceback.print_exc()
        took = time.monotonic() - started
        with self._lock:
            self._values = values
            self._due = time.monotonic() + max(_FRESH_S, _SHARE * took)
            self._looking = None


def read_gauges(connection: Connection) -> Iterator[Value]:
    """All of them but `chorale_database_up`."""
    moment: float = connection.execute(select(now())).scalar_one()
    yield from _nodes(connection, moment)
    yield from _queues(connection, moment)
    for line in estimate(connection):
        if line["ends"] is not None and not line["unknown"]:
            yield _value("chorale_queue_left_seconds", max(0.0, line["ends"] - moment), queue=line["queue"])
        yield _value("chorale_queue_deadlines_missed", line["deadlines_missed"], queue=line["queue"])


def _nodes(connection: Connection, moment: float) -> Iterator[Value]:
    for node in list_nodes(connection):
        name = node["name"]
        if node["up"]:
            yield _value("chorale_node_up", 1, node=name)
            if not node["draining"]:
                yield _value("chorale_slots", node["slots"], node=name)
                yield _value("chorale_slots_free", max(0, node["slots"] - node["used"]), node=name)
        elif 0 < moment - node["lease_until"] < _LOST_S:
            # One that has signed off has let its lease go, to 0.
            yield _value("chorale_node_up", 0, node=name)


def _queues(connection: Connection, moment: float) -> Iterator[Value]:
    first = func.min(jobs.c.created).label("first")
    waiting = select(jobs.c.queue, first).where(jobs.c.state == "queued").group_by(jobs.c.queue)
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
