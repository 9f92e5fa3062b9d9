"""Messages between the processes of a group: one JSON object a line, on a stream socket."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

_LONGEST = 1 << 20
"""Bytes of a line; a longer one is no message of ours."""


class LineSocket:
    """One end of a connection; it belongs to this object from now on. Not for several threads."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection, self._pending = connection, b""

    @classmethod
    def connect(cls, path: Path) -> LineSocket:
        """A connection to the unix socket at `path`; raises `OSError`."""
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.connect(str(path))
        except OSError:
            connection.close()
            raise
        return cls(connection)

    def fileno(self) -> int:
        return self._connection.fileno()

    def close(self) -> None:
        self._connection.close()

    def send(self, message: dict[str, Any], *, block: bool = False) -> None:
        """Raises `OSError` when the connection has ended, and when `block` is not set and the other side
        takes nothing."""
        data = json.dumps(message).encode() + b"\n"
        self._connection.sendall(data, 0 if block else socket.MSG_DONTWAIT)

    def receive(self, *, block: bool = False) -> list[dict[str, Any]]:
        """The messages that have come, or none. Raises `OSError` when the connection has ended, and for what
        is no message."""
        try:
            data = self._connection.recv(1 << 16, 0 if block else socket.MSG_DONTWAIT)
        except BlockingIOError:
            return []
        if not data:
            raise ConnectionResetError("the connection has ended")
        *lines, self._pending = (self._pending + data).split(b"\n")
        try:
            messages = [json.loads(line) for line in lines]
        except (ValueError, RecursionError) as exc:
            raise ConnectionAbortedError(f"this is no message ({exc})") from exc
        if len(self._pending) > _LONGEST or not all(isinstance(each, dict) for each in messages):
            raise ConnectionAbortedError("this is no message")
        return messages
