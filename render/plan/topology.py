"""The topology of a canvas: a plane with four edges, a cylinder (`wrap: x` or `y`) or a torus (`xy`).

Where a canvas wraps, a rectangle may leave it on one side and enter it on the other: its corner is any whole
number, and its latents are taken modulo the canvas. Pure integer geometry, no torch.

An `area` is the rectangle of a tensor. It has no latent twice, so it is no longer than the canvas in either
direction.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from render.plan.geometry import Flat, Grid, Rect, bounding

Slices = tuple[slice, slice]
_Run = tuple[int, int]
"""(first, count) along one direction."""


@dataclass(frozen=True, kw_only=True)
class Topology:
    """A canvas of `height` x `width` latents, and whether its opposite edges are joined."""

    height: int
    width: int
    wrap_y: bool = False
    """The bottom is joined to the top."""
    wrap_x: bool = False
    """The right side is joined to the left."""

    @property
    def whole(self) -> Rect:
        return Rect(y=0, x=0, height=self.height, width=self.width)

    @property
    def wraps(self) -> bool:
        return self.wrap_y or self.wrap_x

    def pad(self, rect: Rect, margin: int) -> Rect:
        """The rectangle with a margin on all sides: clipped at an edge, continued where the canvas wraps.

        It may be longer than the canvas, and then covers latents more than once.
        """
        y, height = _grown(rect.y, rect.height, margin, self.height, self.wrap_y)
        x, width = _grown(rect.x, rect.width, margin, self.width, self.wrap_x)
        return Rect(y=y, x=x, height=height, width=width)

    def bounding_rect(self, rects: Iterable[Rect]) -> Rect:
        """The smallest area around all of them; an empty one at the corner when there is none."""
        found = [rect for rect in rects if rect.area]
        if not found or not self.wraps:
            return bounding(found)
        flat = bounding(found)
        y, height = flat.y, flat.height
        x, width = flat.x, flat.width
        if self.wrap_y:
            y, height = _arc([(rect.y, rect.height) for rect in found], self.height)
        if self.wrap_x:
            x, width = _arc([(rect.x, rect.width) for rect in found], self.width)
        return Rect(y=y, x=x, height=height, width=width)

    def intersect(self, span: Rect, area: Rect) -> Iterator[tuple[Slices, Slices]]:
        """Where a span meets an area: (slices of the span, slices of the area), piece by piece.

        One piece at most on a plane, up to four on a torus, more only for a span longer than the canvas.
        """
        rows = _runs((span.y, span.height), (area.y, area.height), self.height, self.wrap_y)
        cols = list(_runs((span.x, span.width), (area.x, area.width), self.width, self.wrap_x))
        for in_span_y, in_area_y in rows:
            for in_span_x, in_area_x in cols:
                yield (in_span_y, in_span_x), (in_area_y, in_area_x)

    def ys(self, rect: Rect) -> Flat:
        """The canvas's rows that a rectangle covers, in its order."""
        rows = np.arange(rect.y, rect.y + rect.height)
        return rows % self.height if self.wrap_y else rows

    def xs(self, rect: Rect) -> Flat:
        """The canvas's columns that a rectangle covers, in its order."""
        cols = np.arange(rect.x, rect.x + rect.width)
        return cols % self.width if self.wrap_x else cols

    def inside(self, places: Flat, area: Rect) -> tuple[Flat, Flat]:
        """Of flat places of the canvas those in an area: (positions in `places`, flat places in the area)."""
        y, x = places // self.width - area.y, places % self.width - area.x
        y = y % self.height if self.wrap_y else y
        x = x % self.width if self.wrap_x else x
        found = np.flatnonzero((y >= 0) & (y < area.height) & (x >= 0) & (x < area.width))
        return found, y[found] * area.width + x[found]


def topology_of(grid: Grid) -> Topology:
    """The topology of the canvas that a grid of windows covers."""
    return Topology(height=grid.height, width=grid.width, wrap_y=grid.rows.wraps, wrap_x=grid.cols.wraps)


def _grown(first: int, count: int, margin: int, length: int, wraps: bool) -> _Run:
    if wraps:
        return first - margin, count + 2 * margin
    low, high = max(0, first - margin), min(length, first + count + margin)
    return low, high - low


def _arc(arcs: list[_Run], length: int) -> _Run:
    """The shortest arc of a periodic axis around all arcs: everything but the widest gap between them."""
    ordered = sorted((first % length, count) for first, count in arcs)
    end = max(first + count for first, count in ordered) - length
    widest, start = 0, 0
    for first, count in ordered:
        if first - end > widest:
            widest, start = first - end, first
        end = max(end, first + count)
    return start, length - widest


def _runs(span: _Run, area: _Run, length: int, wraps: bool) -> Iterator[tuple[slice, slice]]:
    """Where a span meets an area along one direction: (slice of the span, slice of the area)."""
    (first, count), (at, room) = span, area
    turns = range(1)
    if wraps:
        turns = range(-((first + count - 1 - at) // length), (at + room - 1 - first) // length + 1)
    for turn in turns:
        here = first + turn * length
        low, high = max(here, at), min(here + count, at + room)
        if low < high:
            yield slice(low - here, high - here), slice(low - at, high - at)
