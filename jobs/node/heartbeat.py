"""The heart of a supervisor: renews its part's lease, whatever the supervisor is busy with."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from sqlalchemy import Connection

from infra.database import Database
from infra.errors import ServiceError
from jobs.db.heartbeats import heartbeat
from jobs.db.outcomes import publish
from jobs.db.records import Assignment
from jobs.errors import LostRace

BEAT_S = 1.0
PATIENCE_S = 30.0
"""The database may be away for so long before a supervisor gives its part up."""
Result = TypeVar("Result")


def with_retry(database: Database, work: Callable[[Connection], Result]) -> Result:
    """Do it in one transaction, and again while the database is away, for as long as we are patient."""
    end = time.monotonic() + PATIENCE_S
    while True:
        try:
            with database.write() as connection:
                return work(connection)
        except ServiceError:
            if time.monotonic() > end:
                raise
            time.sleep(0.5)


@dataclass
class Heartbeat:
    """Beats for one part in a thread of its own, between `start` and `stop`."""

    database: Database
    part: Assignment
    progress: float | None = None
    """Share of the work that is done; told to the farm with the next beat."""
    live: dict[str, Any] | None = None
    """What this node's ranks are at, for people who watch; told with the next beat."""
    publishing: bool = False
    """All steps are done; told to the farm with the next beat."""
    stopping: bool = False
    """The job shall go on later: keep what is done, and end."""
    lost: str | None = None
    """Why this supervisor speaks for nobody any more, once that is so."""
    _still: threading.Event = field(default_factory=threading.Event)

    def start(self) -> None:
        threading.Thread(target=self._beat, daemon=True, name="heart").start()

    def stop(self) -> None:
        self._still.set()

    def _beat(self) -> None:
        heard = time.monotonic()
        while not self._still.wait(BEAT_S) and self.lost is None:
            try:
                with self.database.write() as connection:
                    verdict = heartbeat(connection, self.part, self.progress, self.live)
                    if self.publishing and verdict == "continue":
                        publish(connection, self.part)
            except LostRace as exc:
                self.lost = str(exc)
                continue
            except ServiceError as exc:
                if time.monotonic() - heard > PATIENCE_S:
                    self.lost = str(exc)
                continue
            heard = time.monotonic()
            self.stopping = self.stopping or verdict == "stop"
            if verdict == "abandon":
                self.lost = f"attempt {self.part.attempt} is over, or its job went another way"
