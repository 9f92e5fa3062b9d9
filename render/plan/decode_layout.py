"""How a finished image is cut for decoding and for the Deep Zoom pyramid: pure geometry, in pixels.

A block is an aligned square of the full-resolution image. One rank decodes it, cuts it into tiles and halves
it, level after level, without any other rank. Its side is a power of two times the tile's side and comes from
the spec, never from the rank count.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from render.model_info import ModelInfo
from render.plan.attention_window import attends_to_whole, window_radius
from render.plan.geometry import Rect, bounding
from render.plan.tile_grid import TileGrid, cut_into_tiles, tile_side
from render.plan.topology import Topology
from render.spec import Spec

_SMALLEST_DECODE_TILE = 64
"""Side of a decode tile in latents, for models whose window is no larger. Large images use twice that:
they have enough decode tiles for many ranks, and the halo around a tile is decoded twice."""
PREVIEW_DECODE_TILE = 64
"""Side of a decode tile of a stage's preview, in latents."""
_PREVIEW_LARGEST_SIDE = 512
_PREVIEW_SHARE = 4
"""A preview is made of a stage whose sides are at most this many pixels and at most a quarter of the image's
own. The first stage always has one. Rank 0 alone decodes it while the others wait."""


@dataclass(frozen=True, kw_only=True)
class DecodeLayout:
    """The decode tiles, blocks and pyramid levels of one image.

    `decode_tile` and `halo` are in latents, all other lengths in pixels.
    """

    width: int
    height: int
    tile_size: int
    """Side of a tile of the pyramid."""
    block_size: int
    """Side of a block."""
    decode_tile: int
    """Side of the square that the autoencoder decodes at a time, without its halo."""
    scale_factor: int
    """Pixels per latent."""
    halo: int
    """Latents around a decode tile that its pixels depend on."""
    wrap_y: bool = False
    wrap_x: bool = False
    layered: bool = False
    """Whether the autoencoder is run layer by layer over the tiles of `tile_grid`."""
    attention_scale: int = 0
    """Tokens per latent, in each direction, that its attention compares; 0 without one."""

    @cached_property
    def top_level(self) -> int:
        """Number of the full-resolution level; level 0 is a single pixel (Deep Zoom's convention)."""
        return (max(self.width, self.height) - 1).bit_length()

    @cached_property
    def block_levels(self) -> int:
        """How many levels, from the full one down, a block holds in whole tiles."""
        return min((self.block_size // self.tile_size).bit_length(), self.top_level)

    @cached_property
    def blocks(self) -> tuple[Rect, ...]:
        """All blocks, row by row, clipped to the image."""
        side = self.block_size
        return tuple(
            Rect(y=y, x=x, height=min(side, self.height - y), width=min(side, self.width - x))
            for y in range(0, self.height, side)
            for x in range(0, self.width, side)
        )

    def blocks_of(self, rank: int, world_size: int) -> tuple[Rect, ...]:
        """The blocks of a rank: a contiguous run; runs differ in length by one at most."""
        total = len(self.blocks)
        return self.blocks[total * rank // world_size : total * (rank + 1) // world_size]

    @property
    def canvas(self) -> Topology:
        """In latents."""
        height, width = self.height // self.scale_factor, self.width // self.scale_factor
        return Topology(height=height, width=width, wrap_y=self.wrap_y, wrap_x=self.wrap_x)

    @property
    def attention_window(self) -> int | None:
        """Side of the window that the decoder's attention sees, in pixels; None where it sees all."""
        scale = self.attention_scale
        if attends_to_whole(self.canvas.height * self.canvas.width * scale**2):
            return None
        return (2 * window_radius(self.decode_tile * scale) + 1) * self.decode_tile * self.scale_factor

    def tile_grid(self, world_size: int) -> TileGrid:
        """The tiles that a layered autoencoder is run on; each is its block's rank's."""
        owner = {
            (block.y, block.x): rank
            for rank in range(world_size)
            for block in self.blocks_of(rank, world_size)
        }
        side = self.block_size // self.scale_factor
        owners = tuple(
            owner[tile.y // side * self.block_size, tile.x // side * self.block_size]
            for tile in cut_into_tiles(self.canvas, self.decode_tile)
        )
        return TileGrid(canvas=self.canvas, side=self.decode_tile, owners=owners, world_size=world_size)

    def latents_of(self, rank: int, world_size: int) -> Rect:
        """The latents that the rank's blocks are decoded from, their halo included."""
        blocks = bounding(self.blocks_of(rank, world_size))
        if not blocks.area:
            return blocks
        scale = self.scale_factor
        inside = Rect(
            y=blocks.y // scale,
            x=blocks.x // scale,
            height=blocks.height // scale,
            width=blocks.width // scale,
        )
        return self.canvas.bounding_rect([self.canvas.pad(inside, self.halo)])

    def size_at(self, level: int) -> tuple[int, int]:
        """(width, height) of a level, halved with the ceiling."""
        shift = self.top_level - level
        return -(-self.width >> shift), -(-self.height >> shift)

    def tiles_at(self, level: int) -> int:
        """Number of tiles of a level."""
        width, height = self.size_at(level)
        return -(-width // self.tile_size) * -(-height // self.tile_size)

    @cached_property
    def tile_count(self) -> int:
        """Number of tiles of all levels."""
        return sum(self.tiles_at(level) for level in range(self.top_level + 1))


def make_decode_layout(spec: Spec, info: ModelInfo) -> DecodeLayout:
    """Blocks grow with the image, so that what is left for the few top levels stays small."""
    native = info.native_size // info.scale_factor
    longest = max(spec.width, spec.height)
    grown = 0 if longest <= 2048 else 1 if longest <= 8192 else 2
    smallest = _SMALLEST_DECODE_TILE << min(grown, 1)
    decode_tile = max(smallest, 1 << (native - 1).bit_length())
    if info.layered_autoencoder:
        # Its tiles have no halo that would be decoded twice.
        decode_tile = tile_side(info.scale_factor)
    block = max(spec.tile_size << grown, decode_tile * info.scale_factor << max(0, grown - 1))
    return DecodeLayout(
        width=spec.width,
        height=spec.height,
        tile_size=spec.tile_size,
        block_size=block,
        decode_tile=decode_tile,
        scale_factor=info.scale_factor,
        halo=info.decode_halo,
        wrap_y=spec.wrap_y,
        wrap_x=spec.wrap_x,
        layered=info.layered_autoencoder,
        attention_scale=info.attention_scale,
    )


def has_preview(index: int, width: int, height: int, image_side: int) -> bool:
    """Whether stage `index` of `width` x `height` pixels is small enough to be shown while the image, whose
    longer side is `image_side` pixels, is rendered."""
    limit = min(_PREVIEW_LARGEST_SIDE, image_side // _PREVIEW_SHARE)
    return index == 0 or max(width, height) <= limit


def tile_key(level: int, col: int, row: int, ending: str) -> str:
    """Deep Zoom's path of a tile."""
    return f"image_files/{level}/{col}_{row}.{ending}"
