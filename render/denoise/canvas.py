"""The state of the step loop: what a checkpoint holds, and what a group is handed when it changes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from render.denoise.group import Group
from render.plan.geometry import Tiling


@dataclass(frozen=True, kw_only=True)
class Canvas:
    """A whole canvas between two steps, on the host.

    `planes` is [1 + history, C, height, width] float32: the latents in the variance-exploding frame,
    then the earlier predictions that a multistep sampler looks back on, newest first.
    `heard` says how many of those are there yet.
    """

    step: int
    planes: Tensor
    heard: int = 0

    @property
    def latents(self) -> Tensor:
        """[C, height, width]"""
        return self.planes[0]


def gather_planes(planes: Tensor, tiling: Tiling, group: Group) -> Tensor:
    """Put a canvas together from what each rank owns.

    `planes` is this rank's [P, C, box.height, box.width]; returns [P, C, height, width] on the host,
    the same on every rank. A gather of bits: nothing is added up.
    """
    height, width = tiling.grid.height, tiling.grid.width
    regions = [tiling.region(rank) for rank in range(tiling.world_size)]
    longest = max(len(region) for region in regions)
    box, mine = tiling.boxes[group.rank], regions[group.rank]
    places = (mine // width - box.y) * box.width + (mine % width - box.x)
    flat = planes.reshape(planes.shape[0] * planes.shape[1], -1)
    message = flat.new_zeros((flat.shape[0], longest))
    message[:, : len(mine)] = flat[:, torch.from_numpy(places).to(flat.device)]
    messages = group.all_gather(message).wait().cpu()
    whole = torch.empty((flat.shape[0], height * width))
    for rank, region in enumerate(regions):
        whole[:, torch.from_numpy(np.ascontiguousarray(region))] = messages[rank][:, : len(region)]
    return whole.view(planes.shape[0], planes.shape[1], height, width)
