"""The agent's wake-up socket: a message of its Celery worker makes it look into the database sooner."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

from jobs.node.tasks import wakeup_path

_RETRY_S = 10.0
"""Between two tries to bind the socket, and between two looks whether it is still there."""
_log = logging.getLogger(__name__)


class WakeupReceiver:
    """Calls `on_wakeup` for each message, from a thread of its own that nothing ends. Without the socket
    the agent polls."""

    def __init__(self, home: Path, node: str, on_wakeup: Callable[[], None]) -> None:
        self._path = wakeup_path(home, node)
        self._on_wakeup = on_wakeup

    def start(self) -> None:
        threading.Thread(target=self._run, daemon=True, name="wakeup").start()

    def _run(self) -> None:
        told = ""
        while True:
            try:
                self._receive()
            except Exception as exc:
                if str(exc) != told:
                    _log.warning("no wake-ups at %s (%s); the agent polls", self._path, exc)
                told = str(exc)
                time.sleep(_RETRY_S)

    def _receive(self) -> None:
        """Until the socket is gone, for instance with its folder."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
            server.bind(str(self._path))
            server.settimeout(_RETRY_S)
            while self._path.exists():
                try:
                    server.recv(256)
                except TimeoutError:
                    continue
                self._on_wakeup()
