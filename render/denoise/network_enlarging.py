"""A stage's picture, made from a smaller one by a super-resolution network instead of bicubic interpolation.

The network sees a rectangle of the smaller picture that the plan lays out: the pixels that are wanted, and
`NETWORK_REACH` more on each side, from a corner that is a multiple of `NETWORK_ALIGNMENT`
(`render.plan.enlarge_layout`). So the pixels do not depend on the number of ranks, and those of a network
that reads no farther are the pixels of the undivided picture.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional

from render.denoise.resampling import sample
from render.models.enlarger import Enlarger
from render.plan.enlarge_layout import EnlargeLayout, network_scale
from render.plan.geometry import Rect

Pixels = Callable[[Rect], Tensor]
"""An area, in the layout's latents -> [1, 3, H, W] pixels in [0, 1]."""


@dataclass(frozen=True)
class NetworkEnlarging:
    """Enlarges the pixels below of one stage."""

    enlarger: Enlarger
    layout: EnlargeLayout
    below: Pixels
    """The pixels of the picture below, by areas of `layout.below`."""

    def __call__(self, area: Rect) -> Tensor:
        """[1, 3, H, W] pixels in [0, 1] of an area of `layout.canvas`."""
        layout = self.layout
        read = layout.source(area)
        large = self.enlarger.enlarge(self.below(read).clamp(0.0, 1.0))
        scale = network_scale(self.enlarger.scale, max(layout.ratios))
        if scale < self.enlarger.scale:
            # A network for four times as much, where twice is wanted: the mean of each four pixels.
            large = functional.avg_pool2d(large, self.enlarger.scale // scale)
        if layout.ratios == (scale, scale):
            return _cut(large, read, area, scale, layout)
        return sample(large, read, area, layout)


def _cut(large: Tensor, read: Rect, area: Rect, scale: int, layout: EnlargeLayout) -> Tensor:
    """The pixels of an area of the new canvas out of those of `read` below, `scale` times as large."""
    pixel = layout.scale_factor
    top, left = (area.y - read.y * scale) * pixel, (area.x - read.x * scale) * pixel
    return large[..., top : top + area.height * pixel, left : left + area.width * pixel]
