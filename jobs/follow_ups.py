"""Does follow-ups, in a Celery worker of the queue `follow-up` or, without a broker, in an agent's thread."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from infra.errors import ServiceError
from jobs.db.follow_ups import LONGEST_LEASE_S, FollowUp, begin, end, extend, fail, kind_of
from jobs.deletion import DELETE, delete
from jobs.farm import Farm
from jobs.renditions import farm as renditions
from jobs.renditions.farm import RENDITION
from jobs.report_delivery import REPORT, deliver, is_configured
from jobs.unneeded import GC, delete_unneeded
from jobs.webhooks import delivery as webhooks
from jobs.webhooks.due import MAIL, WEBHOOK

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Kind:
    """How follow-ups of one kind are done. `run` may be called again after it failed or its process died."""

    run: Callable[[Farm, FollowUp], str]
    """Returns in a sentence what was done; raises for what may be tried again."""
    lease_s: float
    """A worker that takes longer is taken for dead, and another one begins."""
    renewed: bool = False
    """Whether the lease is renewed while `run` goes on: then a dead worker is noticed soon."""


KINDS = {
    REPORT: Kind(run=deliver, lease_s=120.0),
    WEBHOOK: Kind(run=webhooks.deliver, lease_s=60.0),
    MAIL: Kind(run=webhooks.deliver, lease_s=120.0),
    RENDITION: Kind(run=renditions.make, lease_s=6.0, renewed=True),
    GC: Kind(run=delete_unneeded, lease_s=LONGEST_LEASE_S),
    DELETE: Kind(run=delete, lease_s=15.0, renewed=True),
}


@dataclass(frozen=True, kw_only=True)
class Result:
    """What became of one try."""

    text: str
    retry_s: float | None = None
    """Seconds until the next try, after a failure."""


def kinds_here(farm: Farm) -> list[str]:
    """The kinds that this process can do with its settings: reports need a webhook or a mail address, and
    mail a mail server."""
    able = {REPORT: is_configured(farm.settings), MAIL: bool(farm.settings.smtp_url.get_secret_value())}
    return [kind for kind in KINDS if able.get(kind, True)]


def do_follow_up(farm: Farm, id: str) -> Result:
    """Do one follow-up, unless it is done or another worker is at it. Raises `ServiceError` only for the
    database."""
    with farm.database.write() as connection:
        name = kind_of(connection, id) or ""
        if name in KINDS and name not in kinds_here(farm):
            # It counts as no try. Whoever has the settings announces it again.
            return Result(text="left to others: this process lacks the settings for it")
        kind = KINDS.get(name)
        begun = None if kind is None else begin(connection, id, kind.lease_s)
    if kind is None or begun is None:
        return Result(text="ended already, or another worker is at it")
    try:
        with _renewing(farm, id, kind):
            text = kind.run(farm, begun)
    except Exception as exc:
        reason = f"{type(exc).__name__}: {exc}".splitlines()[0]
        with farm.database.write() as connection:
            retry_s = fail(connection, id, reason)
        _log.error("follow-up %s failed: %s", id, exc, exc_info=retry_s is None)
        return Result(text=reason, retry_s=retry_s)
    with farm.database.write() as connection:
        end(connection, id, text)
    return Result(text=text)


@contextmanager
def _renewing(farm: Farm, id: str, kind: Kind) -> Iterator[None]:
    """Renew the lease of a follow-up for the duration of the block, where its kind says so."""
    if not kind.renewed:
        yield
        return
    over = threading.Event()

    def renew() -> None:
        while not over.wait(kind.lease_s / 3):
            try:
                with farm.database.write() as connection:
                    extend(connection, id, kind.lease_s)
            except ServiceError as exc:
                # Another worker may begin; what is done twice is the same.
                _log.warning("the lease of follow-up %s was not renewed: %s", id, exc)

    thread = threading.Thread(target=renew, daemon=True, name="lease")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
