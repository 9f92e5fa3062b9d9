"""Dilated views of a canvas: each takes every n-th latent of the whole image. Pure integers, no torch.

A canvas of n times the native size has n * n interleaved views, each of about the model's native size
(DemoFusion, Du et al. 2024, section 3.3). The model sees the whole composition in each of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from render.plan.decay import Span, decayed_strength
from render.plan.geometry import Grid


@dataclass(frozen=True, kw_only=True)
class Dilation:
    """`every` * `every` interleaved views of `height` x `width` latents. A canvas that does not divide evenly
    is padded with copies of its last row and column."""

    every: int
    height: int
    width: int

    @property
    def views(self) -> int:
        return self.every**2

    def corner(self, view: int) -> tuple[int, int]:
        """(y, x) of the view's first latent on the canvas."""
        return divmod(view, self.every)

    def views_of(self, rank: int, world_size: int) -> range:
        """The views that a rank evaluates, under all conditions. Ranks differ by at most one view."""
        return range(self.views * rank // world_size, self.views * (rank + 1) // world_size)

    def max_views_per_rank(self, world_size: int) -> int:
        """Number of views of the rank that has the most."""
        return max(len(self.views_of(rank, world_size)) for rank in range(world_size))


def dilation_of(grid: Grid, native: int) -> Dilation | None:
    """The views of a canvas for a model of `native` x `native` latents.

    None where the canvas is of native size, or so elongated that a view of native area would be narrower than
    half the native size, which the model was not trained on.
    """
    every = round(math.sqrt(grid.height * grid.width) / native)
    if every < 2:
        return None
    height, width = -(-grid.height // every), -(-grid.width // every)
    if min(height, width) < native / 2:
        return None
    return Dilation(every=every, height=height, width=width)


def uses_views(strength: float, span: Span, step: int) -> bool:
    """Whether the views are evaluated at a step, that is, whether their decayed strength is above 0."""
    return decayed_strength(strength, span, step) > 0.0


def steps_with_views(strength: float, span: Span) -> Iterator[int]:
    """The steps at which the views are evaluated."""
    return (step for step in range(span.first_step, span.steps) if uses_views(strength, span, step))
