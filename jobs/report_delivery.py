"""Delivery of reports: by webhook and mail, when a batch has ended or the time window of a queue has closed.

What is due becomes a follow-up in the transaction that finds it, so two agents never send the same report.
Each channel that has taken the report is recorded: a delivery that is tried again sends by the others only.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

from sqlalchemy import Connection, exists, select, update

from infra.database import now
from infra.errors import ServiceError, SettingError
from infra.notify import PICTURE, mail, post, subject_line
from infra.settings import Settings
from jobs.db.folders import image_folders
from jobs.db.follow_ups import FollowUp, add, keep_payload
from jobs.db.queues import is_open
from jobs.db.state_machine import ENDED
from jobs.db.tables import batches, entries, jobs, queues
from jobs.farm import Farm, open_images
from jobs.report import Scope, headline, make_report
from jobs.report_page import as_html
from jobs.report_picture import make_picture, thumbnails

logger = logging.getLogger(__name__)

REPORT = "report"
"""Kind of the follow-up that delivers one."""
_RECENT_S = 3600.0
"""A batch that ended earlier than this before reports were configured is not reported."""


def is_configured(settings: Settings) -> bool:
    """True if the settings name a webhook or a mail address for reports."""
    return bool(settings.report_webhook.get_secret_value() or settings.report_mail)


def note_due(farm: Farm, moment: float | None = None) -> list[str]:
    """Add a follow-up for each report that is due; returns their ids.

    `moment` is the time at which the queues' time windows are evaluated, in seconds since the epoch; default
    now. Raises `ServiceError` if the database is unreachable.
    """
    with farm.database.write() as connection:
        due = [*_ended_batches(connection), *_closed_queues(connection, moment)]
        for id, title, scope in due:
            payload = {"title": title, "scope": asdict(scope), "delivered": []}
            add(connection, id, REPORT, payload)
    return [id for id, _, _ in due]


def deliver(farm: Farm, follow_up: FollowUp) -> str:
    """Send a report by each configured channel that has not taken it yet; `is_configured` must hold.

    A channel that fails does not stop the other. Raises what the last one raised.
    """
    title, delivered = follow_up.payload["title"], list(follow_up.payload["delivered"])
    with farm.database.read() as connection:
        report = make_report(connection, Scope(**follow_up.payload["scope"]))
        folders = image_folders(connection, [image["job"] for image in report["images"]])
    failed: Exception | None = None
    for channel, send in _channels(farm, title, report, folders).items():
        if channel in delivered:
            continue
        try:
            send()
        except Exception as exc:
            known = isinstance(exc, ServiceError | SettingError)
            text = "the report of %s was not delivered by %s: %s"
            logger.error(text, title, channel, exc, exc_info=not known)
            failed = exc
            continue
        delivered.append(channel)
        with farm.database.write() as connection:
            keep_payload(connection, follow_up.id, follow_up.payload | {"delivered": delivered})
    if failed is not None:
        raise failed
    return f"the report of {title} was delivered by {' and '.join(delivered)}"


def _ended_batches(connection: Connection) -> list[tuple[str, str, Scope]]:
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
        found.append((f"report:batch:{row.id}", f"batch {row.id} ({row.name})", Scope(batch=row.id)))
    return found


def _closed_queues(connection: Connection, moment: float | None) -> list[tuple[str, str, Scope]]:
    """Queues whose time window was open at the last check and is closed now."""
    moment = connection.execute(select(now())).scalar_one() if moment is None else moment
    found = []
    windows = select(queues).where(queues.c.time_window.is_not(None))
    for row in list(connection.execute(windows.with_for_update())):
        opened = row.opened
        if is_open(row.time_window, moment):
            opened = moment if opened is None else opened
        elif opened is not None:
            id = f"report:queue:{row.name}:{opened:.3f}"
            found.append((id, f"queue {row.name}", Scope(queue=row.name, since=opened)))
            opened = None
        if opened != row.opened:
            connection.execute(update(queues).where(queues.c.name == row.name).values(opened=opened))
    return found


def _channels(
    farm: Farm, title: str, report: dict[str, Any], folders: list[str]
) -> dict[str, Callable[[], None]]:
    """The configured channels, each with what sends the report by it; `folders` are those of its images."""
    settings = farm.settings
    found: dict[str, Callable[[], None]] = {}
    subject = subject_line(f"{headline(report)} ({title})")
    webhook = settings.report_webhook.get_secret_value()
    if webhook:
        found["webhook"] = partial(post, webhook, subject, report)
    if settings.report_mail:
        found["mail"] = partial(_mail, farm, title, subject, report, folders)
    return found


def _mail(farm: Farm, title: str, subject: str, report: dict[str, Any], folders: list[str]) -> None:
    smtp_url, to = farm.settings.smtp_url.get_secret_value(), farm.settings.report_mail
    picture = make_picture(thumbnails(open_images(farm.settings), folders)) if folders else None
    page = as_html(report, title, None if picture is None else PICTURE)
    mail(smtp_url, to, subject, subject, page, picture=picture)
