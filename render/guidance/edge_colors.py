"""What is painted around a photograph takes the photograph's colors where they meet.

A model that continues a photograph sees its ground and still paints one a little warmer or darker, which
shows as a soft edge. Where the photograph fades (`SourceImage`), both are known, in latents: the source's
own and those that the model would rather have. Their difference, averaged over blocks along the edge, is
added to what is painted, in full at the edge and less farther out. (Gradient-domain cloning, Perez et al.
2003, by weights that fall with the distance in place of a linear system, as Farbman et al. 2011 do it.)

It is done once, on the finished latents of a stage: the stages above start from them and keep their colors.
"""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from render.distributed import Group
from render.guidance.hook import GuidanceHook, StageContext
from render.guidance.kept_pixels import latent_weights
from render.plan.stages import Stage
from render.plan.topology import topology_of
from render.spec import Spec
from render.spec.source_image import SourceImage

BLOCKS = 32
"""Blocks along the longer side of the canvas, over each of which the difference is averaged."""
SHORTEST_BLOCK = 4
"""Latents."""
REACH = 0.5
"""Where half of the difference is left, as a share of the canvas's shorter side."""
_UNITS = 1 << 16
"""Fixed-point units of a latent's difference, of which sums are exact on any number of ranks."""
_LARGEST = 64.0


class EdgeColors(GuidanceHook):
    """Moves the finished latents around a photograph towards its colors. It changes no step."""

    def __init__(self, context: StageContext, source: SourceImage, reference: Tensor) -> None:
        """`reference` is [C, area.height, area.width], what the stage started from: the source's own latents
        where it is kept."""
        self._context, self._source, self._reference = context, source, reference
        self._canvas = topology_of(context.stage.grid)
        longest = max(self._canvas.height, self._canvas.width)
        self._block = max(SHORTEST_BLOCK, -(-longest // BLOCKS))

    @classmethod
    def needs_reference(cls, spec: Spec, stage: Stage) -> bool:
        return spec.kept is not None and not spec.kept.stands_free

    @classmethod
    def create(cls, context: StageContext) -> Self | None:
        source = context.spec.kept
        if source is None or source.stands_free or context.reference is None:
            return None
        return cls(context, source, context.reference.latents)

    def adjust_finished(self, x: Tensor, group: Group) -> Tensor:
        pixel = self._context.adapter.info.scale_factor
        kept = latent_weights(self._source, self._canvas, pixel, self._context.area).to(x.device)
        sums = group.all_gather(self._sums(x, kept)).wait().cpu().sum(0)
        edge = sums[:, sums[0] > 0]
        if not edge.shape[1]:
            return x
        return x + self._spread(edge, x) * (1.0 - kept)

    def _sums(self, x: Tensor, kept: Tensor) -> Tensor:
        """[3 + C, blocks] int64, over this rank's latents at the edge: the sums of how much of each is
        painted, of its row and its column on the canvas times that, and of what it misses of the source's."""
        canvas, area = self._canvas, self._context.area
        region = self._context.tiling.region(self._context.rank)
        numbers, places = (
            torch.from_numpy(each).to(x.device) for each in self._context.tiling.surface.inside(region, area)
        )
        painted = ((1.0 - kept.flatten()[places]) * _UNITS).round().long()
        fades = (painted > 0) & (painted < _UNITS)
        places, painted = places[fades], painted[fades]
        flat = torch.from_numpy(region).to(x.device)[numbers[fades]]
        rows, columns = flat // canvas.width, flat % canvas.width
        across = -(-canvas.width // self._block)
        blocks = rows // self._block * across + columns // self._block
        missing = self._reference.flatten(1)[:, places] - x.flatten(1)[:, places]
        units = (missing.clamp(-_LARGEST, _LARGEST) * _UNITS).round().long()
        values = torch.cat([torch.stack([painted, painted * rows, painted * columns]), units])
        sums = values.new_zeros((len(values), -(-canvas.height // self._block) * across))
        return sums.index_add_(1, blocks, values)

    def _spread(self, edge: Tensor, x: Tensor) -> Tensor:
        """[C, area.height, area.width] to be added, from the sums of the blocks at the edge.

        A mean weighted by the inverse cube of the distance, with a constant weight of nothing that takes over
        farther out. Elementwise, so that it does not depend on the area's shape.
        """
        area, side = self._context.area, min(self._canvas.height, self._canvas.width)
        # A latent that is half kept misses half of what it would miss if it were painted.
        edge = edge.double()
        counts, middles = edge[0] / _UNITS, edge[1:3] / edge[0]
        means = edge[3:] / edge[0]
        rows = torch.arange(area.y, area.y + area.height, device=x.device, dtype=torch.float32)
        columns = torch.arange(area.x, area.x + area.width, device=x.device, dtype=torch.float32)
        # The weight that a long straight edge has at the distance of `REACH`.
        density = float(counts.sum()) / (len(counts) * self._block)
        weights = torch.full((area.height, area.width), 2 * density / (REACH * side) ** 2, device=x.device)
        added = torch.zeros_like(x)
        blocks = (each.tolist() for each in (counts, *middles, means.T))
        for count, row, column, values in zip(*blocks, strict=True):
            down = _distances(rows, row, self._canvas.height if self._canvas.wrap_y else None)
            along = _distances(columns, column, self._canvas.width if self._canvas.wrap_x else None)
            squared = (down * down + self._block**2)[:, None] + (along * along)[None]
            weight = count / (squared * squared.sqrt())
            weights += weight
            for channel, value in enumerate(values):
                added[channel] += weight * value
        return added / weights


def _distances(places: Tensor, middle: float, length: int | None) -> Tensor:
    """Along one axis; `length` is that of an axis that wraps."""
    apart = (places - middle).abs()
    return apart if length is None else torch.minimum(apart % length, (length - apart % length))
