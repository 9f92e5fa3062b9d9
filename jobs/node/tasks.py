"""Celery: notifies nodes of new attempts. A task wakes the node's agent up and is done within a second.

Hours-long tasks are what brokers redeliver and kill; so the work itself never runs in a task, and a worker
never imports torch. A message carries ids only and may be lost, doubled or replayed harmlessly: the agent
looks in the database, where each part is claimed once.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterable
from pathlib import Path

from celery import Celery
from kombu.exceptions import OperationalError

from infra.broker import check_broker_url

LAUNCH = "chorale.launch"
WAKEUP_SOCKET = "CHORALE_WAKEUP_SOCKET"
"""Environment variable of a worker: the socket that wakes its agent up."""
_EXPIRES_S = 60
"""A notification that old is worth nothing: the agent has looked by then."""


def make_app(broker_url: str) -> Celery:
    """The configured app: JSON only, no results, early acks, short waits.

    Acks may be early because a lost message does no harm: the agent polls the database as well.
    """
    app = Celery("chorale", broker=check_broker_url(broker_url))
    app.conf.update(
        task_serializer="json",
        accept_content=["json"],
        task_ignore_result=True,
        task_acks_late=False,
        task_create_missing_queues=True,
        worker_prefetch_multiplier=1,
        worker_enable_remote_control=False,
        worker_send_task_events=False,
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
    return app


def launch(attempt: str, fence: int) -> None:
    """Wake up the agent of the node whose queue this is; an agent that is away looks when it comes back."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
        client.setblocking(False)
        client.sendto(f"{attempt} {fence}".encode(), os.environ[WAKEUP_SOCKET])


def notify(app: Celery, placed: Iterable[tuple[str, str, int]]) -> int:
    """Notify of each (node, attempt, fence); returns how many messages the broker could not take."""
    waiting = list(placed)
    while waiting:
        node, attempt, fence = waiting[0]
        message = {"args": [attempt, fence], "queue": queue_of(node), "expires": _EXPIRES_S}
        try:
            app.send_task(LAUNCH, **message, retry=False)
        except OperationalError:
            # Each try costs seconds, and the others would fare no better.
            break
        del waiting[0]
    return len(waiting)


def queue_of(node: str) -> str:
    return f"node.{node}"


def wakeup_path(home: Path, node: str) -> Path:
    """The agent's wake-up socket."""
    return home / f"{node}.wakeup"


app = make_app(os.environ["CHORALE_BROKER_URL"]) if WAKEUP_SOCKET in os.environ else None
"""What `celery -A jobs.node.tasks` takes; only in a worker that an agent has started."""
