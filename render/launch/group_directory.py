"""The directory through which a group and whoever started it talk: requests are files, events a socket."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import psutil

_PREFIX = "chorale-group-"


class GroupDirectory:
    """A directory that exists as long as the group. Its path is short: a socket's may have 108 characters."""

    def __init__(self) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix=f"{_PREFIX}{os.getpid()}-")
        self.path = Path(self._directory.name)

    def close(self) -> None:
        self._directory.cleanup()


def request_path(directory: Path, number: int) -> Path:
    """The group's requests, numbered from 1."""
    return directory / f"request-{number}.json"


def mark_done(directory: Path, number: int) -> None:
    """Tell the ranks that whoever has started the group knows that a request is done."""
    _done_path(directory, number).touch()


def is_done(directory: Path, number: int) -> bool:
    """Whether a request was marked as done: nothing of it is to be repeated."""
    return _done_path(directory, number).exists()


def _done_path(directory: Path, number: int) -> Path:
    return directory / f"done-{number}"


def stop_path(directory: Path, number: int) -> Path:
    """A file that asks for a stop of one request of several that are rendered at once."""
    return directory / f"stop-{number}"


def rendezvous_path(directory: Path) -> Path:
    """What the launcher has to know, until it has read it."""
    return directory / "rendezvous.json"


def events_path(directory: Path) -> Path:
    """The socket that the ranks send their events to."""
    return directory / "events"


def texts_path(directory: Path) -> Path:
    """Encoded prompts, for the ranks that do not encode."""
    return directory / "texts"


def fork_socket_path(directory: Path) -> Path:
    """The socket of the process that ranks are forked from."""
    return directory / "forks"


def epoch_socket_path(directory: Path) -> Path:
    """The socket where ranks learn which of them render together."""
    return directory / "epochs"


def uplink_path(directory: Path) -> Path:
    """The socket of a node's launcher that leads to the epochs of the group's first node."""
    return directory / "uplink"


def leave_path(directory: Path) -> Path:
    """A file that is there when the other nodes of the group are to go on without this one."""
    return directory / "leave"


def open_path(directory: Path) -> Path:
    """Where the launcher of a group of one node is to let ranks of other nodes in, until it has read it."""
    return directory / "open.json"


def move_path(directory: Path) -> Path:
    """Which node is the group's first one from now on, until the launcher has switched to it ..."""
    return directory / "move.json"


def moved_path(directory: Path) -> Path:
    """... and then."""
    return directory / "moved.json"


def log_path(directory: Path) -> Path:
    """What torchrun prints, and the ranks until a request names a log."""
    return directory / "log"


def remove_stale_group_directories() -> None:
    """Remove the directories of processes that were killed before they could."""
    for directory in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        pid = directory.name.removeprefix(_PREFIX).partition("-")[0]
        if pid.isdigit() and not psutil.pid_exists(int(pid)):
            shutil.rmtree(directory, ignore_errors=True)
