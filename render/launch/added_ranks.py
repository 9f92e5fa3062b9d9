"""Ranks that are added to a group while it renders, and ranks that it gives up: orders to the fork server."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from render.launch.group_directory import fork_socket_path

LOCAL_RANK = "LOCAL_RANK"
"""torchrun's; ranks that are added to a group go on counting."""
_ADDED = "CHORALE_ADDED_RANK"
"""Set for a rank that was added to a group that renders."""
_SLOT = "CHORALE_SLOT"
"""The slot of an added rank; a request knows those of the others."""
_DEVICE = "CHORALE_LOCAL_DEVICE"
"""Which of the GPUs that an added rank sees is its own; the others' is that of their local rank."""
REQUESTS_BEFORE = "CHORALE_REQUESTS_BEFORE"
"""How many requests the group had before the first one of the node of an added rank."""
_ADD, _REMOVE = "add", "remove"


@dataclass(frozen=True, kw_only=True)
class AddedRank:
    """A rank that is to join a group that renders."""

    local_rank: int
    slot: int
    gpu: str | None = None
    """As CUDA_VISIBLE_DEVICES takes it; None for a CPU."""

    def environment(self) -> dict[str, str]:
        """What its environment has in place of that of the others."""
        gpu = {} if self.gpu is None else {"CUDA_VISIBLE_DEVICES": self.gpu, _DEVICE: "0"}
        return {LOCAL_RANK: str(self.local_rank), _SLOT: str(self.slot), _ADDED: "1", **gpu}


def joining_rank(environment: Mapping[str, str]) -> dict[str, str]:
    """What a rank has in its environment that torchrun has started on a node which joins a group."""
    return {LOCAL_RANK: environment[LOCAL_RANK], _ADDED: "1"}


@dataclass(frozen=True, kw_only=True)
class Order:
    """What whoever has started a group wants of its fork server on this node."""

    add: tuple[Mapping[str, str], ...] = ()
    """For each rank to add: what its environment has in place of that of the others."""
    remove: tuple[int, ...] = ()
    """Local ranks that are to leave between two steps."""

    def send(self, directory: Path) -> None:
        """Send it to the server of a group's directory. Raises `OSError` when that is gone."""
        with socket.socket(socket.AF_UNIX) as server:
            server.connect(str(fork_socket_path(directory)))
            values = {_ADD: [dict(each) for each in self.add], _REMOVE: self.remove}
            server.sendall(json.dumps(values).encode() + b"\n")

    @classmethod
    def found_in(cls, values: Mapping[str, Any]) -> Order | None:
        """The order that was sent; None for what is the environment of a rank."""
        if _ADD not in values:
            return None
        return cls(add=tuple(values[_ADD]), remove=tuple(values[_REMOVE]))


def order_to_add(ranks: Iterable[AddedRank]) -> Order:
    """The order to add ranks."""
    return Order(add=tuple(rank.environment() for rank in ranks))


def requests_before() -> int:
    """What the numbers of the group's requests are larger by than those that this rank reads."""
    return int(os.environ.get(REQUESTS_BEFORE, 0))


def is_added() -> bool:
    """Whether this rank was added to a group that renders, which goes on without it if it fails."""
    return _ADDED in os.environ


def local_device() -> int:
    """The number of this rank's GPU among those that it sees."""
    return int(os.environ.get(_DEVICE, os.environ[LOCAL_RANK]))


def slot_of(slots: Sequence[int]) -> int:
    """The slot of this rank, where `slots` are those of a request by local rank, if it has any."""
    local = int(os.environ[LOCAL_RANK])
    own = os.environ.get(_SLOT)
    return int(own) if own is not None else slots[local] if slots else local
