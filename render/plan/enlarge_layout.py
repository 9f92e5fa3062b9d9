"""How a stage of the cascade is made from the one below: which latents each rank encodes, and what it reads.

The new canvas is cut into tiles. A tile is encoded with a halo around it, from pixels that are decoded and
enlarged from the stage below, so the same canvas comes out on any number of ranks. Pure geometry.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from render.plan.geometry import Rect
from render.plan.tile_grid import TileGrid, cut_into_tiles, even_grid, tile_side
from render.plan.topology import Topology

_TILE, _LARGE_CANVAS = 64, 256
"""Longest side of a tile on the new canvas, in latents; twice that on a canvas longer than a large one, since
the halo around a tile is computed twice. Small canvases are cut in four."""
NETWORK_REACH, NETWORK_ALIGNMENT = 64, 64
"""Pixels around what is wanted that a super-resolution network sees of the picture below, and what the corner
of its part is a multiple of: networks that attend in windows start them there."""
_BICUBIC_REACH = 3
"""Pixels around a point that a bicubic kernel reads, and one to spare."""


def network_scale(scale: int, wanted: float) -> int:
    """How many times as large a picture is taken from a network that makes it `scale` times as large: a
    divisor of that, so that pixels are averaged, and about `wanted` at least."""
    divisors = [each for each in range(1, scale + 1) if scale % each == 0]
    return min((each for each in divisors if each >= 0.9 * wanted), default=scale)


@dataclass(frozen=True, kw_only=True)
class EnlargeLayout:
    """The tiles of a new canvas, dealt out to `world_size` ranks. All lengths in latents."""

    canvas: Topology
    """The canvas of the stage that starts."""
    below: Topology | None
    """The canvas of the stage below; None where the image starts from pixels that the spec gives."""
    scale_factor: int
    """Pixels per latent."""
    halo: int
    """Latents around a tile that the autoencoder reads."""
    world_size: int
    layered: bool = False
    """Whether the autoencoder is run layer by layer over the tiles of all ranks, and not on each alone."""
    network: bool = False
    """Whether a super-resolution network enlarges the pixels below, and not bicubic interpolation."""

    @property
    def ratios(self) -> tuple[float, float]:
        """How many times as high and as wide the new canvas is as the one below."""
        assert self.below is not None, "there is a stage below"
        return self.canvas.height / self.below.height, self.canvas.width / self.below.width

    @cached_property
    def tile_shape(self) -> tuple[int, int]:
        """(height, width) of a tile; those at the lower and right edges may be smaller."""
        height, width = self.canvas.height, self.canvas.width
        if self.layered:
            side = tile_side(self.scale_factor)
            return min(side, height), min(side, width)
        longest = _TILE if max(height, width) <= _LARGE_CANVAS else 2 * _TILE
        return min(longest, -(-height // 2)), min(longest, -(-width // 2))

    @cached_property
    def tiles(self) -> tuple[Rect, ...]:
        """All tiles, row by row."""
        return cut_into_tiles(self.canvas, *self.tile_shape)

    @property
    def rounds(self) -> int:
        """Tiles of the rank that has the most; in each round every rank makes one tile at most."""
        return -(-len(self.tiles) // self.world_size)

    def tiles_of(self, rank: int) -> tuple[Rect, ...]:
        """The tiles of a rank: a contiguous run of them, the largest first.

        In a round all ranks wait for each other, so the tiles of one round are to be of one size, halo
        included.
        """
        own = self.tiles[rank * self.rounds : (rank + 1) * self.rounds]
        return tuple(sorted(own, key=lambda tile: self.padded(tile).area, reverse=True))

    @cached_property
    def encoded_grid(self) -> TileGrid:
        """The tiles of the new canvas, for a layered autoencoder; `tiles_of` says whose they are."""
        owners = tuple(index // self.rounds for index in range(len(self.tiles)))
        side = tile_side(self.scale_factor)
        return TileGrid(canvas=self.canvas, side=side, owners=owners, world_size=self.world_size)

    @cached_property
    def decoded_grid(self) -> TileGrid:
        """The tiles of the canvas of the stage below, for a layered autoencoder."""
        assert self.below is not None, "there is a stage below"
        return even_grid(self.below, tile_side(self.scale_factor), self.world_size)

    def decoded_by(self, rank: int) -> Rect:
        """The latents of the stage below that a rank decodes."""
        return self.decoded_grid.area_of(rank) if self.layered else self.source_of(rank)

    def padded(self, tile: Rect) -> Rect:
        """A tile and its halo on the new canvas."""
        return self.canvas.pad(tile, self.halo)

    def source(self, area: Rect) -> Rect:
        """The latents of the stage below that the pixels of an area of the new canvas are made from.

        The rectangle may run across an edge that is joined.
        """
        assert self.below is not None, "there is a stage below"
        top, bottom = self._span(area.y, area.height, self.below.height / self.canvas.height)
        left, right = self._span(area.x, area.width, self.below.width / self.canvas.width)
        needed = Rect(y=top, x=left, height=bottom - top, width=right - left)
        if not self.network:
            return self.below.pad(needed, self.halo)
        seen = self.below.pad(needed, self.halo + -(-NETWORK_REACH // self.scale_factor))
        step = max(1, NETWORK_ALIGNMENT // self.scale_factor)
        above, before = seen.y % step, seen.x % step
        return Rect(
            y=seen.y - above, x=seen.x - before, height=seen.height + above, width=seen.width + before
        )

    def source_of(self, rank: int) -> Rect:
        """What a rank reads of the stage below to make its tiles."""
        assert self.below is not None, "there is a stage below"
        return self.below.bounding_rect(self.source(self.padded(tile)) for tile in self.tiles_of(rank))

    def _span(self, start: int, count: int, ratio: float) -> tuple[int, int]:
        """The latents [first, end) below whose pixels a bicubic kernel reads; they may pass an edge."""
        pixel = self.scale_factor
        # In 32-bit numbers, as the pixels' positions are computed where they are sampled.
        ends = np.array([start * pixel, (start + count) * pixel - 1], np.int64).astype(np.float32)
        low, high = (ends + np.float32(0.5)) * np.float32(ratio) - np.float32(0.5)
        first = (int(np.floor(low)) - _BICUBIC_REACH) // pixel
        last = (int(np.ceil(high)) + _BICUBIC_REACH) // pixel
        return first, last + 1
