"""Small JSON messages from the ranks to whoever started them, over a unix datagram socket.

A lost message costs a moment of a progress bar, so sending never waits and never fails a render.
"""

from __future__ import annotations

import contextlib
import json
import socket
from pathlib import Path
from typing import Any

_LARGEST = 60_000


class EventReceiver:
    """The listening end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(self.path))

    def close(self) -> None:
        self._socket.close()
        self.path.unlink(missing_ok=True)

    def next(self, seconds: float) -> dict[str, Any] | None:
        """The next message, or None when none has come for so long."""
        self._socket.settimeout(seconds)
        try:
            message: dict[str, Any] = json.loads(self._socket.recv(_LARGEST))
        except (TimeoutError, BlockingIOError):
            return None
        return message


class EventSender:
    """The sending end, one per rank."""

    def __init__(self, path: str, rank: int) -> None:
        self._path, self._rank = path, rank
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)

    def __call__(self, news: dict[str, Any]) -> None:
        """Send one message; it gets the sender's `rank`."""
        with contextlib.suppress(OSError):
            self._socket.sendto(json.dumps(news | {"rank": self._rank}).encode()[:_LARGEST], self._path)

    def insist(self, news: dict[str, Any]) -> None:
        """Send a message that must not be lost to a full queue: wait for room while anybody listens."""
        data = json.dumps(news | {"rank": self._rank}).encode()[:_LARGEST]
        with contextlib.suppress(OSError):
            self._socket.setblocking(True)
            self._socket.sendto(data, self._path)
        self._socket.setblocking(False)
