"""Dilated views of a canvas: each is the whole picture, seen through every n-th latent. Pure integers.

A canvas that is n times the native size has n * n such views, interleaved, each about the model's native
size (DemoFusion, Du et al. 2024, section 3.3). The model sees the whole composition in any of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from render.plan.decay import Span, decayed_strength
from render.plan.geometry import Grid


@dataclass(frozen=True, kw_only=True)
class Dilation:
    """`every` * `every` interleaved views of `height` x `width` latents. A canvas that does not divide is
    continued by its last row and column."""

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
        """The views that a rank evaluates, all passes of each; ranks differ by one view at most."""
        return range(self.views * rank // world_size, self.views * (rank + 1) // world_size)

    def most_views(self, world_size: int) -> int:
        """Views of the rank that has the most."""
        return max(len(self.views_of(rank, world_size)) for rank in range(world_size))


def dilation_of(grid: Grid, native: int) -> Dilation | None:
    """The views of a canvas for a model of `native` latents; None where the canvas is of native size, or so
    long that no view of native area is a picture which the model knows."""
    every = round(math.sqrt(grid.height * grid.width) / native)
    if every < 2:
        return None
    height, width = -(-grid.height // every), -(-grid.width // every)
    if min(height, width) < native / 2:
        return None
    return Dilation(every=every, height=height, width=width)


def views_taken(strength: float, span: Span, step: int) -> bool:
    """Whether the views are evaluated at a step: as long as they count."""
    return decayed_strength(strength, span, step) > 0.0


def steps_with_views(strength: float, span: Span) -> Iterator[int]:
    """The steps at which they are."""
    return (step for step in range(span.first_step, span.steps) if views_taken(strength, span, step))
