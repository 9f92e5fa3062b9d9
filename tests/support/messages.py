"""What a test needs to play the broker's bad days: raw messages, and the events of the workers."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

from celery import Celery

from jobs.node.tasks import LAUNCH, queue_of, send

_ELSEWHERE = "elsewhere"


def captured(app: Celery, attempt: str, fence: int) -> Any:
    """A message to launch an attempt as the broker has it, taken off the queue of a node that is away."""
    assert send(app, LAUNCH, queue_of(_ELSEWHERE), attempt, fence)
    with app.connection_for_read() as connection:
        queue = app.amqp.queues[queue_of(_ELSEWHERE)].bind(connection.default_channel)
        message = queue.get(no_ack=True)
    assert message is not None
    return message


def replay(app: Celery, message: Any, node: str, *, expires: datetime | None) -> None:
    """Publish a captured message again, to a node, expiring at a moment of the test's."""
    headers = message.headers | {"expires": expires.isoformat() if expires else None}
    with app.producer_pool.acquire(block=True) as producer:
        producer.publish(
            message.body,
            headers=headers,
            content_type=message.content_type,
            content_encoding=message.content_encoding,
            routing_key=queue_of(node),
            **{name: message.properties[name] for name in ("correlation_id", "reply_to")},
        )


def an_hour_ago() -> datetime:
    return datetime.now(UTC) - timedelta(hours=1)


@contextmanager
def worker_events(app: Celery) -> Iterator[list[dict[str, Any]]]:
    """The events of all workers from now on, as a monitor gets them."""
    found: list[dict[str, Any]] = []
    ready = threading.Event()
    with app.connection_for_read() as connection:
        receiver = app.events.Receiver(connection, handlers={"*": found.append})
        receiver.on_consume_ready = lambda *_, **__: ready.set()
        thread = threading.Thread(target=receiver.capture, daemon=True)
        thread.start()
        try:
            assert ready.wait(30)
            yield found
        finally:
            receiver.should_stop = True
            thread.join()


def results(events: list[dict[str, Any]], task: str) -> list[str]:
    """What each call of a task has returned."""
    names = {event["uuid"]: event["name"] for event in events if event["type"] == "task-received"}
    return [
        event["result"].strip("'")
        for event in events
        if event["type"] == "task-succeeded" and names.get(event["uuid"]) == task
    ]
