"""Latents of a tile-set canvas that must be equal: those near tile sides of one label
(`render.spec.tile_set`).

A strip lies along every labelled side. Strips of the same side and label are equal latent for latent, so any
tile with this label on its right fits any tile with it on its left, even if the two never meet on the canvas
(Wang tiles; Cohen et al., "Wang Tiles for Image and Texture Generation", 2003). Where two strips of one tile
cross, neither label decides; there all tiles of the set are equal. During denoising, equal latents share
their noise and the mean of their predictions (`render.guidance.shared_latents`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from render.plan.geometry import Flat, Grid, Rect
from render.plan.topology import Topology
from render.spec.tile_set import TileSetLayout

STRIP_SHARE = 4
"""A strip is as deep as a quarter of a window, or of a tile if that is smaller."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LatentClasses:
    """The latents of a canvas that have equals elsewhere, in classes. Places are flat canvas indices."""

    places: Flat
    """Ascending."""
    classes: Flat
    """The class of each place."""
    firsts: Flat
    """The first place of each class. Its noise and its initial value are used for the whole class."""
    sizes: Flat
    """Number of places of each class."""

    def inside(self, topology: Topology, area: Rect) -> tuple[Flat, Flat]:
        """The places that lie in an area: (flat indices of the area, the class of each). Read only."""
        return _inside(self, topology, area)


@lru_cache(maxsize=8)
def make_latent_classes(layout: TileSetLayout, grid: Grid) -> LatentClasses:
    """The latent classes of a stage. The canvas divides evenly into the cells of the layout."""
    tall, wide = grid.height // layout.rows, grid.width // layout.cols
    deep = max(1, min(grid.rows.window, grid.cols.window, tall, wide) // STRIP_SHARE)
    # The key of a latent is 0 if it has no equals, else a number that it shares with its equals.
    keys = np.zeros((grid.height, grid.width), np.int64)
    strip_numbers = _StripNumbers()
    for row in range(layout.rows):
        for col in range(layout.cols):
            tile = layout.at(row, col)
            cell = keys[row * tall : (row + 1) * tall, col * wide : (col + 1) * wide]
            ys, xs = np.mgrid[0:tall, 0:wide]
            place = ys * wide + xs
            across = [("left", xs < deep), ("right", xs >= wide - deep)]
            along = [("top", ys < deep), ("bottom", ys >= tall - deep)]
            labelled = np.zeros((2, tall, wide), np.bool_)
            for direction, strips in enumerate((across, along)):
                for side, strip in strips:
                    if getattr(tile, side):
                        number = strip_numbers.get(side, getattr(tile, side))
                        cell[strip] = number * tall * wide + place[strip]
                        labelled[direction] |= strip
            corner = labelled.all(axis=0)
            cell[corner] = strip_numbers.get("corner", "") * tall * wide + place[corner]
    return _classes(keys.ravel())


class _StripNumbers:
    """Small numbers from 1 on, one for each pair of side and label."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[str, str], int] = {}

    def get(self, side: str, label: str) -> int:
        return self._numbers.setdefault((side, label), len(self._numbers) + 1)


def _classes(keys: NDArray[np.int64]) -> LatentClasses:
    places = np.flatnonzero(keys)
    _, classes, sizes = np.unique(keys[places], return_inverse=True, return_counts=True)
    # A class of one place needs no sharing.
    shared = sizes[classes] > 1
    places = places[shared]
    _, firsts, classes, sizes = np.unique(
        keys[places], return_index=True, return_inverse=True, return_counts=True
    )
    return LatentClasses(places=places, classes=classes, firsts=places[firsts], sizes=sizes)


@lru_cache(maxsize=4)
def _inside(classes: LatentClasses, topology: Topology, area: Rect) -> tuple[Flat, Flat]:
    found, places = topology.inside(classes.places, area)
    return places, classes.classes[found]
