"""How a finished picture is cut for decoding and for the Deep Zoom pyramid: pure geometry, in pixels.

A block is an aligned square of the full-resolution picture that one rank decodes, cuts into tiles and
halves, level after level, without anybody else. Its side is a power of two times the tile's, laid out by
the spec, never by the rank count.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from render.model_info import ModelInfo
from render.output.seams import Lines, make_lines
from render.plan.geometry import Rect, bounding
from render.plan.stages import Stage
from render.plan.topology import Topology
from render.spec import Spec

_SMALLEST_DECODE = 64
"""Side of a decode tile in latents, for models whose window is no larger. Twice that in large pictures, which
have enough of them for many ranks: the halo around a tile is decoded twice."""


@dataclass(frozen=True, kw_only=True)
class DecodeLayout:
    """The layout of one picture. `decode_side` in latents, all other lengths in pixels."""

    width: int
    height: int
    tile: int
    block: int
    decode_side: int
    wrap_y: bool = False
    wrap_x: bool = False

    @cached_property
    def top_level(self) -> int:
        """Number of the full-resolution level; level 0 is a single pixel (Deep Zoom's convention)."""
        return (max(self.width, self.height) - 1).bit_length()

    @cached_property
    def block_levels(self) -> int:
        """How many levels, from the full one down, a block holds in whole tiles."""
        return min((self.block // self.tile).bit_length(), self.top_level)

    @cached_property
    def blocks(self) -> tuple[Rect, ...]:
        """All blocks, row by row, clipped to the picture."""
        return tuple(
            Rect(y=y, x=x, height=min(self.block, self.height - y), width=min(self.block, self.width - x))
            for y in range(0, self.height, self.block)
            for x in range(0, self.width, self.block)
        )

    def blocks_of(self, rank: int, world_size: int) -> tuple[Rect, ...]:
        """An unbroken run of the blocks; runs differ in length by one at most."""
        total = len(self.blocks)
        return self.blocks[total * rank // world_size : total * (rank + 1) // world_size]

    def latents_of(self, rank: int, world_size: int, info: ModelInfo) -> Rect:
        """The latents that the rank's blocks are decoded from, their halo included."""
        scale = info.scale_factor
        blocks = bounding(self.blocks_of(rank, world_size))
        if not blocks.area:
            return blocks
        inside = Rect(
            y=blocks.y // scale,
            x=blocks.x // scale,
            height=blocks.height // scale,
            width=blocks.width // scale,
        )
        canvas = Topology(
            height=self.height // scale,
            width=self.width // scale,
            wrap_y=self.wrap_y,
            wrap_x=self.wrap_x,
        )
        return canvas.bounding_rect([canvas.pad(inside, info.decode_halo)])

    def size_at(self, level: int) -> tuple[int, int]:
        """(width, height) of a level, halved with the ceiling."""
        shift = self.top_level - level
        return -(-self.width >> shift), -(-self.height >> shift)

    def tiles_at(self, level: int) -> int:
        width, height = self.size_at(level)
        return -(-width // self.tile) * -(-height // self.tile)

    @cached_property
    def tile_count(self) -> int:
        return sum(self.tiles_at(level) for level in range(self.top_level + 1))


def make_decode_layout(spec: Spec, info: ModelInfo) -> DecodeLayout:
    """Blocks grow with the picture, so that what is left for the few top levels stays small."""
    native = info.native_size // info.scale_factor
    longest = max(spec.width, spec.height)
    grown = 0 if longest <= 2048 else 1 if longest <= 8192 else 2
    smallest = _SMALLEST_DECODE << min(grown, 1)
    decode_side = max(smallest, 1 << (native - 1).bit_length())
    block = max(spec.tile_size << grown, decode_side * info.scale_factor << max(0, grown - 1))
    return DecodeLayout(
        width=spec.width,
        height=spec.height,
        tile=spec.tile_size,
        block=block,
        decode_side=decode_side,
        wrap_y=spec.wrap_y,
        wrap_x=spec.wrap_x,
    )


def seam_lines(cut: DecodeLayout, stage: Stage, seed: int, pixel: int) -> tuple[Lines, Lines]:
    """The columns and rows where a seam could be, and their controls: the edges of the last step's windows
    (region borders are some of them) and of the decode tiles; where the picture wraps, its own edge too.
    `pixel` is pixels per latent."""
    offset = stage.offset(seed, stage.steps - 1)
    lines = []
    for axis, at, length, across in (
        (stage.grid.cols, offset[1], cut.width, cut.height),
        (stage.grid.rows, offset[0], cut.height, cut.width),
    ):
        starts = axis.starts(at)
        edges = {start * pixel for start in starts} | {(start + axis.window) * pixel for start in starts}
        edges |= set(range(0, length, cut.decode_side * pixel))
        window = stage.grid.cols.window * pixel
        lines.append(make_lines(edges, window, length, across, pixel, wraps=axis.wraps))
    return lines[0], lines[1]


def tile_key(level: int, col: int, row: int, ending: str) -> str:
    """Deep Zoom's path of a tile."""
    return f"image_files/{level}/{col}_{row}.{ending}"
