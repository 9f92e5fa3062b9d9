"""Runs the quality gate over finished images, and records what it finds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import select

from infra.database import insert_or_change, now
from jobs.db.folders import FINISHED_FOLDER
from jobs.db.leases import hold_lease
from jobs.db.tables import entries, image_checks, jobs
from jobs.farm import Farm, open_images
from jobs.review.thumbnails import check_images

RECENT_S = 86_400.0
"""Images that ended earlier are looked at when somebody reviews their batch."""
_ROUND = 40
_LEASE = "quality gate"
_LEASE_S = 120.0


def check_recent(farm: Farm, holder: str) -> int:
    """Check some of the images that were finished within the last day. Returns how many those were.

    One agent of a farm does it at a time. Raises `ServiceError`.
    """
    due = _unchecked().where(jobs.c.ended > now() - RECENT_S).limit(_ROUND)
    with farm.database.read() as connection:
        if connection.execute(due.limit(1)).first() is None:
            return 0
    with farm.database.write() as connection:
        if not hold_lease(connection, _LEASE, holder, _LEASE_S):
            return 0
    return _check(farm, due)


def check_batch_images(farm: Farm, batch: str) -> int:
    """Check all finished images of a batch that were not looked at before. Returns how many those were."""
    mine = select(entries.c.job).where(entries.c.batch == batch)
    checked = 0
    while found := _check(farm, _unchecked().where(jobs.c.id.in_(mine)).limit(_ROUND)):
        checked += found
    return checked


def _unchecked() -> Any:
    """Finished images that were not looked at, or that were rendered anew since."""
    same = (image_checks.c.job == jobs.c.id) & (image_checks.c.root == jobs.c.root)
    return (
        select(jobs.c.id, jobs.c.root, FINISHED_FOLDER.label("folder"))
        .outerjoin(image_checks, same)
        .where(jobs.c.state == "done", jobs.c.root.is_not(None), image_checks.c.job.is_(None))
        .order_by(jobs.c.ended)
    )


def _check(farm: Farm, statement: Any) -> int:
    with farm.database.read() as connection:
        due = list(connection.execute(statement))
    if not due:
        return 0
    images = open_images(farm.settings)
    found = check_images((row.id, images.within(row.folder)) for row in due)
    _record(farm, due, found)
    return len(found)


def _record(farm: Farm, due: Sequence[Any], found: dict[str, list[dict[str, str]]]) -> None:
    with farm.database.write() as connection:
        for row in due:
            if row.id in found:
                values = {
                    "root": row.root,
                    "flaws": found[row.id],
                    "flawed": bool(found[row.id]),
                    "checked": now(),
                }
                inserted = insert_or_change(connection, image_checks, values)
                connection.execute(inserted.values(job=row.id, **values))
