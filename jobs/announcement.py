"""Announces new jobs to the scheduler, so that an idle farm starts them at once, not with its next round."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING

from infra.errors import BadSetting, ServiceError
from infra.settings import default_home
from jobs.db.leases import DISPATCHER, holder_of
from jobs.farm import Farm, is_embedded

if TYPE_CHECKING:
    from celery import Celery

_log = logging.getLogger(__name__)


def job_announcer(farm: Farm) -> Callable[[], bool]:
    """A function to call right after jobs were queued: it sends a message to the agent that places them.

    Make it before they are queued, since what it needs takes half a second to import. It returns False
    without a broker, or if that takes no message. Neither raises: the agent looks every second as well.
    """
    url = broker_of(farm)
    if url is None:
        return lambda: False
    from jobs.node.tasks import SCHEDULE, queue_of, send

    def announce() -> bool:
        try:
            with farm.database.read() as connection:
                holder = holder_of(connection, DISPATCHER)
            return holder is not None and send(_app(url), SCHEDULE, queue_of(holder))
        except (BadSetting, ServiceError) as exc:
            _log.debug("new jobs are not announced: %s", exc)
            return False

    return announce


def broker_of(farm: Farm) -> str | None:
    """The URL of the farm's broker; None if it has none."""
    url, folder = farm.settings.broker_url.get_secret_value(), default_home() / "broker"
    if url or not is_embedded(farm) or not folder.is_dir():
        return url or None
    from infra.broker import embedded_redis_url

    return embedded_redis_url(folder)


@lru_cache(maxsize=4)
def _app(url: str) -> Celery:
    from jobs.node.tasks import make_app

    return make_app(url)
