"""Delivery of reports: by webhook and mail, when a batch has ended or the time window of a queue has closed.

What is due is marked in the database first, in one transaction, so two agents never send the same report. A
report that cannot be delivered is logged and not sent again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from sqlalchemy import Connection, exists, select, update

from infra.database import now
from infra.errors import ServiceError, SettingError
from infra.notify import mail, post
from infra.settings import Settings
from jobs.db.queues import is_open
from jobs.db.state_machine import ENDED
from jobs.db.tables import batches, entries, jobs, queues
from jobs.farm import Farm
from jobs.report import Scope, as_html, headline, make_report

logger = logging.getLogger(__name__)

_RECENT_S = 3600.0
"""A batch that ended earlier than this before reports were configured is not reported."""
_MAX_SUBJECT = 300


def is_configured(settings: Settings) -> bool:
    """True if the settings name a webhook or a mail address for reports."""
    return bool(settings.report_webhook.get_secret_value() or settings.report_mail)


def send_due(farm: Farm, moment: float | None = None) -> int:
    """Send all reports that are due. Returns how many those were.

    `moment` is the time at which the queues' time windows are evaluated, in seconds since the epoch; default
    now. A report that fails is logged and does not stop the next one. Raises `ServiceError` if the database
    is unreachable while it is asked what is due.
    """
    with farm.database.write() as connection:
        due = [*_ended_batches(connection), *_closed_queues(connection, moment)]
    for title, scope in due:
        try:
            with farm.database.read() as connection:
                report = make_report(connection, scope)
            _send(farm.settings, title, report)
        except Exception:
            logger.exception("the report of %s could not be made", title)
    return len(due)


def _ended_batches(connection: Connection) -> list[tuple[str, Scope]]:
    unfinished = (
        exists()
        .where(entries.c.batch == batches.c.id, jobs.c.id == entries.c.job, jobs.c.state.not_in(ENDED))
        .correlate(batches)
    )
    recent = batches.c.submitted > now() - _RECENT_S
    recent |= (
        exists()
        .where(entries.c.batch == batches.c.id, jobs.c.id == entries.c.job, jobs.c.ended > now() - _RECENT_S)
        .correlate(batches)
    )
    due = select(batches.c.id, batches.c.name).where(
        batches.c.reported.is_(None), batches.c.submitted.is_not(None), recent, ~unfinished
    )
    found = []
    for row in list(connection.execute(due.with_for_update())):
        connection.execute(update(batches).where(batches.c.id == row.id).values(reported=now()))
        found.append((f"batch {row.id} ({row.name})", Scope(batch=row.id)))
    return found


def _closed_queues(connection: Connection, moment: float | None) -> list[tuple[str, Scope]]:
    """Queues whose time window was open at the last check and is closed now."""
    moment = connection.execute(select(now())).scalar_one() if moment is None else moment
    found = []
    windows = select(queues).where(queues.c.time_window.is_not(None))
    for row in list(connection.execute(windows.with_for_update())):
        opened = row.opened
        if is_open(row.time_window, moment):
            opened = moment if opened is None else opened
        elif opened is not None:
            found.append((f"queue {row.name}", Scope(queue=row.name, since=opened)))
            opened = None
        if opened != row.opened:
            connection.execute(update(queues).where(queues.c.name == row.name).values(opened=opened))
    return found


def _send(settings: Settings, title: str, report: dict[str, Any]) -> None:
    """Try each configured channel; one that fails is logged and does not stop the other."""
    subject = _single_line(f"{headline(report)} ({title})")
    webhook, smtp_url = settings.report_webhook.get_secret_value(), settings.smtp_url.get_secret_value()
    if webhook:
        _try("webhook", title, lambda: post(webhook, subject, report))
    if settings.report_mail:
        to = settings.report_mail
        _try("mail", title, lambda: mail(smtp_url, to, subject, subject, as_html(report)))


def _try(channel: str, title: str, send: Callable[[], None]) -> None:
    try:
        send()
    except (ServiceError, SettingError) as exc:
        logger.error("the report of %s was not delivered by %s: %s", title, channel, exc)
    except Exception:
        logger.exception("the report of %s was not delivered by %s", title, channel)


def _single_line(text: str) -> str:
    """Text for a mail header: names of batches and queues may hold line breaks, control characters and lone
    surrogates, which mail headers do not allow."""
    printable = "".join(char if char.isprintable() else " " for char in text)
    return " ".join(printable.split())[:_MAX_SUBJECT]
