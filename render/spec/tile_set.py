"""Tile sets: pictures that are rendered together so that any two whose sides are marked alike join.

After "Tiled Diffusion" (Madar and Fried, CVPR 2025) and the tiles of Wang (1961): a side carries a mark, and
a right side joins every left side of the same mark, a bottom side every such top side. One right and one left
side of a mark join one to one, several join many to many. All tiles lie on one sheet, each next to neighbours
that it may have, so that windows run across their sides; `render.plan.latent_classes` makes what is near sides of one
mark the same. Pure geometry.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any

from render.errors import BadInput
from render.spec.validation import checked_mapping

MOST_TILES = 256
_MOST_TRIES = 200_000
"""Placements that are tried before a set counts as one that cannot be laid out."""
_OPPOSITE = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}


@dataclass(frozen=True, kw_only=True)
class SetTile:
    """One tile of a set; a side without a mark joins nothing for sure.

    Raises `BadInput` on construction for a tile without a name.
    """

    name: str
    left: str = ""
    right: str = ""
    top: str = ""
    bottom: str = ""

    def __post_init__(self) -> None:
        for side in fields(self):
            value = getattr(self, side.name)
            if not isinstance(value, str) or not value.isprintable() or "/" in value:
                raise BadInput("tile_set", value, f"as the {side.name} of a tile is no word; use e.g. a")
        if not self.name.strip() or self.name.startswith("."):
            raise BadInput("tile_set", self.name, "is no name of a tile; use e.g. lawn")

    @classmethod
    def from_any(cls, value: Any) -> SetTile:
        """From names and values, or from text as `lawn: a,b,,` (marks of left, right, top, bottom)."""
        if isinstance(value, SetTile):
            return value
        if isinstance(value, str):
            name, colon, marks = value.partition(":")
            words = [word.strip() for word in marks.split(",")]
            if not colon or len(words) > 4:
                raise BadInput(
                    "tile_set", value, "is not name: left,right,top,bottom; write e.g. lawn: a,b,,"
                )
            return cls(name=name.strip(), **dict(zip(_OPPOSITE, words, strict=False)))
        given = checked_mapping("tile_set", cls, value, "is no tile; write e.g. lawn: a,b,,")
        if "name" not in given:
            raise BadInput("tile_set", dict(given), "lacks its name")
        # YAML reads the mark 1 as a number.
        return cls(**{name: str(each) if isinstance(each, int) else each for name, each in given.items()})


@dataclass(frozen=True, kw_only=True)
class TileSetLayout:
    """Where the tiles of a set lie: `rows` x `cols` equal cells, row by row."""

    rows: int
    cols: int
    tiles: tuple[SetTile, ...]

    @property
    def wrap_x(self) -> bool:
        """The sheet's left and right sides are joined: some tile's are marked."""
        return any(tile.left or tile.right for tile in self.tiles)

    @property
    def wrap_y(self) -> bool:
        return any(tile.top or tile.bottom for tile in self.tiles)

    def at(self, row: int, col: int) -> SetTile:
        return self.tiles[row % self.rows * self.cols + col % self.cols]

    def parts(self, width: int, height: int) -> dict[str, tuple[int, int, int, int]]:
        """By name, where each tile lies on a sheet of a size: (x, y, width, height)."""
        wide, tall = width // self.cols, height // self.rows
        return {
            self.at(row, col).name: (col * wide, row * tall, wide, tall)
            for row in range(self.rows)
            for col in range(self.cols)
        }


@lru_cache(maxsize=64)
def solve_layout(tiles: tuple[SetTile, ...], width: int, height: int) -> TileSetLayout:
    """Put each tile once on a sheet of `width` x `height`, next to tiles that it may join.

    Tiles as near to squares as can be; in the order in which they are given where that will do. Raises
    `BadInput` for names that are given twice, marks that have no counterpart, and sets that cannot be laid
    out.
    """
    _check(tiles)
    shapes = [(rows, len(tiles) // rows) for rows in range(1, len(tiles) + 1) if len(tiles) % rows == 0]
    for rows, cols in sorted(shapes, key=lambda shape: abs(math.log(width / shape[1] * shape[0] / height))):
        found = _Search(tiles, rows, cols).run()
        if found is not None:
            return TileSetLayout(rows=rows, cols=cols, tiles=tuple(found))
    raise BadInput(
        "tile_set",
        ", ".join(tile.name for tile in tiles),
        "cannot be laid out so that all sides meet their like; add tiles, or marks to fewer sides",
    )


def _check(tiles: tuple[SetTile, ...]) -> None:
    names = [tile.name for tile in tiles]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise BadInput("tile_set", twice, "names two tiles; give each a name of its own")
    if len(tiles) > MOST_TILES:
        raise BadInput("tile_set", len(tiles), f"tiles are too many; use at most {MOST_TILES}")
    for side, other in _OPPOSITE.items():
        theirs = {getattr(tile, other) for tile in tiles}
        for tile in tiles:
            mark = getattr(tile, side)
            if mark and mark not in theirs:
                raise BadInput("tile_set", mark, f"marks the {side} of {tile.name} but no tile's {other}")
    if not any(getattr(tile, side) for tile in tiles for side in _OPPOSITE):
        raise BadInput("tile_set", names[0], "has no marked side, nor has any other tile; mark some")


def _join(first: str, second: str) -> bool:
    """Whether two sides may meet on the sheet; one without a mark meets any."""
    return first == second or not first or not second


class _Search:
    """Backtracking, cell by cell; the first tiles are tried first."""

    def __init__(self, tiles: tuple[SetTile, ...], rows: int, cols: int) -> None:
        self._tiles, self._rows, self._cols = tiles, rows, cols
        self._placed: list[SetTile] = []
        self._tries = 0

    def run(self) -> list[SetTile] | None:
        return self._placed if self._go_on() else None

    def _go_on(self) -> bool:
        if len(self._placed) == len(self._tiles):
            return True
        for tile in self._tiles:
            self._tries += 1
            if tile in self._placed or not self._fits(tile):
                continue
            self._placed.append(tile)
            if self._go_on():
                return True
            self._placed.pop()
            if self._tries > _MOST_TRIES:
                break
        return False

    def _fits(self, tile: SetTile) -> bool:
        """On the next cell; the last ones of a row and of a column meet the first ones too."""
        row, col = divmod(len(self._placed), self._cols)
        placed = [*self._placed, tile]
        return (
            (col == 0 or _join(placed[-2].right, tile.left))
            and (row == 0 or _join(placed[-1 - self._cols].bottom, tile.top))
            and (col < self._cols - 1 or _join(tile.right, placed[row * self._cols].left))
            and (row < self._rows - 1 or _join(tile.bottom, placed[col].top))
        )
