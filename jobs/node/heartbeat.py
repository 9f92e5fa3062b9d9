"""The heartbeat of a supervisor: renews its part's lease from a thread of its own."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from sqlalchemy import Connection
from tenacity import retry, retry_if_exception_type, stop_after_delay, wait_fixed

from infra.database import Database
from infra.errors import ServiceError
from jobs.db.growing import HeldSlots, held_slots, take_back
from jobs.db.heartbeats import Verdict, heartbeat
from jobs.db.outcomes import publish
from jobs.db.records import Assignment
from jobs.db.shrinking import depart, leave
from jobs.errors import JobError

HEARTBEAT_S = 1.0
PATIENCE_S = 30.0
"""The database may be away for so long before a supervisor gives its part up."""
_RETRY_S = 0.5
Result = TypeVar("Result")
_log = logging.getLogger(__name__)


def with_retry(database: Database, work: Callable[[Connection], Result]) -> Result:
    """Call `work` in one transaction, and again while the database is away, for up to `PATIENCE_S`."""

    @retry(
        retry=retry_if_exception_type(ServiceError),
        wait=wait_fixed(_RETRY_S),
        stop=stop_after_delay(PATIENCE_S),
        reraise=True,
    )
    def transaction() -> Result:
        with database.write() as connection:
            return work(connection)

    return transaction()


@dataclass
class Heartbeat:
    """Sends heartbeats for one part from a thread of its own, between `start` and `stop`."""

    database: Database
    part: Assignment
    progress: float | None = None
    """Share of the work that is done; written with the next heartbeat."""
    live: dict[str, Any] | None = None
    """A `ProgressSnapshot` of this node's ranks; written with the next heartbeat."""
    publishing: bool = False
    """All steps are done; written with the next heartbeat."""
    stopping: bool = False
    """The job was paused or its queue closed: save a checkpoint and stop."""
    gone: set[int] = field(default_factory=set)
    """The places of nodes that the group goes on without; recorded with the next heartbeat."""
    elastic: bool | None = None
    """Whether the group takes more slots while it renders; None before it does. Written with the next
    heartbeat."""
    ended: set[int] = field(default_factory=set)
    """Slots whose ranks have ended, so that they are free; recorded with the next heartbeat."""
    held: HeldSlots | None = None
    """Its slots, once that is known."""
    too_small: str | None = None
    """Why what is left of the group cannot render the image, once that is so."""
    lost: str | None = None
    """Why this supervisor no longer holds the attempt, once that is so."""
    _stopped: threading.Event = field(default_factory=threading.Event)

    def start(self) -> None:
        threading.Thread(target=self._run, daemon=True, name="heartbeat").start()

    def stop(self) -> None:
        self._stopped.set()

    def _run(self) -> None:
        """Nothing ends this thread but its end: without it the lease runs out while the ranks go on, and
        another group is placed on their slots."""
        answered_at = time.monotonic()
        while not self._stopped.wait(HEARTBEAT_S) and self.lost is None:
            try:
                verdict = self._beat()
            except JobError as exc:
                self.lost = str(exc)
            except Exception as exc:
                # An error that nobody has foreseen is the database's until proven otherwise.
                if not isinstance(exc, ServiceError):
                    _log.exception("a heartbeat failed", extra={"attempt": self.part.attempt})
                if time.monotonic() - answered_at > PATIENCE_S:
                    self.lost = str(exc)
            else:
                answered_at = time.monotonic()
                self._take(verdict)

    def _beat(self) -> Verdict:
        gone, ended = set(self.gone), set(self.ended)
        with self.database.write() as connection:
            problem = leave(connection, self.part, gone) if gone else None
            departs = self.part.nodes > 1 and depart(connection, self.part)
            if ended:
                take_back(connection, self.part, ended)
            verdict = heartbeat(connection, self.part, self.progress, self.live, self.elastic)
            held = None if self.elastic is None else held_slots(connection, self.part)
            if self.publishing and verdict == "continue":
                publish(connection, self.part)
        self.gone -= gone
        self.ended -= ended
        self.held = held
        self.too_small = self.too_small or problem
        if departs:
            self.lost = f"node {self.part.node} is draining, and the others go on without it"
        return verdict

    def _take(self, verdict: Verdict) -> None:
        self.stopping = self.stopping or verdict == "stop"
        if verdict == "abandon":
            self.lost = f"attempt {self.part.attempt} is over, or its job went another way"
