"""A rank's part in `epochs.py`: waits for its epoch, and learns that the epoch has ended."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping
from pathlib import Path

from render.errors import RanksLost
from render.launch.epochs import Epoch
from render.launch.group_directory import epoch_socket_path

MOST_EPOCHS = 100
"""A request that has begun so many epochs makes no progress."""
_SERVER_LOST = "the group's process on this node has ended"


def has_epochs(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether the group of a rank may change: several ranks, all of them on one node."""
    return int(environment.get("WORLD_SIZE", 1)) == int(environment.get("LOCAL_WORLD_SIZE", 1)) > 1


class ServerLost(RanksLost):
    """The process that tells the ranks of their epochs is gone: there is no next one."""


class EpochClient:
    """The connection of a rank to the server of its node. Not for several threads."""

    def __init__(self, directory: Path, rank: int) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(epoch_socket_path(directory)))
        self._pending = b""
        self._epoch: Epoch | None = None
        self._broken = self._joining = 0
        """Numbers of the epochs that were said to be broken, and to be joined."""
        self._send(rank=rank, pid=os.getpid())

    def begin(self) -> Epoch:
        """Wait for the next epoch, which has this rank in it. Raises `ServerLost` when there is none."""
        self._epoch = None
        self._send(ready=True)
        while self._epoch is None:
            self._receive(block=True)
        return self._epoch

    def broken(self) -> bool:
        """Whether the epoch has ended: a rank of it has died."""
        self._receive(block=False)
        return self._epoch is not None and self._broken == self._epoch.number

    def joining(self) -> bool:
        """Whether another rank waits to be in the next epoch."""
        self._receive(block=False)
        return self._epoch is not None and self._joining == self._epoch.number

    def work_apart(self) -> None:
        """Say that the ranks work without each other until the request is done."""
        self._send(apart=True)

    def done(self) -> None:
        """Say that all ranks are done with a request."""
        self._send(done=True)

    def _send(self, **message: object) -> None:
        try:
            self._socket.sendall(json.dumps(message).encode() + b"\n")
        except OSError as exc:
            raise ServerLost(f"{_SERVER_LOST} ({exc})") from exc

    def _receive(self, *, block: bool) -> None:
        try:
            data = self._socket.recv(4096, 0 if block else socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError as exc:
            raise ServerLost(f"{_SERVER_LOST} ({exc})") from exc
        if not data:
            raise ServerLost(_SERVER_LOST)
        *lines, self._pending = (self._pending + data).split(b"\n")
        for line in lines:
            self._take(json.loads(line))

    def _take(self, message: dict[str, object]) -> None:
        match message:
            case {"epoch": int(number), "ranks": list(ranks)}:
                self._epoch = Epoch(number=number, ranks=tuple(ranks))
            case {"broken": int(number)}:
                self._broken = number
            case {"joining": int(number)}:
                self._joining = number
