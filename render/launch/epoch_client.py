"""A rank's part in `epochs.py`: waits for its epoch, and learns that the epoch has ended."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from render.errors import RanksLost
from render.launch.epochs import Epoch
from render.launch.group_directory import epoch_socket_path
from render.launch.line_socket import LineSocket

MOST_EPOCHS = 100
"""A request that has begun so many epochs makes no progress."""
_SERVER_LOST = "the group's process on this node has ended, or has lost the group's first node"


def has_epochs(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether the group of a rank may change: where there are several ranks, on one node or on several."""
    return int(environment.get("WORLD_SIZE", 1)) > 1


class ServerLost(RanksLost):
    """The process that tells the ranks of their epochs is gone: there is no next one."""


class EpochClient:
    """The connection of a rank to the server of its node. Not for several threads."""

    def __init__(self, directory: Path, rank: int) -> None:
        self._lines = LineSocket.connect(epoch_socket_path(directory))
        self._epoch: Epoch | None = None
        self._broken = self._joining = self._finished = 0
        """Numbers of the epochs that were said to be broken and to be joined, and of a finished request."""
        self._send(rank=rank, pid=os.getpid())

    def begin(self, request: int, *, lost: bool) -> Epoch | None:
        """Wait for the next epoch, which has this rank in it. None if the request is finished already.

        `lost` says that this rank did not reach the others any more. Raises `ServerLost` when there is none.
        """
        self._epoch, self._finished = None, 0
        self._send(ready=True, lost=lost, request=request)
        while self._epoch is None and self._finished != request:
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

    def work_apart(self, request: int) -> None:
        """Say that the ranks render a request without each other."""
        self._send(apart=request)

    def done(self, request: int) -> None:
        """Say that all ranks are done with a request."""
        self._send(done=request)

    def _send(self, **message: object) -> None:
        try:
            self._lines.send(message, block=True)
        except OSError as exc:
            raise ServerLost(f"{_SERVER_LOST} ({exc})") from exc

    def _receive(self, *, block: bool) -> None:
        try:
            messages = self._lines.receive(block=block)
        except OSError as exc:
            raise ServerLost(f"{_SERVER_LOST} ({exc})") from exc
        for message in messages:
            self._take(message)

    def _take(self, message: dict[str, object]) -> None:
        match message:
            case {"epoch": int(number), "ranks": list(ranks), "first": int(first)}:
                self._epoch = Epoch(number=number, ranks=tuple(ranks), first_node=first)
                # Another first node may count on from a number that was there before.
                self._broken = self._joining = 0
            case {"broken": int(number)}:
                self._broken = number
            case {"joining": int(number)}:
                self._joining = number
            case {"finished": int(number)}:
                self._finished = number
