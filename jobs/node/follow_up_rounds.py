"""An agent's share of the follow-ups: it finds what is due and hands it to a worker, or does it itself."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass

from celery import Celery

from infra.errors import ServiceError
from jobs.db.follow_ups import take_due
from jobs.farm import Farm
from jobs.follow_ups import do_follow_up, kinds_here
from jobs.node.tasks import FOLLOW_UP, FOLLOW_UP_QUEUE, send
from jobs.node.workers import Worker
from jobs.report_delivery import is_configured, note_due

EVERY_S = 10.0
_log = logging.getLogger(__name__)


@dataclass
class FollowUpRounds:
    """Runs in a thread of its own: a mail server may be slow to answer, and a store to list."""

    farm: Farm
    app: Celery | None
    worker: Worker | None
    """Started when there is something to do for the first time."""

    def start(self, ended: threading.Event) -> None:
        threading.Thread(target=self._run, args=(ended,), daemon=True, name="follow-ups").start()

    def look(self) -> None:
        """One round. Raises `ServiceError`."""
        if is_configured(self.farm.settings):
            note_due(self.farm)
        with self.farm.database.write() as connection:
            due = take_due(connection, kinds_here(self.farm))
        for id in due:
            if not self._hand_over(id):
                do_follow_up(self.farm, id)

    def _hand_over(self, id: str) -> bool:
        """Whether a worker gets a message; without a broker, or while it is away, there is none."""
        if self.app is None or self.worker is None:
            return False
        self.worker.keep()
        return send(self.app, FOLLOW_UP, FOLLOW_UP_QUEUE, id)

    def _run(self, ended: threading.Event) -> None:
        try:
            while not ended.wait(EVERY_S):
                try:
                    self.look()
                except ServiceError as exc:
                    _log.warning("%s", exc)
                except Exception:
                    # There is a next round: no follow-up stops the others.
                    _log.exception("a round of follow-ups failed")
        finally:
            if self.worker is not None:
                self.worker.stop()
