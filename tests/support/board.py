"""A board as a real process, and requests to it that say exactly what is sent."""

from __future__ import annotations

import http.client
import json
import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from subprocess import Popen
from typing import Any
from urllib.parse import urlsplit

from tests.support.cli import start, wait_until


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class RunningBoard:
    address: str
    """Ends with a slash."""
    log: Path

    def ask(
        self, path: str, method: str = "GET", body: bytes | dict[str, Any] | None = None, **headers: str
    ) -> Answer:
        """One request; a mapping goes as JSON, and header names are written with underscores."""
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if isinstance(body, dict):
            body = json.dumps(body).encode()
            sent.setdefault("content-type", "application/json")
        connection = http.client.HTTPConnection(urlsplit(self.address).netloc, timeout=30)
        try:
            connection.request(method, path, body, sent)
            answer = connection.getresponse()
            known = {name.lower(): value for name, value in answer.getheaders()}
            return Answer(answer.status, known, answer.read())
        finally:
            connection.close()


@contextmanager
def running_board(folder: Path, *words: str, **environment: str) -> Iterator[RunningBoard]:
    """`chorale WORDS`, which serves a board, until the block ends; its files are in the folder."""
    log = folder / "board.log"
    with log.open("w") as file:
        process = start(*words, log=file, XDG_DATA_HOME=str(folder), **environment)
    try:
        yield RunningBoard(wait_until(lambda: _address(process, log)), log)
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, log.read_text()


def _address(process: Popen[str], log: Path) -> str | None:
    assert process.poll() is None, log.read_text()
    found = re.search(r"Board at (\S+) ", log.read_text())
    return found[1] if found else None
