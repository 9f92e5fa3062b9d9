"""The canvas between two steps, and areas of it: what a checkpoint holds and what a changed group
receives."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from render.distributed import Group
from render.plan.geometry import Rect
from render.plan.tiling import Tiling
from render.plan.topology import Topology
from render.spec.source_image import SourceImage

_CHUNK = 1 << 16
"""Numbers of a rank that are gathered at a time, or one plane if that is more."""


@dataclass(frozen=True, kw_only=True)
class Canvas:
    """A canvas between two steps, on the host: all of it, or an area.

    `planes` is [P, C, area.height, area.width] float32. First come the latents in the variance-exploding
    frame, then the sampler's history (earlier predictions, newest first), then the two reference planes.
    """

    step: int
    """Steps that are done."""
    planes: Tensor
    area: Rect
    history: int = 0
    """Number of history planes."""
    has_reference: bool = False
    """Whether the last two planes are a `Reference`."""
    hook_state: Tensor | None = None
    """State of the guidance hooks for the next step, flat float16, the same on every rank (see
    `render.guidance.hook`)."""

    @property
    def latents(self) -> Tensor:
        """[C, area.height, area.width]"""
        return self.planes[0]


@dataclass(frozen=True, kw_only=True)
class Reference:
    """The enlarged image that a stage started from, before it was noised."""

    latents: Tensor
    """[C, area.height, area.width]"""
    colors: Tensor
    """[C, area.height, area.width], see `render.guidance.color_correction.color_plane`."""


@dataclass(frozen=True, kw_only=True)
class LatentRegion:
    """An area of a stage's finished latents, [C, area.height, area.width] on the host."""

    latents: Tensor
    area: Rect
    canvas: Topology
    """The canvas that the area is a part of."""
    colors: Tensor | None = None
    """[4 or more, area.height, area.width]: the colors that the decoded pixels are corrected to, see
    `render.guidance.color_correction.color_plane`. None for no correction."""
    kept: SourceImage | None = None
    """The init image whose kept pixels are put over the decoded ones; None where nothing is kept."""

    def read(self, part: Rect) -> Tensor:
        """The latents of a part of the area, in the canvas's coordinates."""
        return cut_out(self.latents, self.area, part, self.canvas)

    def read_colors(self, part: Rect) -> Tensor:
        """The colors of a part of the area."""
        assert self.colors is not None, "the region has no colors"
        return cut_out(self.colors, self.area, part, self.canvas)


def cut_out(planes: Tensor, area: Rect, part: Rect, canvas: Topology) -> Tensor:
    """A part of the canvas, [.., part.height, part.width], from planes that hold `area` of it.

    A view if the part lies in the area in one piece, else a copy that is put together.
    """
    pieces = list(canvas.intersect(part, area))
    if len(pieces) == 1:
        cut = planes[..., *pieces[0][1]]
    else:
        cut = planes.new_empty((*planes.shape[:-2], part.height, part.width))
        for there, here in pieces:
            cut[..., *there] = planes[..., *here]
    covered = sum((rows.stop - rows.start) * (cols.stop - cols.start) for (rows, cols), _ in pieces)
    assert covered == part.area and cut.shape[-2:] == (part.height, part.width), "the area holds the part"
    return cut


def gather_planes(planes: Tensor, tiling: Tiling, group: Group, area: Rect) -> Tensor:
    """Gather an area of the canvas from the regions of all ranks. All ranks must call it.

    `planes` is this rank's [P, C, box.height, box.width]; returns [P, C, area.height, area.width] on the
    host. Ranks may pass different areas. Bits are gathered and nothing is added up. Large planes are gathered
    a few at a time, so that no rank holds a canvas that it has not requested.
    """
    surface = tiling.surface
    regions = [tiling.region(rank) for rank in range(tiling.world_size)]
    box, own_region = tiling.boxes[group.rank], regions[group.rank]
    sent = torch.from_numpy(surface.inside(own_region, box)[1]).to(planes.device)
    received = [[torch.from_numpy(each) for each in surface.inside(region, area)] for region in regions]
    flat = planes.reshape(planes.shape[0] * planes.shape[1], -1)
    gathered = torch.empty((len(flat), area.area))
    per_chunk = max(1, _CHUNK // tiling.longest_region)
    for first in range(0, len(flat), per_chunk):
        chunk = flat[first : first + per_chunk]
        message = chunk.new_zeros((len(chunk), tiling.longest_region))
        message[:, : len(own_region)] = chunk[:, sent]
        messages = group.all_gather(message).wait().cpu()
        for rank, (source, target) in enumerate(received):
            gathered[first : first + len(chunk), target] = messages[rank][:, source]
    return gathered.view(*planes.shape[:2], area.height, area.width)
