"""Windows on one canvas: pure integer geometry, no torch, no process.

Vocabulary (all lengths in latents; `row`/`col` count windows, `y`/`x` count latents):

    window   the field of one model evaluation; its position comes from the spec, never from the rank count
    cell     the part of the canvas that one window represents; cells partition the canvas
    layer    a grid of windows over the canvas, or over a part of it that has a prompt of its own

In the `overlap` blend the grid stands still. In the `shift` blend it moves by an offset at each step;
windows that would leave the canvas are pushed back in, so opposite edges of an image never meet.

Where a canvas wraps, its axis is periodic: windows are spaced evenly, run across the edge, and a moving grid
moves as a whole. A window may then start before the canvas or end behind it; its latents are taken modulo the
canvas (see `topology`). `tiling` deals windows out to ranks.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from render.rect import Rect as Rect
from render.rect import bounding as bounding

Flat = NDArray[np.int64]
Mask = NDArray[np.bool_]
Weights = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Axis:
    """The windows along one direction. `count` windows of `window` latents cover `length` latents."""

    length: int
    window: int
    overlap: int
    moving: bool
    wraps: bool = False
    """Its two ends are joined: the axis is periodic."""

    def __post_init__(self) -> None:
        if not 0 < self.window <= self.length:
            raise ValueError(f"a window of {self.window} does not fit an axis of {self.length} latents")
        if not 0 <= self.overlap < self.window:
            raise ValueError(f"an overlap of {self.overlap} does not fit a window of {self.window} latents")

    @cached_property
    def count(self) -> int:
        if self.wraps:
            return -(-self.length // (self.window - self.overlap))
        if self.length == self.window:
            return 1
        gaps = -(-(self.length - self.overlap) // (self.window - self.overlap))
        # A moving grid needs one more window, so that the canvas stays covered wherever the grid stands.
        return gaps + 1 if self.moving else gaps

    @cached_property
    def offsets(self) -> int:
        """How many offsets the grid can take: one when it does not move."""
        if self.moving and self.wraps:
            return -(-self.length // self.count)
        if not self.moving or self.count == 1:
            return 1
        return -(-(self.length - self.overlap) // (self.count - 1))

    def starts(self, offset: int = 0) -> tuple[int, ...]:
        """First latent of each window when the grid is moved back by `offset`, 0 <= offset < offsets."""
        if not 0 <= offset < self.offsets:
            raise ValueError(f"offset {offset} is not below {self.offsets}")
        return _starts(self, offset)

    @cached_property
    def cell_bounds(self) -> tuple[int, ...]:
        """count + 1 ascending bounds; cell i is [bounds[i], bounds[i + 1]).

        On a periodic axis they are modulo its length: the first may lie before the canvas, and the last is
        the first one again.
        """
        middle = self.starts(self.offsets // 2)
        if self.wraps:
            around = (middle[-1] - self.length, *middle)
            bounds = [(before + self.window + after) // 2 for before, after in pairwise(around)]
            return (*bounds, bounds[0] + self.length)
        between = [(before + self.window + after) // 2 for before, after in pairwise(middle)]
        return (0, *between, self.length)

    @cached_property
    def reach(self) -> tuple[tuple[int, int], ...]:
        """Per window, the [first, end) latents that it may read over all offsets."""
        lowest, highest = self.starts(self.offsets - 1), self.starts(0)
        return tuple((low, high + self.window) for low, high in zip(lowest, highest, strict=True))

    def conditioning_start(self, start: int) -> int:
        """The start of a window as a model's coordinates take it, [0, length - window].

        For a window across the edge of a periodic axis it is the nearer end: models know no images that
        continue there.
        """
        last = self.length - self.window
        if not self.wraps:
            return start
        at = start % self.length
        return at if at <= last else last if at - last <= self.length - at else 0

    def weights(self, offset: int) -> Weights:
        """[count, window] cosine weights that sum to one over the windows at every latent.

        Each window falls off as a raised cosine over the overlap (the weights of MultiDiffusion's
        successors), then all are divided by their sum.
        """
        return _weights(self, offset)


# Every window of a canvas asks for its own start.
@lru_cache(maxsize=256)
def _starts(axis: Axis, offset: int) -> tuple[int, ...]:
    if axis.wraps:
        return tuple(row * axis.length // axis.count - offset for row in range(axis.count))
    last = axis.length - axis.window
    if axis.count == 1:
        return (0,)
    if not axis.moving:
        return tuple(row * last // (axis.count - 1) for row in range(axis.count))
    span = axis.length - axis.overlap
    nominal = (row * span // (axis.count - 1) - offset for row in range(axis.count))
    return tuple(min(max(start, 0), last) for start in nominal)


@lru_cache(maxsize=64)
def _weights(axis: Axis, offset: int) -> Weights:
    ramp = max(1, axis.overlap)
    inside = np.minimum(np.arange(axis.window) + 0.5, np.arange(axis.window)[::-1] + 0.5)
    profile = np.sin(np.pi / 2 * np.minimum(1.0, inside / ramp)) ** 2
    total = np.zeros(axis.length)
    starts = axis.starts(offset)
    places = [np.arange(start, start + axis.window) % axis.length for start in starts]
    for place in places:
        total[place] += profile
    rows = [profile / total[place] for place in places]
    return np.stack(rows).astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class Grid:
    """All windows of one canvas: the product of two axes."""

    rows: Axis
    cols: Axis

    @property
    def whole(self) -> Rect:
        return Rect(y=0, x=0, height=self.height, width=self.width)

    @property
    def height(self) -> int:
        return self.rows.length

    @property
    def width(self) -> int:
        return self.cols.length

    @property
    def windows(self) -> int:
        return self.rows.count * self.cols.count

    def window(self, row: int, col: int, offset: tuple[int, int] = (0, 0)) -> Rect:
        return Rect(
            y=self.rows.starts(offset[0])[row],
            x=self.cols.starts(offset[1])[col],
            height=self.rows.window,
            width=self.cols.window,
        )


@dataclass(frozen=True, kw_only=True)
class Layer:
    """A grid of windows whose corner lies at (y, x) of the canvas. `text` numbers the prompt that its
    windows are evaluated under: 0 is the image's own."""

    grid: Grid
    y: int = 0
    x: int = 0
    text: int = 0

    @property
    def area(self) -> Rect:
        """The part of the canvas that it covers."""
        return Rect(y=self.y, x=self.x, height=self.grid.height, width=self.grid.width)

    def offset(self, offset: tuple[int, int]) -> tuple[int, int]:
        """This grid's offset when the canvas's own grid is at `offset`."""
        return offset[0] % self.grid.rows.offsets, offset[1] % self.grid.cols.offsets

    def window(self, row: int, col: int, offset: tuple[int, int] = (0, 0)) -> Rect:
        """A window on the canvas."""
        own = self.grid.window(row, col, self.offset(offset))
        return Rect(y=own.y + self.y, x=own.x + self.x, height=own.height, width=own.width)

    def reach(self, top: int, left: int, bottom: int, right: int) -> Rect:
        """What the windows from (top, left) to (bottom, right) may read on the canvas over all offsets."""
        y, x = self.grid.rows.reach[top][0], self.grid.cols.reach[left][0]
        end_y, end_x = self.grid.rows.reach[bottom][1], self.grid.cols.reach[right][1]
        return Rect(y=y + self.y, x=x + self.x, height=end_y - y, width=end_x - x)
