"""Events from the ranks to whoever started them, as JSON on a unix datagram socket.

A lost event costs a moment of a progress bar, so `send` never waits and never fails a render.
"""

from __future__ import annotations

import contextlib
import socket
from dataclasses import replace
from pathlib import Path

from render.events import Event, from_json

LARGEST_MESSAGE = 60_000
"""Bytes."""


class DatagramReceiver:
    """A unix datagram socket bound to `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(self.path))

    def close(self) -> None:
        self._socket.close()
        self.path.unlink(missing_ok=True)

    def receive(self, seconds: float) -> bytes | None:
        """The next message, or None when none has come for so long, or another thread has closed this."""
        try:
            self._socket.settimeout(seconds)
            return self._socket.recv(LARGEST_MESSAGE)
        except (TimeoutError, BlockingIOError):
            return None
        except OSError:
            if self._socket.fileno() < 0:
                return None
            raise


class EventReceiver(DatagramReceiver):
    """The receiving end, one per group."""

    def next(self, seconds: float) -> Event | None:
        """The next event, or None when none has come for so long. Raises `ValueError` for no event."""
        message = self.receive(seconds)
        return None if message is None else from_json(message)


class EventSender:
    """The sending end, one per rank."""

    def __init__(self, path: Path, rank: int) -> None:
        self._path, self._rank = str(path), rank
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)

    def close(self) -> None:
        self._socket.close()

    def send(self, event: Event) -> None:
        """Send an event with the sender's rank; drop it when the socket is full."""
        with contextlib.suppress(OSError):
            self._socket.sendto(self._packed(event), self._path)

    def send_reliable(self, event: Event) -> None:
        """Send an event that must not be lost to a full socket: wait for room while the receiver exists."""
        data = self._packed(event)
        with contextlib.suppress(OSError):
            self._socket.setblocking(True)
            self._socket.sendto(data, self._path)
        self._socket.setblocking(False)

    def _packed(self, event: Event) -> bytes:
        return replace(event, rank=self._rank).to_json().encode()
