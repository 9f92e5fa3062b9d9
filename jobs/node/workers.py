"""The Celery workers that an agent keeps: one for messages to its node, one for follow-ups."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from jobs.node.agent_socket import socket_path
from jobs.node.tasks import AGENT_SOCKET, FOLLOW_UP_QUEUE, RENDITIONS_QUEUE, queue_of

_STOP_S = 5.0


@dataclass
class Worker:
    """A worker process beside the agent, started again when it has died.

    It is a process of its own, and not the agent itself, for three reasons: supervisors and their ranks die
    with the process that has started them, so a worker that hangs on its broker must be able to end without
    them; a farm without a broker is the same agent without a worker; and no library of the broker runs where
    the leases of all renders are renewed.
    """

    queue: str
    name: str
    log: Path
    environment: Mapping[str, str] = field(repr=False)
    options: tuple[str, ...] = ()
    _process: subprocess.Popen[bytes] | None = None

    def keep(self) -> bool:
        """Start it if it does not run; False if it did not. Call it from a thread that does not end."""
        if self._process is not None and self._process.poll() is None:
            return True
        words = [str(os.getpid()), self.queue, self.name, *self.options]
        with contextlib.suppress(OSError), self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "jobs.node.celery_worker", *words],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=os.environ | self.environment,
                start_new_session=True,
            )
        return False

    def stop(self) -> None:
        """SIGKILL: what it has not acknowledged is delivered again."""
        if self._process is not None:
            self._process.kill()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_STOP_S)


def launch_worker(node: str, home: Path, broker_url: str) -> Worker:
    """The worker that takes the messages to a node."""
    return Worker(
        queue=queue_of(node),
        name=f"chorale@{node}",
        log=home / "worker.log",
        environment={AGENT_SOCKET: str(socket_path(home, node)), "CHORALE_BROKER_URL": broker_url},
        # Its tasks only ask the agent, one after the other.
        options=("-P", "solo"),
    )


def follow_up_worker(node: str, home: Path, broker_url: str, database_url: str) -> Worker:
    """A worker that does follow-ups beside others; a long clean-up must not keep a report waiting."""
    return Worker(
        queue=FOLLOW_UP_QUEUE,
        name=f"follow-up@{node}",
        log=home / "worker.log",
        environment={"CHORALE_DATABASE_URL": database_url, "CHORALE_BROKER_URL": broker_url},
        options=("-P", "threads", "-c", "4"),
    )


def rendition_worker(node: str, home: Path, broker_url: str, database_url: str) -> Worker:
    """A worker that makes renditions, two at a time: the ranks beside it need the processors."""
    return Worker(
        queue=RENDITIONS_QUEUE,
        name=f"renditions@{node}",
        log=home / "worker.log",
        environment={"CHORALE_DATABASE_URL": database_url, "CHORALE_BROKER_URL": broker_url},
        options=("-P", "threads", "-c", "2"),
    )
