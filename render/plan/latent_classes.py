"""Which latents of a sheet of tiles are one and the same: those near sides of one mark (`render.spec.tile_set`).

Along every side with a mark lies a strip, and strips of one side and mark are equal latent for latent. So
whatever stands at one side of a cut fits whatever stands at the other, though only some of the pairs meet on
the sheet. Where two strips of a tile cross, the mark of neither can rule; there all tiles of the set are
equal. In the step loop equal latents share their noise and the mean of their predictions.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from render.plan.geometry import Flat, Grid
from render.spec.tile_set import TileSetLayout

STRIP_SHARE = 4
"""A strip is as deep as a quarter of a window, or of a tile where that is less."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LatentClasses:
    """The latents of a canvas that have equals elsewhere, in classes; places are flat canvas indices."""

    places: Flat
    """Ascending."""
    classes: Flat
    """The class of each."""
    firsts: Flat
    """Per class, the first of its places: where its noise is drawn, and what it starts a stage from."""
    sizes: Flat
    """Per class, how many places it has."""


@lru_cache(maxsize=8)
def make_latent_classes(sheet: TileSetLayout, grid: Grid) -> LatentClasses:
    """The ties of a stage; its canvas parts evenly into the sheet's cells."""
    tall, wide = grid.height // sheet.rows, grid.width // sheet.cols
    deep = max(1, min(grid.rows.window, grid.cols.window, tall, wide) // STRIP_SHARE)
    # A latent's key: 0 for one of its own, else the same number as its equals'.
    keys = np.zeros((grid.height, grid.width), np.int64)
    marks = _Numbers()
    for row in range(sheet.rows):
        for col in range(sheet.cols):
            tile = sheet.at(row, col)
            cell = keys[row * tall : (row + 1) * tall, col * wide : (col + 1) * wide]
            ys, xs = np.mgrid[0:tall, 0:wide]
            place = ys * wide + xs
            across = [("left", xs < deep), ("right", xs >= wide - deep)]
            along = [("top", ys < deep), ("bottom", ys >= tall - deep)]
            marked = np.zeros((2, tall, wide), np.bool_)
            for direction, strips in enumerate((across, along)):
                for side, strip in strips:
                    if getattr(tile, side):
                        number = marks.of(side, getattr(tile, side))
                        cell[strip] = number * tall * wide + place[strip]
                        marked[direction] |= strip
            corner = marked.all(axis=0)
            cell[corner] = marks.of("corner", "") * tall * wide + place[corner]
    return _classes(keys.ravel())


class _Numbers:
    """Small numbers from 1 on, one for each side and mark."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], int] = {}

    def of(self, side: str, mark: str) -> int:
        return self._known.setdefault((side, mark), len(self._known) + 1)


def _classes(keys: NDArray[np.int64]) -> LatentClasses:
    places = np.flatnonzero(keys)
    _, classes, sizes = np.unique(keys[places], return_inverse=True, return_counts=True)
    # One that has no equals needs no tie.
    shared = sizes[classes] > 1
    places = places[shared]
    _, firsts, classes, sizes = np.unique(
        keys[places], return_index=True, return_inverse=True, return_counts=True
    )
    return LatentClasses(places=places, classes=classes, firsts=places[firsts], sizes=sizes)
