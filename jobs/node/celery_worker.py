"""A Celery worker of a node: `python -m jobs.node.celery_worker PARENT QUEUE NAME [OPTION...]`.

It dies with the agent that has started it. It takes its broker from CHORALE_BROKER_URL, and tells the agent
when it begins to consume and when it stops to, so that the agent knows whether messages can reach it.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from celery import bootsteps

from infra.logging import configure_logging
from jobs.node.agent_socket import ask
from jobs.node.tasks import AGENT_SOCKET, make_app
from render.launch.parent_death import die_with_parent


class Consuming(bootsteps.StartStopStep):  # type: ignore[misc]
    """Tells the agent whether the worker has a connection to the broker and consumes its queue."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def start(self, consumer: Any) -> None:
        """Called for every new connection."""
        ask(os.environ[AGENT_SOCKET], {"consuming": True})

    def stop(self, consumer: Any) -> None:
        """Called when a connection is lost, and at the end."""
        ask(os.environ[AGENT_SOCKET], {"consuming": False})


def main() -> None:
    """Tie this process to its agent, then be a Celery worker."""
    parent, queue, name, *options = sys.argv[1:]
    die_with_parent(int(parent))
    configure_logging()
    app = make_app(os.environ["CHORALE_BROKER_URL"])
    if AGENT_SOCKET in os.environ:
        app.steps["consumer"].add(Consuming)
    app.worker_main(
        ["worker", "-Q", queue, "-n", name, "-l", "warning", "--without-gossip", "--without-mingle", *options]
    )


if __name__ == "__main__":
    main()
