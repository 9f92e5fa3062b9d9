"""The sending end of metrics: what ranks and supervisors tell their agent, over its unix datagram socket.

Telling only adds to what waits here; now and then that is sent on. What the socket has no room for just now
waits for the next time, so counts stay right and nobody ever waits for whoever watches.
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
_AT_ONCE = 1_000
"""Values in one message, which keeps it below what a datagram may hold."""
_LABELS = 8
"""A row's name and labels take the room of so many values."""
_MOST_WAITING = 10_000
"""Values that may wait for an agent that does not listen; later ones are dropped."""
_PATIENCE_S = 1.0

_Key = tuple[str, tuple[tuple[str, str], ...]]


def metrics_path(desk: Path) -> Path:
    """The agent's socket, in a folder of its own."""
    return desk / "metrics"


class MetricsClient:
    """Tells one agent. Without a path it does nothing. May be called by several threads."""

    def __init__(self, path: str | None) -> None:
        self._path = path
        self._waiting: dict[_Key, list[float]] = {}
        self._count = 0
        self._sent = 0.0
        self._lock = threading.Lock()

    @classmethod
    def from_environment(cls) -> MetricsClient:
        """The meter of a process that an agent has started, itself or through others."""
        return cls(os.environ.get(SOCKET))

    def tell(self, name: str, value: float = 1.0, **labels: Any) -> None:
        """A counter's growth, one more value of a histogram, or what a gauge says now."""
        if self._path is None:
            return
        key = name, tuple((label, str(said)) for label, said in labels.items())
        with self._lock:
            values = self._waiting.setdefault(key, [])
            if KINDS[name] == "histogram":
                if self._count < _MOST_WAITING:
                    values.append(value)
                    self._count += 1
            elif KINDS[name] == "counter":
                values[:] = [sum(values) + value]
            else:
                values[:] = [value]

    def due(self) -> bool:
        """Was the last message sent a while ago?"""
        return self._path is not None and time.monotonic() - self._sent >= _EVERY_S

    def send(self, *, insist: bool = False) -> None:
        """Send what waits; with `insist`, give the socket a second to have room for it."""
        if self._path is None:
            return
        with self._lock, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as way:
            self._sent = time.monotonic()
            way.settimeout(_PATIENCE_S if insist else 0.0)
            for message, done in list(self._messages()):
                try:
                    way.sendto(message, self._path)
                except OSError:
                    break
                for key, count in done:
                    del self._waiting[key][:count]
            self._waiting = {key: values for key, values in self._waiting.items() if values}
            self._count = sum(map(len, self._waiting.values()))

    def _messages(self) -> Iterator[tuple[bytes, list[tuple[_Key, int]]]]:
        """All that waits, in messages; with each, how many values of which series it holds."""
        rows: list[tuple[str, dict[str, str], list[float]]] = []
        done: list[tuple[_Key, int]] = []
        held = 0
        for key, values in self._waiting.items():
            for at in range(0, len(values), _AT_ONCE):
                part = values[at : at + _AT_ONCE]
                if rows and held + len(part) > _AT_ONCE:
                    yield _packed(rows), done
                    rows, done, held = [], [], 0
                rows.append((key[0], dict(key[1]), part))
                done.append((key, len(part)))
                held += len(part) + _LABELS
        if rows:
            yield _packed(rows), done


def _packed(rows: list[tuple[str, dict[str, str], list[float]]]) -> bytes:
    return json.dumps({"pid": os.getpid(), "measures": rows}).encode()
