"""A canvas dealt out to ranks: who evaluates which window, owns which region, needs whose border.

Vocabulary (beside that of `geometry`):

    pass     one condition under which a window is evaluated: with guidance there are two, without and with
             the prompt, and each is an evaluation of its own
    region   the cells of the windows whose first pass a rank evaluates; regions partition the canvas
    hold     the latents that a rank keeps up to date: all that one of its windows may read at any step
    border   the latents that a rank computes and some other rank holds; exactly these are gathered
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from render.plan.geometry import Axis, Flat, Grid, Layer, Mask, Rect
from render.plan.topology import Topology, topology_of

Window = tuple[int, int, int]
"""(layer, row, col)"""


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """A grid, and the layers upon it, dealt out to `world_size` ranks.

    Windows are put in an order that goes down one strip of columns after another, and each stands there
    once for each of its passes; each rank takes an unbroken run of these evaluations, so the ranks' loads
    differ by one evaluation at most whatever their number, and the number of strips is chosen so that
    regions are compact and borders short. Two ranks may share a window: one takes the first pass. A window
    of a layer follows the window of the canvas's own grid in whose cell its middle lies.
    """

    grid: Grid
    world_size: int
    passes: int = 1
    patches: tuple[Layer, ...] = ()
    """Layers over parts of the canvas."""

    def __post_init__(self) -> None:
        if self.world_size < 1:
            raise ValueError(f"world_size {self.world_size} is below 1")
        if self.passes < 1:
            raise ValueError(f"passes {self.passes} is below 1")

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """The canvas's own grid, then the patches."""
        return (Layer(grid=self.grid), *self.patches)

    @cached_property
    def surface(self) -> Topology:
        """The canvas, and whether its edges are joined."""
        return topology_of(self.grid)

    @cached_property
    def strips(self) -> int:
        if self.world_size == 1:
            return 1
        candidates = range(1, min(self.grid.cols.count, self.world_size) + 1)
        return min(candidates, key=lambda strips: (self._held_area(strips), strips))

    @cached_property
    def windows(self) -> int:
        return sum(layer.grid.windows for layer in self.layers)

    @property
    def evaluations(self) -> int:
        """Windows times passes: the model's work at a step."""
        return self.windows * self.passes

    def evaluations_of(self, rank: int) -> tuple[tuple[Window, int], ...]:
        """(window, pass) of what the rank evaluates, in order."""
        order = self._order(self.strips)
        places = (divmod(number, self.passes) for number in range(*self._run(rank)))
        return tuple(((int(order[at, 0]), int(order[at, 1]), int(order[at, 2])), turn) for at, turn in places)

    def evaluations_by_layer(self, rank: int) -> tuple[int, ...]:
        """Number of the rank's evaluations of each layer."""
        first, end = self._run(rank)
        layers = self._order(self.strips)[:, 0][np.arange(first, end) // self.passes]
        return tuple(np.bincount(layers, minlength=len(self.layers)).tolist())

    def windows_of(self, rank: int) -> tuple[Window, ...]:
        """The windows of which the rank evaluates one pass or more, in order."""
        return tuple(dict.fromkeys(window for window, _ in self.evaluations_of(rank)))

    def window(self, window: Window, offset: tuple[int, int] = (0, 0)) -> Rect:
        """Where a window lies on the canvas."""
        layer, row, col = window
        return self.layers[layer].window(row, col, offset)

    @cached_property
    def _owners_of_cells(self) -> NDArray[np.int32]:
        """[rows, cols]: the rank whose region a cell belongs to."""
        table = np.empty((self.grid.rows.count, self.grid.cols.count), np.int32)
        order = self._order(self.strips)
        for rank in range(self.world_size):
            # A shared window's cell belongs to the rank of its first pass.
            first, end = (-(-bound // self.passes) for bound in self._run(rank))
            own = order[first:end]
            own = own[own[:, 0] == 0]
            table[own[:, 1], own[:, 2]] = rank
        return table

    @cached_property
    def owners(self) -> NDArray[np.int32]:
        """[height, width]: the rank whose region a latent lies in."""
        tall = np.repeat(self._owners_of_cells, np.diff(self.grid.rows.cell_bounds), axis=0)
        whole = np.repeat(tall, np.diff(self.grid.cols.cell_bounds), axis=1)
        # On a periodic axis the first cell may begin before the canvas.
        return np.roll(whole, (self.grid.rows.cell_bounds[0], self.grid.cols.cell_bounds[0]), axis=(0, 1))

    def region(self, rank: int) -> Flat:
        """Flat canvas indices of the rank's region, ascending."""
        return np.flatnonzero(self.owners == rank)

    @cached_property
    def longest_region(self) -> int:
        """Latents of the largest region; messages of whole regions are padded to it."""
        # By cells: an array of all latents of a large canvas would take gigabytes.
        rows, cols = (np.diff(axis.cell_bounds) for axis in (self.grid.rows, self.grid.cols))
        areas = np.outer(rows, cols).ravel()
        return int(np.bincount(self._owners_of_cells.ravel(), areas, self.world_size).max())

    @cached_property
    def boxes(self) -> tuple[Rect, ...]:
        """Per rank, the smallest area around its hold (height 0 for a rank without windows). It may run
        across an edge that is joined."""
        return tuple(self._box(rank, self.strips) for rank in range(self.world_size))

    def halo_mask(self, rank: int) -> Mask:
        """Which latents of the rank's box it holds: [box.height, box.width]."""
        return self._painted(rank, None)

    def footprint(self, rank: int, offset: tuple[int, int]) -> Mask:
        """Which latents of the rank's box its windows cover at this offset."""
        return self._painted(rank, offset)

    def neighbours(self, rank: int) -> tuple[int, ...]:
        """The ranks whose boxes meet this rank's box."""
        mine = self.boxes[rank]
        return tuple(
            other
            for other, box in enumerate(self.boxes)
            if other != rank and any(self.surface.intersect(mine, box))
        )

    def held_by_others(self, rank: int) -> Mask:
        """Which latents of the rank's box some other rank holds."""
        return _held_by_others(self, rank)

    def border(self, rank: int, offset: tuple[int, int] = (0, 0)) -> Flat:
        """Flat canvas indices, ascending, of what the rank computes at this offset and others hold."""
        box = self.boxes[rank]
        rows, cols = np.nonzero(self.footprint(rank, offset) & self.held_by_others(rank))
        places = self.surface.ys(box)[rows] * self.grid.width + self.surface.xs(box)[cols]
        return np.sort(places) if self.surface.wraps else places

    def border_windows(self, rank: int, offset: tuple[int, int] = (0, 0)) -> tuple[bool, ...]:
        """For each of the rank's windows: does any other rank need some of what it computes?"""
        box, shared = self.boxes[rank], self.held_by_others(rank)
        return tuple(
            any(shared[place].any() for _, place in self.surface.intersect(self.window(window, offset), box))
            for window in self.windows_of(rank)
        )

    def spans(self, rank: int, offset: tuple[int, int] | None) -> list[Rect]:
        """What each of the rank's windows covers of the canvas: at an offset, or over all offsets."""
        windows = self.windows_of(rank)
        if offset is not None:
            return [self.window(window, offset) for window in windows]
        return [self.layers[layer].reach(row, col, row, col) for layer, row, col in windows]

    def _run(self, rank: int) -> tuple[int, int]:
        total = self.evaluations
        return total * rank // self.world_size, total * (rank + 1) // self.world_size

    def _painted(self, rank: int, offset: tuple[int, int] | None) -> Mask:
        box = self.boxes[rank]
        mask = np.zeros((box.height, box.width), np.bool_)
        _paint(mask, box, self.spans(rank, offset), self.surface)
        return mask

    def _order(self, strips: int) -> NDArray[np.int64]:
        return _order(self.layers, strips)

    def _box(self, rank: int, strips: int) -> Rect:
        first, end = self._run(rank)
        if first == end:
            return Rect(y=0, x=0, height=0, width=0)
        run = self._order(strips)[first // self.passes : -(-end // self.passes)]
        return self.surface.bounding_rect(self._reaches(run))

    def _reaches(self, run: NDArray[np.int64]) -> Iterator[Rect]:
        """What the windows in a run may read, layer by layer."""
        ordered = run[np.argsort(run[:, 0], kind="stable")]
        numbers, starts = np.unique(ordered[:, 0], return_index=True)
        lows = np.minimum.reduceat(ordered[:, 1:], starts).tolist()
        highs = np.maximum.reduceat(ordered[:, 1:], starts).tolist()
        for number, (top, left), (bottom, right) in zip(numbers.tolist(), lows, highs, strict=True):
            yield self.layers[number].reach(top, left, bottom, right)

    def _held_area(self, strips: int) -> int:
        return sum(self._box(rank, strips).area for rank in range(self.world_size))


@lru_cache(maxsize=1100)
def _held_by_others(tiling: Tiling, rank: int) -> Mask:
    box = tiling.boxes[rank]
    mask = np.zeros((box.height, box.width), np.bool_)
    for other in tiling.neighbours(rank):
        _paint(mask, box, tiling.spans(other, None), tiling.surface)
    return mask


def _paint(mask: Mask, box: Rect, spans: list[Rect], surface: Topology) -> None:
    """Set what spans cover in a mask over `box`."""
    for span in spans:
        for _, place in surface.intersect(span, box):
            mask[place] = True


@lru_cache(maxsize=64)
def _order(layers: tuple[Layer, ...], strips: int) -> NDArray[np.int64]:
    """[windows, 3]: (layer, row, col) of all windows, strip after strip, row by row inside a strip."""
    grid = layers[0].grid
    own = _strip_order(grid.rows.count, grid.cols.count, strips)
    parts = [np.insert(own, 0, 0, axis=1)]
    if len(layers) == 1:
        return parts[0]
    at = np.empty((grid.rows.count, grid.cols.count), np.int64)
    at[own[:, 0], own[:, 1]] = np.arange(len(own))
    keys = [np.arange(len(own))]
    for number, layer in enumerate(layers[1:], start=1):
        row, col = (index.ravel() for index in np.mgrid[0 : layer.grid.rows.count, 0 : layer.grid.cols.count])
        parts.append(np.stack([np.full_like(row, number), row, col], axis=1))
        rows, cols = _cells(layer.grid.rows, layer.y, grid.rows), _cells(layer.grid.cols, layer.x, grid.cols)
        keys.append(at[rows[row], cols[col]])
    ordered: NDArray[np.int64] = np.concatenate(parts)[np.argsort(np.concatenate(keys), kind="stable")]
    return ordered


def _cells(axis: Axis, corner: int, under: Axis) -> NDArray[np.int64]:
    """In which cell of the axis `under` the middle of each window of a layer's axis lies."""
    middles = np.array(axis.starts(axis.offsets // 2)) + corner + axis.window // 2
    if under.wraps:
        middles = (middles - under.cell_bounds[0]) % under.length + under.cell_bounds[0]
    return np.searchsorted(under.cell_bounds[1:-1], middles, side="right")


@lru_cache(maxsize=64)
def _strip_order(rows: int, cols: int, strips: int) -> NDArray[np.int64]:
    """[rows * cols, 2]: (row, col) of all windows, strip after strip, row by row inside a strip."""
    bounds = [cols * strip // strips for strip in range(strips + 1)]
    parts = []
    for left, right in pairwise(bounds):
        row, col = np.mgrid[0:rows, left:right]
        parts.append(np.stack([row.ravel(), col.ravel()], axis=1))
    return np.concatenate(parts)
