"""A canvas cut into square tiles, each owned by one rank: what an autoencoder is run on, layer by layer.

The tiles come from the spec, the owners from the world size. A layer that reads a few values beyond a tile
takes them from its neighbors' strips. Pure geometry; the same grid holds at every scale of the network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, TypeVar

from render.plan.geometry import Rect
from render.plan.topology import Slices, Topology

_PIXELS, _SMALLEST_SIDE = 256, 16
_T = TypeVar("_T")
Side = Literal["top", "bottom", "left", "right"]
Strip = tuple[int, Side]
"""The outermost rows or columns of a tile, by its number."""
Margins = tuple[int, int, int, int]
"""At the top, left, bottom and right of a tile."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A part of a tile's surroundings."""

    there: Slices
    """Of the tile with its margin."""
    strip: Strip | None
    """The strip that holds it; None for the tile itself."""
    here: Slices
    """Of the strip."""


@dataclass(frozen=True, kw_only=True)
class TileGrid:
    """The tiles of a canvas, row by row; those at the lower and right edges may be smaller."""

    canvas: Topology
    side: int
    """Of a tile, in latents."""
    owners: tuple[int, ...]
    """The rank of each tile."""
    world_size: int
    _known: dict[tuple[str, int, int, int], object] = field(default_factory=dict, compare=False, repr=False)

    @cached_property
    def tiles(self) -> tuple[Rect, ...]:
        """All tiles, in latents."""
        return cut_into_tiles(self.canvas, self.side)

    @cached_property
    def _owned(self) -> tuple[tuple[int, ...], ...]:
        owned: list[list[int]] = [[] for _ in range(self.world_size)]
        for index, owner in enumerate(self.owners):
            owned[owner].append(index)
        return tuple(tuple(each) for each in owned)

    def owned_by(self, rank: int) -> tuple[int, ...]:
        """The numbers of a rank's tiles, in order."""
        return self._owned[rank]

    def area_of(self, rank: int) -> Rect:
        """The smallest area around a rank's tiles, in latents."""
        return self.canvas.bounding_rect(self.tiles[index] for index in self.owned_by(rank))

    def margins(self, index: int, scale: int, reach: int) -> Margins:
        """How much of a margin of `reach` values a tile has: less where the canvas ends."""
        tile, canvas = self.tiles[index], self.canvas
        right, bottom = canvas.width - tile.x - tile.width, canvas.height - tile.y - tile.height
        return (
            reach if canvas.wrap_y else min(reach, tile.y * scale),
            reach if canvas.wrap_x else min(reach, tile.x * scale),
            reach if canvas.wrap_y else min(reach, bottom * scale),
            reach if canvas.wrap_x else min(reach, right * scale),
        )

    def strip_shape(self, strip: Strip, scale: int, reach: int) -> tuple[int, int]:
        """(height, width) of a strip at a scale."""
        tile, side = self.tiles[strip[0]], strip[1]
        height, width = tile.height * scale, tile.width * scale
        return (min(reach, height), width) if side in ("top", "bottom") else (height, min(reach, width))

    def pieces(self, index: int, scale: int, reach: int) -> tuple[Piece, ...]:
        """What a tile with a margin of `reach` values consists of, at `scale` values per latent."""
        return self._cached("pieces", index, scale, reach, lambda: tuple(self._pieces(index, scale, reach)))

    def sent_strips(self, rank: int, scale: int, reach: int) -> tuple[Strip, ...]:
        """The strips of a rank's tiles that other ranks read, in the order of its message."""
        return self._cached("sent", rank, scale, reach, lambda: self._sent_strips(rank, scale, reach))

    def read_strips(self, rank: int, scale: int, reach: int) -> frozenset[Strip]:
        """The strips that a rank reads, its own tiles' included."""
        return self._cached("read", rank, scale, reach, lambda: self._read_strips(rank, scale, reach))

    def _cached(self, kind: str, number: int, scale: int, reach: int, make: Callable[[], _T]) -> _T:
        key = kind, number, scale, reach
        if key not in self._known:
            self._known[key] = make()
        return self._known[key]  # type: ignore[return-value]

    def _read_strips(self, rank: int, scale: int, reach: int) -> frozenset[Strip]:
        return frozenset(
            piece.strip
            for index in self.owned_by(rank)
            for piece in self.pieces(index, scale, reach)
            if piece.strip is not None
        )

    def _sent_strips(self, rank: int, scale: int, reach: int) -> tuple[Strip, ...]:
        others = (other for other in range(self.world_size) if other != rank)
        read = set().union(*(self.read_strips(other, scale, reach) for other in others))
        return tuple(sorted(strip for strip in read if self.owners[strip[0]] == rank))

    def _pieces(self, index: int, scale: int, reach: int) -> Iterator[Piece]:
        tile, canvas, side = self.tiles[index], self.canvas, self.side * scale
        rows = list(
            _along(tile.y * scale, tile.height * scale, reach, canvas.height * scale, canvas.wrap_y, side)
        )
        cols = list(
            _along(tile.x * scale, tile.width * scale, reach, canvas.width * scale, canvas.wrap_x, side)
        )
        across = -(-canvas.width // self.side)
        for row, own_row, rows_there, rows_here in rows:
            for col, own_col, cols_there, cols_here in cols:
                there, here = (rows_there, cols_there), (rows_here, cols_here)
                if own_row and own_col:
                    yield Piece(there=there, strip=None, here=here)
                else:
                    yield self._piece(row * across + col, there, here, scale, reach)

    def _piece(self, index: int, there: Slices, here: Slices, scale: int, reach: int) -> Piece:
        tile, (rows, cols) = self.tiles[index], here
        below = tile.height * scale - min(reach, tile.height * scale)
        beyond = tile.width * scale - min(reach, tile.width * scale)
        if rows.stop - rows.start <= reach and rows.start == 0:
            return Piece(there=there, strip=(index, "top"), here=here)
        if rows.stop - rows.start <= reach and rows.stop == tile.height * scale:
            return Piece(there=there, strip=(index, "bottom"), here=(_moved(rows, below), cols))
        if cols.start == 0:
            return Piece(there=there, strip=(index, "left"), here=here)
        return Piece(there=there, strip=(index, "right"), here=(rows, _moved(cols, beyond)))


def tile_side(scale_factor: int) -> int:
    """Latents of a tile's side: 256 pixels, or more where that is fewer latents than a layer can use well."""
    return max(_SMALLEST_SIDE, _PIXELS // scale_factor)


def cut_into_tiles(canvas: Topology, height: int, width: int | None = None) -> tuple[Rect, ...]:
    """All tiles of a canvas, `height` x `width` latents (square unless told), row by row, clipped to it."""
    width = height if width is None else width
    return tuple(
        Rect(y=y, x=x, height=min(height, canvas.height - y), width=min(width, canvas.width - x))
        for y in range(0, canvas.height, height)
        for x in range(0, canvas.width, width)
    )


def even_grid(canvas: Topology, side: int, world_size: int) -> TileGrid:
    """A grid whose tiles are dealt out in contiguous runs, which differ in length by one at most."""
    count = len(cut_into_tiles(canvas, side))
    owners = tuple(
        rank
        for rank in range(world_size)
        for _ in range(count * rank // world_size, count * (rank + 1) // world_size)
    )
    return TileGrid(canvas=canvas, side=side, owners=owners, world_size=world_size)


def _along(
    first: int, count: int, reach: int, length: int, wraps: bool, side: int
) -> Iterator[tuple[int, bool, slice, slice]]:
    """The tiles that a run with a margin meets along one direction: (number, whether it is the run itself,
    slice of the run with its margin, slice of the tile)."""
    low, high = first - reach, first + count + reach
    if not wraps:
        low, high = max(0, low), min(length, high)
    at = low
    while at < high:
        place = at % length
        number = place // side
        taken = min(min((number + 1) * side, length) - place, high - at)
        yield (
            number,
            at == first,
            slice(at - low, at - low + taken),
            slice(place - number * side, place - number * side + taken),
        )
        at += taken


def _moved(span: slice, by: int) -> slice:
    return slice(span.start - by, span.stop - by)
