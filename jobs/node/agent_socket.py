"""The agent's unix socket: its Celery worker hands it messages and gets an answer to each."""

from __future__ import annotations

import json
import logging
import socket
import socketserver
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

ANSWER_S = 10.0
"""A worker waits so long for its agent."""
_RETRY_S = 10.0
"""Between two tries to bind the socket, and between two looks whether it is still there."""
_MAX_BYTES = 4096
_log = logging.getLogger(__name__)
Answer = Callable[[Mapping[str, Any]], str]


def socket_path(home: Path, node: str) -> Path:
    """The socket of a node's agent."""
    return home / f"{node}.agent"


def ask(path: str, request: Mapping[str, Any]) -> str:
    """The agent's answer to a request, or a sentence that says that there was none."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.settimeout(ANSWER_S)
            client.connect(path)
            client.sendall(json.dumps(request).encode() + b"\n")
            answer = client.makefile("rb").readline(_MAX_BYTES)
    except OSError as exc:
        return f"the agent does not answer ({exc})"
    return answer.decode().strip() or "the agent does not answer"


class AgentSocket:
    """Serves the socket from threads of its own. Without it the agent polls the database."""

    def __init__(self, path: Path, answer: Answer) -> None:
        self._path, self._answer = path, answer

    def start(self) -> None:
        threading.Thread(target=self._run, daemon=True, name="agent socket").start()

    def _run(self) -> None:
        """Nothing ends this thread."""
        told = ""
        while True:
            try:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._path.unlink(missing_ok=True)
                with _Server(self._path, self._answer) as server:
                    server.serve_forever(_RETRY_S)
            except Exception as exc:
                if str(exc) != told:
                    _log.warning("no messages at %s (%s); the agent polls", self._path, exc)
                told = str(exc)
                time.sleep(_RETRY_S)


class _Gone(Exception):
    """The socket's file was deleted, for instance with its folder."""


class _Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True

    def __init__(self, path: Path, answer: Answer) -> None:
        super().__init__(str(path), _Handler)
        self.path, self.answer = path, answer

    def service_actions(self) -> None:
        """Called between two requests, and every `_RETRY_S` without any."""
        if not self.path.exists():
            raise _Gone(f"{self.path} was deleted")

    def handle_error(self, request: object, client_address: object) -> None:
        """A worker that went away, or a message that is none of ours."""
        _log.debug("a request of the worker failed", exc_info=True)


class _Handler(socketserver.StreamRequestHandler):
    timeout = ANSWER_S

    def handle(self) -> None:
        request = json.loads(self.rfile.readline(_MAX_BYTES))
        assert isinstance(self.server, _Server)
        self.wfile.write(self.server.answer(request).encode() + b"\n")
