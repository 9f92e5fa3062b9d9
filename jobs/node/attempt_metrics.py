"""What a supervisor measures of its part of an attempt: starts, ends, and the time until the first step."""

from __future__ import annotations

import contextlib
import time

from infra.database import Database
from infra.errors import ServiceError, StoreError
from jobs.db.claims import attempt_ages
from jobs.db.records import Assignment
from jobs.node.metrics_client import MetricsClient
from jobs.node.rank_metrics import model_label
from render.errors import GroupFailed, GroupLost, Stopped
from render.events import Event, StepDone


class AttemptMetrics:
    """Sends the metrics of one part to the agent; does nothing where there is none."""

    def __init__(self, part: Assignment) -> None:
        self._client = MetricsClient.from_environment()
        self._part = part
        self._ages: tuple[float, float | None] | None = None
        self._started_at = time.monotonic()

    def begin(self, database: Database) -> None:
        """Look up how long ago the attempt was placed, and the one before it lost."""
        if self._part.place == 0:
            with contextlib.suppress(ServiceError), database.read() as connection:
                self._ages = attempt_ages(connection, self._part)
        self._started_at = time.monotonic()

    def on_event(self, event: Event) -> None:
        """Take an event of the group; only its first step counts."""
        if not isinstance(event, StepDone) or self._ages is None:
            return
        (placed, failed), since = self._ages, time.monotonic() - self._started_at
        self._ages = None
        model = model_label(self._part.spec.get("model", "builtin"))
        self._client.record("chorale_first_step_seconds", placed + since, model=model)
        if failed is not None:
            self._client.record("chorale_recovery_seconds", failed + since)
        self._client.send(wait=True)

    def on_start(self) -> None:
        """Processes are started for the group."""
        self._client.record("chorale_group_starts_total")
        self._client.send(wait=True)

    def on_failure(self, exc: Exception) -> None:
        """The attempt ends without an image, or the group that was warm turns out to be dead."""
        self._client.record("chorale_group_restarts_total", reason=_reason(exc))
        self._client.send(wait=True)


def _reason(exc: Exception) -> str:
    """A lost node sends nothing any more; the node that finds it lost counts it, as `lost`."""
    if isinstance(exc, Stopped):
        return "stopped"
    if isinstance(exc, GroupLost):
        return "broke_off"
    if isinstance(exc, (ServiceError, StoreError, OSError)) or (isinstance(exc, GroupFailed) and exc.outage):
        return "outage"
    return "failed"
