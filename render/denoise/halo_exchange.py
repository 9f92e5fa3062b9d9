"""The one collective of a step: every rank gathers all border sums and takes the ones it holds.

Behind them a message carries a word, and what a rank says to all beside its borders (`ties`, `chorus`).
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


@dataclass(frozen=True, kw_only=True)
class ReceiveSlice:
    """What this rank takes from one neighbour: places in its message, and places in the own box."""

    rank: int
    source: Tensor
    target: Tensor


@dataclass(frozen=True, kw_only=True)
class HaloExchange:
    """Who says and hears what at one offset of the grid. Indices are flat, int64."""

    outlet: Tensor
    """Places in the own box that are said."""
    longest: int
    """Latents of the longest message; all are padded to it, since gloo gathers equal blocks only. One more
    number follows them, the word, and then what is said to all: of ties, and in the chorus."""
    inlets: tuple[ReceiveSlice, ...]

    def message_bytes(self, tied: Tensor, said: Tensor) -> int:
        """Size of what this rank says, padding included."""
        channels = len(tied)
        return 4 * channels * (self.longest + 1 + tied.shape[1] + _columns(len(said), channels))

    def start(
        self, sums: Tensor, group: Group, word: int, tied: Tensor, said: Tensor
    ) -> AllGatherHandle | None:
        """Start to gather; `sums` is [C, box] int32, complete at the outlet's places. None when alone.

        `word` holds bits that this rank wants all to hear, `tied` [C, n] int32 and `said` float16 numbers, as
        many on every rank.
        """
        if group.world_size == 1:
            return None
        channels = sums.shape[0]
        columns = _columns(len(said), channels)
        behind = self.longest + 1 + tied.shape[1]
        message = sums.new_zeros((channels, behind + columns))
        message[:, : len(self.outlet)] = sums[:, self.outlet]
        message[:, self.longest] = word
        message[:, self.longest + 1 : behind] = tied
        if columns:
            padded = functional.pad(said, (0, 2 * channels * columns - len(said)))
            message[:, behind:] = padded.view(torch.int32).view(channels, columns)
        return group.all_gather(message)

    def finish(
        self, gathering: AllGatherHandle | None, sums: Tensor, word: int, tied: Tensor, said: Tensor
    ) -> tuple[int, Tensor, Tensor]:
        """Wait, and add what the neighbours computed for the latents that this rank holds.

        Returns the bits that any rank has said, and what each has said of ties, [world_size, C, n], and in
        the chorus, [world_size, numbers]; all the same on all ranks. One that is alone hears itself.
        """
        if gathering is None:
            return word, tied[None], said[None]
        messages = gathering.wait()
        for inlet in self.inlets:
            sums[:, inlet.target] += messages[inlet.rank][:, inlet.source]
        words: list[int] = messages[:, 0, self.longest].tolist()
        behind = self.longest + 1 + tied.shape[1]
        heard = messages[:, :, behind:].flatten(1).contiguous().view(torch.float16)[:, : len(said)]
        return reduce(or_, words), messages[:, :, self.longest + 1 : behind], heard


def _columns(numbers: int, channels: int) -> int:
    """Columns of int32 that so many float16 numbers fill, two to each."""
    return -(-numbers // (2 * channels))


@lru_cache(maxsize=2)
def make_halo_exchange(
    tiling: Tiling, rank: int, offset: tuple[int, int], device: torch.device
) -> HaloExchange:
    """Lay out the step's exchange; a function of geometry, so every rank knows it without asking."""
    if tiling.world_size == 1:
        return HaloExchange(outlet=torch.empty(0, dtype=torch.int64), longest=0, inlets=())
    borders = [tiling.border(other, offset) for other in range(tiling.world_size)]

    def index(places: Flat) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(places)).to(device)

    inlets = []
    for other in tiling.neighbours(rank):
        heard, places = _inside_hold(tiling, rank, borders[other])
        if len(heard):
            inlets.append(ReceiveSlice(rank=other, source=index(heard), target=index(places)))
    return HaloExchange(
        outlet=index(_inside_hold(tiling, rank, borders[rank])[1]),
        longest=max(len(border) for border in borders),
        inlets=tuple(inlets),
    )


def _inside_hold(tiling: Tiling, rank: int, border: Flat) -> tuple[Flat, Flat]:
    """Of canvas places, those that the rank holds: (positions in `border`, flat places in its box)."""
    near, places = tiling.surface.inside(border, tiling.boxes[rank])
    held = tiling.halo_mask(rank).ravel()[places]
    return near[held], places[held]
