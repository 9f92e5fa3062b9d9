"""Sends the report when a batch has ended or a queue's window has closed, if somebody wants it.

What is to be sent is noted in the database first, in one transaction, so two agents never send the same;
a report that cannot be delivered then is told in the agent's log and not sent again.
"""

from __future__ import annotations

import sys
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

_NEWS_S = 3600.0


def wanted(settings: Settings) -> bool:
    """Has anybody asked for reports?"""
    return bool(settings.report_webhook or settings.report_mail)


def send_due(farm: Farm, moment: float | None = None) -> int:
    """Send what is due; how many reports that were. `moment` is when the windows are looked at."""
    with farm.database.write() as connection:
        due = [*_ended_batches(connection), *_closed_queues(connection, moment)]
    for title, scope in due:
        with farm.database.read() as connection:
            report = make_report(connection, scope)
        _send(farm.settings, title, report)
    return len(due)


def _ended_batches(connection: Connection) -> list[tuple[str, Scope]]:
    living = (
        exists()
        .where(entries.c.batch == batches.c.id, jobs.c.id == entries.c.job, jobs.c.state.not_in(ENDED))
        .correlate(batches)
    )
    # One that ended long before anybody wanted reports is no news.
    news = batches.c.submitted > now() - _NEWS_S
    news |= (
        exists()
        .where(entries.c.batch == batches.c.id, jobs.c.id == entries.c.job, jobs.c.ended > now() - _NEWS_S)
        .correlate(batches)
    )
    open_ones = select(batches.c.id, batches.c.name).where(
        batches.c.reported.is_(None), batches.c.submitted.is_not(None), news, ~living
    )
    found = []
    for row in list(connection.execute(open_ones.with_for_update())):
        connection.execute(update(batches).where(batches.c.id == row.id).values(reported=now()))
        found.append((f"batch {row.id} ({row.name})", Scope(batch=row.id)))
    return found


def _closed_queues(connection: Connection, moment: float | None) -> list[tuple[str, Scope]]:
    """Queues that were open when last looked at and are closed now."""
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
    subject = f"{headline(report)} ({title})"
    try:
        if settings.report_webhook:
            post(settings.report_webhook, subject, report)
        if settings.report_mail:
            mail(settings.smtp_url, settings.report_mail, subject, subject, as_html(report))
    except (ServiceError, SettingError) as exc:
        print(f"chorale: {exc}", file=sys.stderr, flush=True)
