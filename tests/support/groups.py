"""Ranks as threads of one process, for what needs no process of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch
from torch import Tensor

from render.distributed import AllGatherHandle

Result = TypeVar("Result")


class _Arrived:
    def __init__(self, group: ThreadGroup, slot: int) -> None:
        self._group, self._slot = group, slot

    def wait(self) -> Tensor:
        return self._group.meeting.collect(self._slot)


class _Meeting:
    """Where threads leave their blocks; a block's number is its place in its rank's own order."""

    def __init__(self, world_size: int) -> None:
        self.world_size = world_size
        self._left: dict[int, dict[int, object]] = {}
        self._changed = threading.Condition()

    def leave(self, slot: int, rank: int, block: object) -> None:
        with self._changed:
            self._left.setdefault(slot, {})[rank] = block
            self._changed.notify_all()

    def blocks(self, slot: int) -> list[object]:
        with self._changed:
            complete = self._changed.wait_for(
                lambda: len(self._left.get(slot, {})) == self.world_size, timeout=120
            )
            assert complete, "a rank did not come to the gather"
            return [self._left[slot][rank] for rank in range(self.world_size)]

    def collect(self, slot: int) -> Tensor:
        return torch.stack([block for block in self.blocks(slot) if isinstance(block, Tensor)])


class ThreadGroup:
    """The `Group` protocol between threads."""

    def __init__(self, rank: int, meeting: _Meeting, epoch: int = 0) -> None:
        self.rank, self.world_size, self.epoch = rank, meeting.world_size, epoch
        self.meeting, self._slot = meeting, 0

    def _leave(self, block: object) -> int:
        self._slot += 1
        self.meeting.leave(self._slot, self.rank, block)
        return self._slot

    def all_gather(self, block: Tensor) -> AllGatherHandle:
        return _Arrived(self, self._leave(block.clone()))

    def all_gather_bytes(self, data: bytes) -> list[bytes]:
        blocks = self.meeting.blocks(self._leave(data))
        return [block for block in blocks if isinstance(block, bytes)]


def thread_groups(world_size: int, epoch: int = 0) -> list[ThreadGroup]:
    """One group object per rank of a new group."""
    meeting = _Meeting(world_size)
    return [ThreadGroup(rank, meeting, epoch) for rank in range(world_size)]


def run_ranks(world_size: int, work: Callable[[ThreadGroup], Result]) -> list[Result]:
    """Run `work(group)` once per rank, at the same time; results in rank order."""
    with ThreadPoolExecutor(world_size) as pool:
        futures = [pool.submit(work, group) for group in thread_groups(world_size)]
        return [future.result() for future in futures]
