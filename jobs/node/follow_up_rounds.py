"""An agent's share of the follow-ups: it finds what is due and hands it to a worker, or does it itself."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass

from celery import Celery

from infra.errors import ServiceError
from jobs.budgets import count_used
from jobs.db.follow_ups import kind_of, take_due
from jobs.farm import Farm
from jobs.follow_ups import do_follow_up, kinds_here
from jobs.node.tasks import FOLLOW_UP, FOLLOW_UP_QUEUE, RENDITION, RENDITIONS_QUEUE, send
from jobs.node.workers import Worker
from jobs.renditions import farm as renditions
from jobs.report_delivery import is_configured, note_due
from jobs.webhooks import due as webhooks

EVERY_S = 10.0
_log = logging.getLogger(__name__)


@dataclass
class FollowUpRounds:
    """Runs in a thread of its own: a mail server may be slow to answer, and a store to list."""

    farm: Farm
    app: Celery | None
    worker: Worker | None
    """Started when there is something to do for the first time."""
    renditions: Worker | None = None
    """The same for renditions."""

    def start(self, ended: threading.Event) -> None:
        threading.Thread(target=self._run, args=(ended,), daemon=True, name="follow-ups").start()

    def look(self) -> None:
        """One round. Raises `ServiceError`."""
        if is_configured(self.farm.settings):
            note_due(self.farm)
        webhooks.note_due(self.farm)
        count_used(self.farm.database)
        renditions.note_due(self.farm)
        with self.farm.database.write() as connection:
            due = {id: kind_of(connection, id) for id in take_due(connection, kinds_here(self.farm))}
        for id, kind in due.items():
            if not self._hand_over(id, kind):
                do_follow_up(self.farm, id)

    def _hand_over(self, id: str, kind: str | None) -> bool:
        """Whether a worker gets a message; without a broker, or while it is away, there is none."""
        task, queue, worker = FOLLOW_UP, FOLLOW_UP_QUEUE, self.worker
        if kind == renditions.RENDITION:
            task, queue, worker = RENDITION, RENDITIONS_QUEUE, self.renditions
        if self.app is None or worker is None:
            return False
        worker.keep()
        return send(self.app, task, queue, id)

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
            for worker in (self.worker, self.renditions):
                if worker is not None:
                    worker.stop()
