"""The sending end of metrics: from ranks and supervisors to their agent, over its unix datagram socket.

`record` only adds to a buffer, which is sent now and then. What the socket has no room for stays in the
buffer for the next time, so counts stay right and nobody ever waits for the agent.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from infra.metrics import KINDS

SOCKET = "CHORALE_METRICS_SOCKET"
"""Environment variable of supervisors and ranks: the socket of their agent."""
_EVERY_S = 1.0
_MESSAGE_VALUES = 1_000
"""Values in one message, which keeps it below what a datagram may hold."""
_LABELS = 8
"""A row's name and labels take the room of so many values."""
_BUFFER_VALUES = 10_000
"""Values that are buffered for an agent that does not receive; later ones are dropped."""
_WAIT_S = 1.0

_Key = tuple[str, tuple[tuple[str, str], ...]]


def metrics_path(directory: Path) -> Path:
    """The agent's socket, in a directory of its own."""
    return directory / "metrics"


class MetricsClient:
    """Sends to one agent. Without a path it does nothing. Safe to call from several threads."""

    def __init__(self, path: str | None) -> None:
        self._path = path
        self._buffer: dict[_Key, list[float]] = {}
        self._count = 0
        self._sent_at = 0.0
        self._lock = threading.Lock()

    @classmethod
    def from_environment(cls) -> MetricsClient:
        """The client of a process that an agent has started, itself or through others."""
        return cls(os.environ.get(SOCKET))

    def record(self, name: str, value: float = 1.0, **labels: Any) -> None:
        """A counter's growth, one more value of a histogram, or a gauge's current value."""
        if self._path is None:
            return
        key = name, tuple((label, str(text)) for label, text in labels.items())
        with self._lock:
            values = self._buffer.setdefault(key, [])
            if KINDS[name] == "histogram":
                if self._count < _BUFFER_VALUES:
                    values.append(value)
                    self._count += 1
            elif KINDS[name] == "counter":
                values[:] = [sum(values) + value]
            else:
                values[:] = [value]

    def due(self) -> bool:
        """Whether the last message was sent a while ago."""
        return self._path is not None and time.monotonic() - self._sent_at >= _EVERY_S

    def send(self, *, wait: bool = False) -> None:
        """Send the buffer; with `wait`, give the socket a second to have room for it."""
        if self._path is None:
            return
        with self._lock, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as client:
            self._sent_at = time.monotonic()
            client.settimeout(_WAIT_S if wait else 0.0)
            for message, packed in list(self._messages()):
                try:
                    client.sendto(message, self._path)
                except OSError:
                    break
                for key, count in packed:
                    del self._buffer[key][:count]
            self._buffer = {key: values for key, values in self._buffer.items() if values}
            self._count = sum(map(len, self._buffer.values()))

    def _messages(self) -> Iterator[tuple[bytes, list[tuple[_Key, int]]]]:
        """The whole buffer, in messages; with each, how many values of which series it holds."""
        rows: list[tuple[str, dict[str, str], list[float]]] = []
        packed: list[tuple[_Key, int]] = []
        size = 0
        for key, values in self._buffer.items():
            for start in range(0, len(values), _MESSAGE_VALUES):
                part = values[start : start + _MESSAGE_VALUES]
                if rows and size + len(part) > _MESSAGE_VALUES:
                    yield _message(rows), packed
                    rows, packed, size = [], [], 0
                rows.append((key[0], dict(key[1]), part))
                packed.append((key, len(part)))
                size += len(part) + _LABELS
        if rows:
            yield _message(rows), packed


def _message(rows: list[tuple[str, dict[str, str], list[float]]]) -> bytes:
    return json.dumps({"pid": os.getpid(), "measures": rows}).encode()
