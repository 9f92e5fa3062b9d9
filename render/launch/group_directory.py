"""The desk of a group: a folder of whoever has started it, where requests lie and news arrive."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

_PREFIX = "chorale-desk-"


class GroupDirectory:
    """A folder for as long as the group lives. Its path is short: a socket's may have 108 characters."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix=f"{_PREFIX}{os.getpid()}-")
        self.path = Path(self._folder.name)

    def close(self) -> None:
        self._folder.cleanup()

    @property
    def news(self) -> Path:
        return news_path(self.path)


def request_path(desk: Path, number: int) -> Path:
    """Where the group's requests lie, numbered from 1."""
    return desk / f"request-{number}.json"


def news_path(desk: Path) -> Path:
    """The socket on which the group's ranks are heard."""
    return desk / "news"


def remove_stale_group_directories() -> None:
    """Remove the desks of processes that were killed before they could."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        pid = folder.name.removeprefix(_PREFIX).partition("-")[0]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():
            shutil.rmtree(folder, ignore_errors=True)
