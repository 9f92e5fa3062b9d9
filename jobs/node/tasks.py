"""The farm's Celery app and its tasks: `launch` and `schedule` on a node's own queue, `follow_up` on another,
`rendition` on a third.

The first two are done within a second: hours-long tasks are what brokers redeliver and kill, so no image is
rendered in a task, and a worker never imports torch. A message carries ids only and may be lost, doubled,
reordered or replayed: the node's agent claims each part of an attempt in the database, once, and looks there
by itself for what no message announced. A follow-up (`jobs.follow_ups`) is begun once in the same way.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from contextlib import ExitStack
from functools import cache
from typing import TYPE_CHECKING, Any

from celery import Celery
from kombu.exceptions import OperationalError

from infra.broker import check_broker_url
from infra.settings import read_settings
from jobs.node.agent_socket import ask

if TYPE_CHECKING:
    from jobs.farm import Farm

LAUNCH = "chorale.launch"
SCHEDULE = "chorale.schedule"
FOLLOW_UP = "chorale.follow_up"
FOLLOW_UP_QUEUE = "follow-up"
"""Work that follows images. Any number of workers may consume it."""
RENDITION = "chorale.rendition"
RENDITIONS_QUEUE = "renditions"
"""Follow-ups that make renditions: there may be very many, and nothing else should wait for them."""
AGENT_SOCKET = "CHORALE_AGENT_SOCKET"
"""Environment variable of a worker: the socket of the agent that has started it."""
_log = logging.getLogger(__name__)
_EXPIRES_S = 60
"""A message that old is worth nothing: the agent has looked by then."""
_RETRY_SLACK_S = 60
_RETRY = {"max_retries": 1, "interval_start": 0, "interval_step": 0, "interval_max": 0}
"""One more try, over a new connection: the broker may have been restarted since the last message."""


def make_app(broker_url: str) -> Celery:
    """The configured app: JSON only, no results, events and remote control for Flower, short waits.

    Launches are acknowledged early: a lost message does no harm, since the agent looks in the database too.
    """
    app = Celery("chorale", broker=check_broker_url(broker_url))
    app.conf.update(
        task_serializer="json",
        accept_content=["json"],
        task_ignore_result=True,
        task_acks_late=False,
        task_create_missing_queues=True,
        task_track_started=True,
        task_send_sent_event=True,
        worker_prefetch_multiplier=1,
        worker_enable_remote_control=True,
        worker_send_task_events=True,
        worker_hijack_root_logger=False,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_connection_timeout=2,
        broker_transport_options={
            "max_retries": 0,
            "interval_start": 0,
            "visibility_timeout": 300,
            "socket_timeout": 5,
            "socket_connect_timeout": 2,
            "socket_keepalive": True,
        },
    )
    app.task(name=LAUNCH)(launch)
    app.task(name=SCHEDULE)(schedule)
    # Acknowledged when it is done: what a worker was at that dies is delivered again.
    for name in (FOLLOW_UP, RENDITION):
        app.task(name=name, bind=True, acks_late=True, max_retries=None)(follow_up)
    return app


def launch(attempt: str, fence: int) -> str:
    """Claim this node's part of an attempt and start its supervisor; returns what became of it.

    The node's agent does both, since supervisors live as long as it does. One that is away looks in the
    database when it comes back.
    """
    return ask(os.environ[AGENT_SOCKET], {"task": "launch", "attempt": attempt, "fence": fence})


def schedule() -> str:
    """Jobs were queued: have the agent that holds the dispatcher's lease place them now."""
    return ask(os.environ[AGENT_SOCKET], {"task": "schedule"})


def follow_up(task: Any, id: str) -> str:
    """Do a follow-up; returns what was done. After a failure it is tried again, later each time."""
    # Imported here because only the workers of this queue need the farm.
    from jobs.follow_ups import do_follow_up

    result = do_follow_up(_farm(), id)
    if result.retry_s is None:
        return result.text
    expires = result.retry_s + _RETRY_SLACK_S
    raise task.retry(exc=FollowUpFailed(result.text), countdown=result.retry_s, expires=expires)


class FollowUpFailed(Exception):
    """A try of a follow-up failed."""


@cache
def _farm() -> Farm:
    """Open for as long as the worker lives."""
    from jobs.farm import open_farm

    return ExitStack().enter_context(open_farm(read_settings({})))


def notify(app: Celery, placed: Iterable[tuple[str, str, int]]) -> list[tuple[str, str, int]]:
    """Send each (node, attempt, fence) to its node; returns those that the broker could not take."""
    waiting = list(placed)
    while waiting:
        node, attempt, fence = waiting[0]
        if not send(app, LAUNCH, queue_of(node), attempt, fence):
            # Each try costs seconds, and the others would fare no better.
            break
        del waiting[0]
    return waiting


def send(app: Celery, task: str, queue: str, *arguments: object) -> bool:
    """Send a message; False if the broker could not take it. Never raises: no message is worth an error."""
    try:
        app.send_task(
            task, args=list(arguments), queue=queue, expires=_EXPIRES_S, retry=True, retry_policy=_RETRY
        )
    except OperationalError:
        return False
    except Exception as exc:
        # kombu passes some errors of its transports on, as when RabbitMQ refuses the user.
        _log.warning("the broker takes no message (%s: %s)", type(exc).__name__, exc)
        return False
    return True


def queue_of(node: str) -> str:
    return f"node.{node}"
