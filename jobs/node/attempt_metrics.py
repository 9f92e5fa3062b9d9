"""What a supervisor tells of its part of an attempt: starts, ends, and how long things took to get going."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from typing import Any

from infra.database import Database
from infra.errors import ServiceError, StoreError
from jobs.db.claims import attempt_ages
from jobs.db.records import Assignment
from jobs.errors import GroupBrokeOff, GroupFailed, JobStopped
from jobs.node.metrics_client import MetricsClient
from jobs.node.rank_metrics import model_label


class AttemptMetrics:
    """Tells the agent of one part; does nothing where no agent listens."""

    def __init__(self, part: Assignment) -> None:
        self._meter = MetricsClient.from_environment()
        self._part = part
        self._ages: tuple[float, float | None] | None = None
        self._begun = time.monotonic()

    def begin(self, database: Database) -> None:
        """Ask how long ago the attempt was placed, and the one before it lost."""
        if self._part.place == 0:
            with contextlib.suppress(ServiceError), database.read() as connection:
                self._ages = attempt_ages(connection, self._part)
        self._begun = time.monotonic()

    def on_event(self, news: Mapping[str, Any]) -> None:
        """Hear the group's news; the first step is the one that counts."""
        if news["kind"] != "step" or self._ages is None:
            return
        (placed, failed), since = self._ages, time.monotonic() - self._begun
        self._ages = None
        model = model_label(self._part.spec.get("model", "builtin"))
        self._meter.tell("chorale_first_step_seconds", placed + since, model=model)
        if failed is not None:
            self._meter.tell("chorale_recovery_seconds", failed + since)
        self._meter.send(insist=True)

    def on_start(self) -> None:
        """Processes are started for the group."""
        self._meter.tell("chorale_group_starts_total")
        self._meter.send(insist=True)

    def on_failure(self, exc: Exception) -> None:
        """The attempt ends without an image, or the group that was warm turns out to be dead."""
        self._meter.tell("chorale_group_restarts_total", reason=_reason(exc))
        self._meter.send(insist=True)


def _reason(exc: Exception) -> str:
    """A lost node says nothing any more; whoever dispatches tells of it, as `lost`."""
    if isinstance(exc, JobStopped):
        return "stopped"
    if isinstance(exc, GroupBrokeOff):
        return "broke_off"
    if isinstance(exc, (ServiceError, StoreError, OSError)) or (isinstance(exc, GroupFailed) and exc.outage):
        return "outage"
    return "failed"
