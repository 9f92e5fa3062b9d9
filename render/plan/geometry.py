"""Windows, regions and borders on one canvas: pure integer geometry, no torch, no process.

Vocabulary (all lengths in latents; `row`/`col` count windows, `y`/`x` count latents):

    window   one model evaluation's field; its place comes from the spec, never from the rank count
    pass     one condition under which a window is evaluated: with guidance there are two, without and with
             the prompt, and each is an evaluation of its own
    cell     the part of the canvas that one window stands for; cells partition the canvas
    region   the cells of the windows whose first pass a rank evaluates; regions partition the canvas
    hold     what a rank keeps up to date: every latent that one of its windows may read, at any step
    border   what a rank computes and some other rank holds; exactly that is gathered, and no more

In the `overlap` blend the grid stands still. In the `shift` blend it moves by an offset at each step;
windows that would leave the canvas are pushed back in, so the two sides of a picture never meet.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Flat = NDArray[np.int64]
Mask = NDArray[np.bool_]
Weights = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Rect:
    """A rectangle of latents (or pixels, where the name says so)."""

    y: int
    x: int
    height: int
    width: int

    @property
    def slices(self) -> tuple[slice, slice]:
        return slice(self.y, self.y + self.height), slice(self.x, self.x + self.width)

    @property
    def area(self) -> int:
        return self.height * self.width


def bounding(rects: Iterable[Rect]) -> Rect:
    """The smallest rectangle around all of them; an empty one at the corner when there is none."""
    found = [rect for rect in rects if rect.area]
    if not found:
        return Rect(y=0, x=0, height=0, width=0)
    top, left = min(rect.y for rect in found), min(rect.x for rect in found)
    bottom = max(rect.y + rect.height for rect in found)
    right = max(rect.x + rect.width for rect in found)
    return Rect(y=top, x=left, height=bottom - top, width=right - left)


def grown(rect: Rect, margin: int, bounds: Rect) -> Rect:
    """The rectangle with a margin on all sides, clipped to `bounds` (which starts at 0, 0)."""
    top, left = max(0, rect.y - margin), max(0, rect.x - margin)
    bottom = min(bounds.height, rect.y + rect.height + margin)
    right = min(bounds.width, rect.x + rect.width + margin)
    return Rect(y=top, x=left, height=bottom - top, width=right - left)


@dataclass(frozen=True, kw_only=True)
class Axis:
    """The windows along one direction. `count` windows of `window` latents cover `length` latents."""

    length: int
    window: int
    overlap: int
    moving: bool

    def __post_init__(self) -> None:
        if not 0 < self.window <= self.length:
            raise ValueError(f"a window of {self.window} does not fit an axis of {self.length} latents")
        if not 0 <= self.overlap < self.window:
            raise ValueError(f"an overlap of {self.overlap} does not fit a window of {self.window} latents")

    @cached_property
    def count(self) -> int:
        if self.length == self.window:
            return 1
        gaps = -(-(self.length - self.overlap) // (self.window - self.overlap))
        # A moving grid needs one more window, so that the canvas stays covered wherever the grid stands.
        return gaps + 1 if self.moving else gaps

    @cached_property
    def offsets(self) -> int:
        """How many offsets the grid can take: one when it stands still."""
        if not self.moving or self.count == 1:
            return 1
        return -(-(self.length - self.overlap) // (self.count - 1))

    def starts(self, offset: int = 0) -> tuple[int, ...]:
        """First latent of each window when the grid is moved back by `offset`, 0 <= offset < offsets."""
        if not 0 <= offset < self.offsets:
            raise ValueError(f"offset {offset} is not below {self.offsets}")
        last = self.length - self.window
        if self.count == 1:
            return (0,)
        if not self.moving:
            return tuple(row * last // (self.count - 1) for row in range(self.count))
        span = self.length - self.overlap
        nominal = (row * span // (self.count - 1) - offset for row in range(self.count))
        return tuple(min(max(start, 0), last) for start in nominal)

    @cached_property
    def cuts(self) -> tuple[int, ...]:
        """count + 1 ascending bounds; cell i is [cuts[i], cuts[i+1])."""
        middle = self.starts(self.offsets // 2)
        between = [(before + self.window + after) // 2 for before, after in pairwise(middle)]
        return (0, *between, self.length)

    @cached_property
    def reach(self) -> tuple[tuple[int, int], ...]:
        """Per window, the [first, end) latents that it may read over all offsets."""
        lowest, highest = self.starts(self.offsets - 1), self.starts(0)
        return tuple((low, high + self.window) for low, high in zip(lowest, highest, strict=True))

    def weights(self, offset: int) -> Weights:
        """[count, window] cosine weights that sum to one over the windows at every latent.

        Each window falls off as a raised cosine over the overlap (the weights of MultiDiffusion's
        successors), then all are divided by their sum.
        """
        return _weights(self, offset)


@lru_cache(maxsize=64)
def _weights(axis: Axis, offset: int) -> Weights:
    ramp = max(1, axis.overlap)
    inside = np.minimum(np.arange(axis.window) + 0.5, np.arange(axis.window)[::-1] + 0.5)
    profile = np.sin(np.pi / 2 * np.minimum(1.0, inside / ramp)) ** 2
    total = np.zeros(axis.length)
    starts = axis.starts(offset)
    for start in starts:
        total[start : start + axis.window] += profile
    rows = [profile / total[start : start + axis.window] for start in starts]
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
class Tiling:
    """A grid dealt out to `world_size` ranks.

    Windows are put in an order that goes down one strip of columns after another, and each stands there
    once for each of its passes; each rank takes an unbroken run of these evaluations, so the ranks' loads
    differ by one evaluation at most whatever their number, and the number of strips is chosen so that
    regions are compact and borders short. Two ranks may share a window: one takes the first pass.
    """

    grid: Grid
    world_size: int
    passes: int = 1

    def __post_init__(self) -> None:
        if self.world_size < 1:
            raise ValueError(f"world_size {self.world_size} is below 1")
        if self.passes < 1:
            raise ValueError(f"passes {self.passes} is below 1")

    @cached_property
    def strips(self) -> int:
        if self.world_size == 1:
            return 1
        candidates = range(1, min(self.grid.cols.count, self.world_size) + 1)
        return min(candidates, key=lambda strips: (self._held_area(strips), strips))

    @property
    def evaluations(self) -> int:
        """Windows times passes: the model's work at a step."""
        return self.grid.windows * self.passes

    def evaluations_of(self, rank: int) -> tuple[tuple[int, int, int], ...]:
        """(row, col, pass) of what the rank evaluates, in order."""
        order = _strip_order(self.grid.rows.count, self.grid.cols.count, self.strips)
        places = (divmod(number, self.passes) for number in range(*self._run(rank)))
        return tuple((int(order[at, 0]), int(order[at, 1]), turn) for at, turn in places)

    def windows_of(self, rank: int) -> tuple[tuple[int, int], ...]:
        """(row, col) of the windows of which the rank evaluates one pass or more, in order."""
        return tuple(dict.fromkeys((row, col) for row, col, _ in self.evaluations_of(rank)))

    @cached_property
    def owners(self) -> NDArray[np.int32]:
        """[height, width]: the rank whose region a latent lies in."""
        table = np.empty((self.grid.rows.count, self.grid.cols.count), np.int32)
        order = _strip_order(self.grid.rows.count, self.grid.cols.count, self.strips)
        for rank in range(self.world_size):
            # A shared window's cell belongs to the rank of its first pass.
            first, end = (-(-bound // self.passes) for bound in self._run(rank))
            table[order[first:end, 0], order[first:end, 1]] = rank
        tall = np.repeat(table, np.diff(self.grid.rows.cuts), axis=0)
        return np.repeat(tall, np.diff(self.grid.cols.cuts), axis=1)

    def region(self, rank: int) -> Flat:
        """Flat canvas indices of the rank's region, ascending."""
        return np.flatnonzero(self.owners == rank)

    @cached_property
    def boxes(self) -> tuple[Rect, ...]:
        """Per rank, the smallest rectangle around its hold (height 0 for a rank without windows)."""
        return tuple(self._box(rank, self.strips) for rank in range(self.world_size))

    def hold(self, rank: int) -> Mask:
        """Which latents of the rank's box it holds: [box.height, box.width]."""
        return self._painted(rank, self.boxes[rank], None)

    def footprint(self, rank: int, offset: tuple[int, int]) -> Mask:
        """Which latents of the rank's box its windows cover at this offset."""
        return self._painted(rank, self.boxes[rank], offset)

    def neighbours(self, rank: int) -> tuple[int, ...]:
        """The ranks whose boxes meet this rank's box."""
        mine = self.boxes[rank]
        return tuple(
            other
            for other, box in enumerate(self.boxes)
            if other != rank and mine.area and box.area and _meet(mine, box)
        )

    def held_by_others(self, rank: int) -> Mask:
        """Which latents of the rank's box some other rank holds."""
        return _held_by_others(self, rank)

    def border(self, rank: int, offset: tuple[int, int] = (0, 0)) -> Flat:
        """Flat canvas indices, ascending, of what the rank computes at this offset and others hold."""
        box = self.boxes[rank]
        rows, cols = np.nonzero(self.footprint(rank, offset) & self.held_by_others(rank))
        return (rows + box.y) * self.grid.width + (cols + box.x)

    def border_windows(self, rank: int, offset: tuple[int, int] = (0, 0)) -> tuple[bool, ...]:
        """For each of the rank's windows: does any other rank need some of what it computes?"""
        box, shared = self.boxes[rank], self.held_by_others(rank)
        flags = []
        for row, col in self.windows_of(rank):
            window = self.grid.window(row, col, offset)
            inside = shared[
                window.y - box.y : window.y - box.y + window.height,
                window.x - box.x : window.x - box.x + window.width,
            ]
            flags.append(bool(inside.any()))
        return tuple(flags)

    def _run(self, rank: int) -> tuple[int, int]:
        total = self.evaluations
        return total * rank // self.world_size, total * (rank + 1) // self.world_size

    def _painted(self, rank: int, box: Rect, offset: tuple[int, int] | None) -> Mask:
        mask = np.zeros((box.height, box.width), np.bool_)
        for (top, bottom), (left, right) in self.spans(rank, offset):
            mask[top - box.y : bottom - box.y, left - box.x : right - box.x] = True
        return mask

    def spans(
        self, rank: int, offset: tuple[int, int] | None
    ) -> list[tuple[tuple[int, int], tuple[int, int]]]:
        """Per window of the rank, its [first, end) rows and columns: at an offset, or over all offsets."""
        rows, cols = self.grid.rows, self.grid.cols
        if offset is None:
            row_spans, col_spans = rows.reach, cols.reach
        else:
            row_spans = tuple((start, start + rows.window) for start in rows.starts(offset[0]))
            col_spans = tuple((start, start + cols.window) for start in cols.starts(offset[1]))
        return [(row_spans[row], col_spans[col]) for row, col in self.windows_of(rank)]

    def _box(self, rank: int, strips: int) -> Rect:
        first, end = self._run(rank)
        if first == end:
            return Rect(y=0, x=0, height=0, width=0)
        order = _strip_order(self.grid.rows.count, self.grid.cols.count, strips)
        run = order[first // self.passes : -(-end // self.passes)]
        (top, left), (bottom, right) = run.min(axis=0), run.max(axis=0)
        y, x = self.grid.rows.reach[top][0], self.grid.cols.reach[left][0]
        return Rect(
            y=y,
            x=x,
            height=self.grid.rows.reach[bottom][1] - y,
            width=self.grid.cols.reach[right][1] - x,
        )

    def _held_area(self, strips: int) -> int:
        return sum(self._box(rank, strips).area for rank in range(self.world_size))


@lru_cache(maxsize=1100)
def _held_by_others(tiling: Tiling, rank: int) -> Mask:
    box = tiling.boxes[rank]
    mask = np.zeros((box.height, box.width), np.bool_)
    for other in tiling.neighbours(rank):
        for (top, bottom), (left, right) in tiling.spans(other, None):
            rows = slice(max(top - box.y, 0), max(bottom - box.y, 0))
            cols = slice(max(left - box.x, 0), max(right - box.x, 0))
            mask[rows, cols] = True
    return mask


@lru_cache(maxsize=64)
def _strip_order(rows: int, cols: int, strips: int) -> NDArray[np.int64]:
    """[rows * cols, 2]: (row, col) of all windows, strip after strip, row by row inside a strip."""
    bounds = [cols * strip // strips for strip in range(strips + 1)]
    parts = []
    for left, right in pairwise(bounds):
        row, col = np.mgrid[0:rows, left:right]
        parts.append(np.stack([row.ravel(), col.ravel()], axis=1))
    return np.concatenate(parts)


def _meet(one: Rect, two: Rect) -> bool:
    return (
        one.y < two.y + two.height
        and two.y < one.y + one.height
        and one.x < two.x + two.width
        and two.x < one.x + one.width
    )
