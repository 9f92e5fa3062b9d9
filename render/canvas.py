"""The state of the step loop: what a checkpoint holds, and what a group is handed when it changes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from render.distributed import Group
from render.plan.geometry import Rect
from render.plan.tiling import Tiling
from render.plan.topology import Topology

_TOGETHER = 1 << 16
"""Numbers of a rank that are gathered at a time, or one plane where that is more."""


@dataclass(frozen=True, kw_only=True)
class Canvas:
    """A canvas between two steps, on the host: all of it, or the area that one rank has asked for.

    `planes` is [1 + history, C, area.height, area.width] float32: the latents in the variance-exploding
    frame, then the earlier predictions that a multistep sampler looks back on, newest first, then the two
    that the stage is anchored to. `heard` says how many predictions are there yet.
    """

    step: int
    planes: Tensor
    area: Rect
    heard: int = 0
    anchored: bool = False
    """The last two planes are the enlarged picture that the stage started from, before it was noised: its
    latents, and its colours (`render.guidance.color_correction.colour_plane`)."""
    said: Tensor | None = None
    """What every rank has heard of the whole canvas for the next step, flat float16 (see `chorus`)."""

    @property
    def latents(self) -> Tensor:
        """[C, area.height, area.width]"""
        return self.planes[0]


@dataclass(frozen=True, kw_only=True)
class LatentRegion:
    """An area of a stage's finished latents, [C, area.height, area.width] on the host."""

    latents: Tensor
    area: Rect
    canvas: Topology
    """The whole that it is a piece of."""
    colours: Tensor | None = None
    """[4 or more, area.height, area.width], a `colour_plane`: what it has where it is decoded, and by what
    share. None where that is what the decoder makes."""

    def read(self, part: Rect) -> Tensor:
        """The latents of a part of the area, in the canvas's coordinates."""
        return cut_out(self.latents, self.area, part, self.canvas)

    def read_colours(self, part: Rect) -> Tensor:
        """The colours of a part of the area."""
        assert self.colours is not None, "it has none"
        return cut_out(self.colours, self.area, part, self.canvas)


def cut_out(planes: Tensor, area: Rect, part: Rect, canvas: Topology) -> Tensor:
    """A part of the canvas, [.., part.height, part.width], from planes that hold `area` of it.

    A view where it lies there in one piece, else a copy that is put together.
    """
    pieces = list(canvas.intersect(part, area))
    if len(pieces) == 1:
        answer = planes[..., *pieces[0][1]]
    else:
        answer = planes.new_empty((*planes.shape[:-2], part.height, part.width))
        for there, here in pieces:
            answer[..., *there] = planes[..., *here]
    found = sum((rows.stop - rows.start) * (cols.stop - cols.start) for (rows, cols), _ in pieces)
    assert found == part.area and answer.shape[-2:] == (part.height, part.width), "the area holds the part"
    return answer


def gather_planes(planes: Tensor, tiling: Tiling, group: Group, area: Rect) -> Tensor:
    """Bring an area of the canvas together from what each rank owns.

    `planes` is this rank's [P, C, box.height, box.width]; returns [P, C, area.height, area.width] on the
    host. Ranks may ask for different areas. A gather of bits: nothing is added up; and a few planes at a time
    where they are large, so that no rank ever has to hold a canvas which it has not asked for.
    """
    surface = tiling.surface
    regions = [tiling.region(rank) for rank in range(tiling.world_size)]
    box, mine = tiling.boxes[group.rank], regions[group.rank]
    sent = torch.from_numpy(surface.inside(mine, box)[1]).to(planes.device)
    taken = [[torch.from_numpy(each) for each in surface.inside(region, area)] for region in regions]
    flat = planes.reshape(planes.shape[0] * planes.shape[1], -1)
    answer = torch.empty((len(flat), area.area))
    together = max(1, _TOGETHER // tiling.longest_region)
    for first in range(0, len(flat), together):
        some = flat[first : first + together]
        message = some.new_zeros((len(some), tiling.longest_region))
        message[:, : len(mine)] = some[:, sent]
        messages = group.all_gather(message).wait().cpu()
        for rank, (heard, places) in enumerate(taken):
            answer[first : first + len(some), places] = messages[rank][:, heard]
    return answer.view(*planes.shape[:2], area.height, area.width)
