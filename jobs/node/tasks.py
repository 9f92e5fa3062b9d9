"""Celery: the doorbell of the farm. A task says "there is work for this node" and is done within a second.

Hours-long tasks are what brokers redeliver and kill; so the work itself never runs in a task, and a worker
never imports torch. A message carries ids only, may be lost, doubled or replayed, and nothing comes of it:
the agent looks in the database, where each part is claimed once.
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
BELL = "CHORALE_BELL"
"""Environment variable of a worker: the socket of its agent."""
_EXPIRES_S = 60
"""A bell that nobody has heard for so long is not worth hearing: the agent has looked by then."""


def make_app(broker_url: str) -> Celery:
    """Celery as we want it: JSON only, no results, early acks (a lost bell is rung again), short waits."""
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
    """Ring the agent of the node whose queue this is; an agent that is away looks when it comes back."""
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as bell:
        bell.setblocking(False)
        bell.sendto(f"{attempt} {fence}".encode(), os.environ[BELL])


def ring(app: Celery, bells: Iterable[tuple[str, str, int]]) -> int:
    """Ring for (node, attempt, fence); how many bells could not be rung, for want of a broker."""
    waiting = list(bells)
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


def bell_path(home: Path, node: str) -> Path:
    return home / f"{node}.bell"


app = make_app(os.environ["CHORALE_BROKER_URL"]) if BELL in os.environ else None
"""What `celery -A jobs.node.tasks` takes; only in a worker that an agent has started."""
