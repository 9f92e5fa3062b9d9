"""Where a seam could show in an image, and the lines that it is compared with: pure geometry, in pixels."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from render.plan.decode_layout import DecodeLayout
from render.plan.stages import Stage

SEGMENT = 64
"""Pixels of a line that are averaged before the median is taken; divides every block of an image."""


@dataclass(frozen=True, kw_only=True)
class SeamLines:
    """The measured lines of one direction. A line is named by the first pixel behind it."""

    length: int
    """Length of each line in pixels."""
    borders: tuple[int, ...]
    controls: tuple[int, ...]

    @cached_property
    def all(self) -> tuple[int, ...]:
        """Borders and controls, ascending."""
        return tuple(sorted({*self.borders, *self.controls}))

    @property
    def segments(self) -> int:
        """Segments of each line; the last one may be shorter."""
        return -(-self.length // SEGMENT)


def make_lines(
    borders: Iterable[int], window: int, extent: int, length: int, grid: int = 8, *, wraps: bool = False
) -> SeamLines:
    """The borders inside an image that extends over `extent` pixels, and their controls.

    `window` is the side of a window and `grid` the pixels per latent. Controls lie a third and two thirds of
    a window away from a border, on the latent grid. Where the image wraps, line 0 is a line like any other:
    from the last pixel to the first.
    """
    if wraps:
        inside = sorted({border % extent for border in borders})
    else:
        inside = sorted({border for border in borders if 0 < border < extent})
    thirds = [max(grid, round(window * part / 3 / grid) * grid) for part in (1, 2)]
    beside = {border + away for border in inside for away in thirds}
    if wraps:
        beside = {line % extent for line in beside}
    controls = sorted(line for line in beside - set(inside) if line < extent)
    return SeamLines(length=length, borders=tuple(inside), controls=tuple(controls))


def seam_lines(layout: DecodeLayout, stage: Stage, seed: int) -> tuple[SeamLines, SeamLines]:
    """The columns and the rows of an image where a seam could be.

    These are the edges of the last step's windows (region borders are among them) and of the decode tiles;
    where the image wraps, its own edge too. `stage` is the last one and `seed` that stage's seed.
    """
    pixel = layout.scale_factor
    offset = stage.offset(seed, stage.steps - 1)
    lines = []
    for axis, at, extent, length in (
        (stage.grid.cols, offset[1], layout.width, layout.height),
        (stage.grid.rows, offset[0], layout.height, layout.width),
    ):
        starts = axis.starts(at)
        edges = {start * pixel for start in starts} | {(start + axis.window) * pixel for start in starts}
        edges |= set(range(0, extent, layout.decode_tile * pixel))
        window = stage.grid.cols.window * pixel
        lines.append(make_lines(edges, window, extent, length, pixel, wraps=axis.wraps))
    return lines[0], lines[1]
