"""Tile sets: tiles rendered together so that any two join without a seam where their edge labels are equal.

After "Tiled Diffusion" (Madar and Fried, CVPR 2025) and Wang tiles (1961). A side carries an edge label: a
right side joins every left side of the same label, a bottom side every such top side. One right and one left
side of a label join one to one, several join many to many. All tiles lie in one layout, each next to
neighbors that it may have, so that windows cross the tiles' sides; `render.plan.latent_classes` makes the
latents near sides of one label the same. Pure geometry.
"""

from __future__ import annotations

import dataclasses
import math
from functools import lru_cache
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BeforeValidator, Field
from pydantic.dataclasses import dataclass

from render.errors import BadInput
from render.spec.fields import problem
from render.spec.validation import CONFIG, Checked

EXAMPLE = "lawn: a,b,,"
MOST_TILES = 256
_MOST_TRIES = 200_000
"""Placements tried before a set counts as having no layout."""
_LARGEST_LABEL = 10**18
"""Above it a whole number is no label."""
_OPPOSITE = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}


def _check_label(text: str) -> str:
    if not text.isprintable() or "/" in text:
        raise problem("is not a plain word; use e.g. a")
    return text


def _check_name(text: str) -> str:
    if not text.strip() or text.startswith("."):
        raise problem("is not a name; use e.g. lawn")
    return text


def _as_text(value: Any) -> Any:
    # YAML reads the label 1 as a number.
    return str(value) if isinstance(value, int) and abs(value) < _LARGEST_LABEL else value


Label = Annotated[
    str, BeforeValidator(_as_text, json_schema_input_type=str | int), AfterValidator(_check_label)
]
_SIDE = "Edge label of the {} side; empty: it need not match anything."


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class SetTile(Checked):
    """One tile of a set. A side with no label matches nothing in particular.

    Raises `BadInput` on construction for a tile without a name.
    """

    part_of: ClassVar[str] = "tile_set"

    name: Annotated[
        Label, AfterValidator(_check_name), Field(description="The tile's name.", examples=["lawn"])
    ]
    left: Annotated[Label, Field(description=_SIDE.format("left"), examples=["a"])] = ""
    right: Annotated[Label, Field(description=_SIDE.format("right"), examples=["a"])] = ""
    top: Annotated[Label, Field(description=_SIDE.format("top"), examples=["a"])] = ""
    bottom: Annotated[Label, Field(description=_SIDE.format("bottom"), examples=["a"])] = ""

    @classmethod
    def from_any(cls, value: Any) -> SetTile:
        """From names and values, or from text as `lawn: a,b,,` (labels of left, right, top, bottom)."""
        if isinstance(value, SetTile):
            return value
        if not isinstance(value, str):
            return cls.from_values(value, f"is not a tile; write e.g. {EXAMPLE}")
        name, colon, labels = value.partition(":")
        sides = [side.strip() for side in labels.split(",")]
        if not colon or len(sides) > 4:
            raise BadInput("tile_set", value, f"is not name: left,right,top,bottom; write e.g. {EXAMPLE}")
        return cls(name=name.strip(), **dict(zip(_OPPOSITE, sides, strict=False)))


@dataclasses.dataclass(frozen=True, kw_only=True)
class TileSetLayout:
    """Where the tiles of a set lie: `rows` x `cols` equal cells, row by row."""

    rows: int
    cols: int
    tiles: tuple[SetTile, ...]

    @property
    def wrap_x(self) -> bool:
        """Whether the layout's left and right sides join: some tile has a label there."""
        return any(tile.left or tile.right for tile in self.tiles)

    @property
    def wrap_y(self) -> bool:
        return any(tile.top or tile.bottom for tile in self.tiles)

    def at(self, row: int, col: int) -> SetTile:
        return self.tiles[row % self.rows * self.cols + col % self.cols]

    def parts(self, width: int, height: int) -> dict[str, tuple[int, int, int, int]]:
        """By name, where each tile lies in a layout of this size: (x, y, width, height)."""
        wide, tall = width // self.cols, height // self.rows
        return {
            self.at(row, col).name: (col * wide, row * tall, wide, tall)
            for row in range(self.rows)
            for col in range(self.cols)
        }


@lru_cache(maxsize=64)
def solve_layout(tiles: tuple[SetTile, ...], width: int, height: int) -> TileSetLayout:
    """Place each tile once in a layout of `width` x `height`, next to tiles that it may join.

    Tiles are as close to squares as possible, and in the given order where that works. Raises `BadInput` for
    duplicate names, labels without a counterpart, and sets that have no layout.
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
        "have no layout in which all sides match; add tiles, or label fewer sides",
    )


def _check(tiles: tuple[SetTile, ...]) -> None:
    names = [tile.name for tile in tiles]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise BadInput("tile_set", twice, "is the name of two tiles; rename one")
    if len(tiles) > MOST_TILES:
        raise BadInput("tile_set", len(tiles), f"tiles are too many; use at most {MOST_TILES}")
    for side, other in _OPPOSITE.items():
        theirs = {getattr(tile, other) for tile in tiles}
        for tile in tiles:
            label = getattr(tile, side)
            if label and label not in theirs:
                fix = f"labels the {side} of {tile.name} but no tile's {other}; label one"
                raise BadInput("tile_set", label, fix)
    if not any(getattr(tile, side) for tile in tiles for side in _OPPOSITE):
        raise BadInput("tile_set", names[0], "has no labeled side, nor has any other tile; label some")


def _join(first: str, second: str) -> bool:
    """Whether two sides may meet in the layout; one without a label meets any."""
    return first == second or not first or not second


class _Search:
    """Backtracking, cell by cell; the first tiles are tried first.

    Sets of tiles are the bits of one number, so that the tiles that fit a cell are a few operations away.
    """

    def __init__(self, tiles: tuple[SetTile, ...], rows: int, cols: int) -> None:
        self._tiles, self._rows, self._cols = tiles, rows, cols
        self._right_of, self._left_of = self._that_join("right"), self._that_join("left")
        self._below, self._above = self._that_join("bottom"), self._that_join("top")
        self._placed: list[int] = []
        self._free = (1 << len(tiles)) - 1
        self._tries = 0

    def run(self) -> list[SetTile] | None:
        return [self._tiles[number] for number in self._placed] if self._place_next() else None

    def _that_join(self, side: str) -> list[int]:
        """Per tile, the tiles whose opposite side may meet this side of it."""
        bits: dict[str, int] = {}
        for number, tile in enumerate(self._tiles):
            label = getattr(tile, _OPPOSITE[side])
            bits[label] = bits.get(label, 0) | 1 << number
        every = (1 << len(self._tiles)) - 1
        labels = (getattr(tile, side) for tile in self._tiles)
        return [bits.get(label, 0) | bits.get("", 0) if label else every for label in labels]

    def _place_next(self) -> bool:
        if len(self._placed) == len(self._tiles):
            return True
        fitting, tried = self._fitting(), 0
        while fitting:
            number = (fitting & -fitting).bit_length() - 1
            fitting &= fitting - 1
            # Those in between were looked at too: the limit decides which layout a set has.
            self._tries += number + 1 - tried
            tried = number + 1
            self._placed.append(number)
            self._free ^= 1 << number
            if self._place_next():
                return True
            self._free ^= 1 << self._placed.pop()
            if self._tries > _MOST_TRIES:
                return False
        self._tries += len(self._tiles) - tried
        return False

    def _fitting(self) -> int:
        """The free tiles that fit the next cell; the last cells of a row and of a column meet the first ones
        too."""
        row, col = divmod(len(self._placed), self._cols)
        found = self._free
        if col:
            found &= self._right_of[self._placed[-1]]
        if row:
            found &= self._below[self._placed[-self._cols]]
        if col == self._cols - 1:
            # The only tile of a row meets itself.
            found &= self._left_of[self._placed[row * self._cols]] if col else self._alone("left", "right")
        if row == self._rows - 1:
            found &= self._above[self._placed[col]] if row else self._alone("top", "bottom")
        return found

    def _alone(self, side: str, other: str) -> int:
        """The tiles whose own opposite sides may meet."""
        return sum(
            1 << number
            for number, tile in enumerate(self._tiles)
            if _join(getattr(tile, side), getattr(tile, other))
        )
