"""The state of the step loop: what a checkpoint holds, and what a group is handed when it changes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from render.denoise.group import Group
from render.plan.geometry import Rect
from render.plan.tiling import Tiling


@dataclass(frozen=True, kw_only=True)
class Canvas:
    """A canvas between two steps, on the host: all of it, or the area that one rank has asked for.

    `planes` is [1 + history, C, area.height, area.width] float32: the latents in the variance-exploding
    frame, then the earlier predictions that a multistep sampler looks back on, newest first, then what the
    stage is anchored to. `heard` says how many predictions are there yet.
    """

    step: int
    planes: Tensor
    area: Rect
    heard: int = 0
    anchored: bool = False
    """The last plane is the enlarged picture that the stage started from, before it was noised."""
    said: Tensor | None = None
    """What every rank has heard of the whole canvas for the next step, flat float16 (see `chorus`)."""

    @property
    def latents(self) -> Tensor:
        """[C, area.height, area.width]"""
        return self.planes[0]


@dataclass(frozen=True, kw_only=True)
class Piece:
    """An area of a stage's finished latents, [C, area.height, area.width] on the host."""

    latents: Tensor
    area: Rect
    canvas: Rect
    """The whole that it is a piece of."""

    def read(self, part: Rect) -> Tensor:
        """The latents of a part of the area, in the canvas's coordinates."""
        rows, cols = within(part, self.area)
        return self.latents[:, rows, cols]


def within(part: Rect, area: Rect) -> tuple[slice, slice]:
    """Where a part of the canvas lies in a tensor that holds `area` of it."""
    y, x = part.y - area.y, part.x - area.x
    assert y >= 0 and x >= 0 and y + part.height <= area.height and x + part.width <= area.width
    return slice(y, y + part.height), slice(x, x + part.width)


def gather_planes(planes: Tensor, tiling: Tiling, group: Group, area: Rect) -> Tensor:
    """Bring an area of the canvas together from what each rank owns.

    `planes` is this rank's [P, C, box.height, box.width]; returns [P, C, area.height, area.width] on the
    host. Ranks may ask for different areas. A gather of bits: nothing is added up; and plane by plane, so
    that no rank ever has to hold a canvas which it has not asked for.
    """
    width = tiling.grid.width
    regions = [torch.from_numpy(tiling.region(rank)) for rank in range(tiling.world_size)]
    longest = max(len(region) for region in regions)
    box, mine = tiling.boxes[group.rank], regions[group.rank]
    sent = ((mine // width - box.y) * box.width + (mine % width - box.x)).to(planes.device)
    taken = [_inside(region, area, width) for region in regions]
    flat = planes.reshape(planes.shape[0] * planes.shape[1], -1)
    answer = torch.empty((len(flat), area.area))
    for number, plane in enumerate(flat):
        message = plane.new_zeros(longest)
        message[: len(mine)] = plane[sent]
        messages = group.all_gather(message).wait().cpu()
        for rank, (heard, places) in enumerate(taken):
            answer[number, places] = messages[rank, heard]
    return answer.view(*planes.shape[:2], area.height, area.width)


def _inside(region: Tensor, area: Rect, width: int) -> tuple[Tensor, Tensor]:
    """Of flat canvas places, those that lie in the area: (positions in `region`, flat places in the area)."""
    y, x = region // width - area.y, region % width - area.x
    heard = torch.nonzero((y >= 0) & (y < area.height) & (x >= 0) & (x < area.width)).flatten()
    return heard, y[heard] * area.width + x[heard]
