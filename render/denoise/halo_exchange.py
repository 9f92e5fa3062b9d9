"""The one collective of a step: each rank gathers all border sums and takes those that its halo needs.

A message also carries the rank's control flags, the messages of the guidance hooks and, in a group that may
change, the latents of the rank's own region (see `replica.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache, reduce
from operator import or_

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from render.distributed import AllGatherHandle, Group
from render.plan.geometry import Flat
from render.plan.tiling import Tiling

_BYTES = 4


@dataclass(frozen=True, kw_only=True)
class ReceiveSlice:
    """What this rank takes from one neighbour's message. Indices are flat, int64."""

    rank: int
    source: Tensor
    """Positions in the neighbour's message."""
    target: Tensor
    """Places in the own area."""


@dataclass(frozen=True, kw_only=True)
class HaloExchange:
    """What this rank sends and receives at one offset of the grid. Indices are flat, int64.

    A message is [C, columns] int32: `max_border` columns of border sums, one column of control flags, then
    the guidance message, which fills whole columns, then the replica, which does so by itself.
    """

    send_indices: Tensor
    """Places in the own area that are sent."""
    max_border: int
    """Latents of the largest border of all ranks. All messages are padded to it, since a gather takes blocks
    of one size."""
    receive: tuple[ReceiveSlice, ...]

    def message_bytes(self, channels: int, guidance: Tensor) -> int:
        """Size of the message that this rank sends, with padding."""
        return _BYTES * channels * (self.max_border + 1 + _columns(guidance, channels))

    def start(
        self, sums: Tensor, group: Group, flags: int, guidance: Tensor, replica: Tensor | None = None
    ) -> AllGatherHandle | None:
        """Start the all-gather; None on a single rank.

        `sums` is [C, latents of the own area] int32, complete at the send indices.
        `flags` are the control flags of this rank. `guidance` is flat int32, of one length on all ranks;
        `replica` is [P * C, n] float32, of one shape on all ranks.
        """
        if group.world_size == 1:
            return None
        channels, columns = len(sums), _columns(guidance, len(sums))
        end = self.max_border + 1
        message = sums.new_zeros((channels, end + columns))
        message[:, : len(self.send_indices)] = sums[:, self.send_indices]
        message[:, self.max_border] = flags
        if columns:
            padded = functional.pad(guidance, (0, channels * columns - len(guidance)))
            message[:, end:] = padded.view(channels, columns)
        if replica is not None:
            message = torch.cat([message, replica.view(torch.int32).view(channels, -1)], dim=1)
        return group.all_gather(message)

    def finish(
        self, handle: AllGatherHandle | None, sums: Tensor, flags: int, guidance: Tensor
    ) -> tuple[int, Tensor, Tensor]:
        """Wait, and add the neighbours' sums to `sums` [C, n] for the latents that this rank holds.

        Returns the control flags, OR-ed across ranks, the guidance messages [world_size, length] int32, and
        the replicas [world_size, C, P * n] int32, empty where none were sent. All are the same on all ranks.
        """
        if handle is None:
            return flags, guidance[None], sums.new_empty((1, len(sums), 0))
        messages = handle.wait()
        for part in self.receive:
            sums[:, part.target] += messages[part.rank][:, part.source]
        all_flags: list[int] = messages[:, 0, self.max_border].tolist()
        end = self.max_border + 1 + _columns(guidance, len(sums))
        received = messages[:, :, self.max_border + 1 : end].flatten(1)[:, : len(guidance)]
        return reduce(or_, all_flags), received, messages[:, :, end:]


def _columns(guidance: Tensor, channels: int) -> int:
    return -(-len(guidance) // channels)


@lru_cache(maxsize=2)
def make_halo_exchange(
    tiling: Tiling, rank: int, offset: tuple[int, int], device: torch.device
) -> HaloExchange:
    """The exchange at an offset of the grid. It follows from the geometry, so ranks agree without
    messages."""
    if tiling.world_size == 1:
        return HaloExchange(send_indices=torch.empty(0, dtype=torch.int64), max_border=0, receive=())
    borders = [tiling.border(other, offset) for other in range(tiling.world_size)]

    def index(places: Flat) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(places)).to(device)

    receive = []
    for other in tiling.neighbours(rank):
        source, target = _inside_halo(tiling, rank, borders[other])
        if len(source):
            receive.append(ReceiveSlice(rank=other, source=index(source), target=index(target)))
    return HaloExchange(
        send_indices=index(_inside_halo(tiling, rank, borders[rank])[1]),
        max_border=max(len(border) for border in borders),
        receive=tuple(receive),
    )


def _inside_halo(tiling: Tiling, rank: int, border: Flat) -> tuple[Flat, Flat]:
    """The places of a border that the rank holds: (positions in `border`, flat places in the rank's area)."""
    near, places = tiling.surface.inside(border, tiling.boxes[rank])
    held = tiling.halo_mask(rank).ravel()[places]
    return near[held], places[held]
