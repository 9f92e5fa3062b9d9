"""A rank's part in `epochs.py`: waits for its epoch, and learns that the epoch has ended."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from render.errors import Dismissed, RanksLost
from render.launch.group_directory import epoch_socket_path
from render.launch.line_socket import LineSocket

MOST_EPOCHS = 100
"""A request that has begun so many epochs makes no progress."""
_SERVER_LOST = "the group's process on this node has ended, or has lost the group's first node"


def has_epochs(environment: Mapping[str, str]) -> bool:
    """Whether a process is a rank of a group, which may change."""
    return "WORLD_SIZE" in environment


@dataclass(frozen=True, kw_only=True)
class Epoch:
    """The ranks that render together, as one of them is told."""

    number: int
    ranks: tuple[int, ...]
    """Ascending."""
    first_node: int
    """The node that has the group's store."""
    leads_node: bool
    """Whether this rank is the first one of its node."""
    spans_nodes: bool
    """Whether there are ranks on other nodes."""


class ServerLost(RanksLost):
    """The process that tells the ranks of their epochs is gone: there is no next one."""


class EpochClient:
    """The connection of a rank to the server of its node. Not for several threads."""

    def __init__(self, directory: Path, rank: int) -> None:
        self._lines = LineSocket.connect(epoch_socket_path(directory))
        self._epoch: Epoch | None = None
        self._dismissed = False
        self._broken = self._joining = self._finished = 0
        """Numbers of the epochs that were said to be broken and to be joined, and of a finished request."""
        self._send(rank=rank, pid=os.getpid())

    def begin(self, request: int, *, lost: bool) -> Epoch | None:
        """Wait for the next epoch, which has this rank in it. None if the request is finished already.

        `lost` says that this rank did not reach the others any more. Raises `ServerLost` when there is none,
        and `Dismissed` when this rank is in none any more.
        """
        self._epoch, self._finished = None, 0
        self._send(ready=True, lost=lost, request=request)
        while self._epoch is None and self._finished != request:
            self._receive(block=True)
            if self._dismissed:
                raise Dismissed("this rank leaves its group")
        return self._epoch

    def broken(self) -> bool:
        """Whether the epoch has ended: a rank of it has died."""
        self._receive(block=False)
        return self._epoch is not None and self._broken == self._epoch.number

    def joining(self) -> bool:
        """Whether another rank waits to be in the next epoch, or one of this is to leave."""
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
            case {"epoch": int(number), "ranks": list(ranks), "first": int(first), "leader": bool(leads)}:
                self._epoch = Epoch(
                    number=number,
                    ranks=tuple(ranks),
                    first_node=first,
                    leads_node=leads,
                    spans_nodes=message.get("spans") is True,
                )
                # Another first node may count on from a number that was there before.
                self._broken = self._joining = 0
            case {"broken": int(number)}:
                self._broken = number
            case {"joining": int(number)}:
                self._joining = number
            case {"finished": int(number)}:
                self._finished = number
            case {"dismissed": True}:
                self._dismissed = True
