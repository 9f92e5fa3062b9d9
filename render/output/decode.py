"""Latents to pixels, block by block: in decode tiles with their halo, or layer by layer over all ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from render.canvas import LatentRegion
from render.denoise.layered import decode_layered
from render.distributed import Group
from render.finite import check_autoencoder
from render.guidance.color_correction import decode_region
from render.models.adapter import Adapter
from render.models.autoencoders.tile_store import TileStore
from render.output.pixels import Pixels
from render.plan.geometry import Rect
from render.plan.tile_grid import TileGrid

DecodeBlock = Callable[[Rect], Pixels]
"""A block of the image, in pixels, aligned to decode tiles -> [block.height, block.width, 3] pixels."""


@contextmanager
def block_decoder(
    adapter: Adapter,
    latents: LatentRegion,
    grid: TileGrid,
    group: Group,
    device: torch.device,
    depth: int = 8,
) -> Iterator[DecodeBlock]:
    """Decodes blocks of this rank's tiles to `depth` bits. All ranks must call it.

    `latents` holds them and the halo of the decoder. Tiles start at multiples of the grid's side on the
    canvas, so a block's pixels do not depend on the rank that decodes it. On a canvas that wraps, a tile at
    its edge takes its halo from the other side. A layered autoencoder decodes all tiles at the start.
    """
    scale, side = adapter.info.scale_factor, grid.side
    if not adapter.info.layered_autoencoder:
        yield lambda block: _put_together(
            block, side, scale, lambda tile: _in_bits(_decode_tile(adapter, latents, tile, device), depth)
        )
        return
    across = -(-grid.canvas.width // side)
    with TileStore(device) as store:
        pixels = decode_layered(adapter, latents, grid, group, store)
        yield lambda block: _put_together(
            block,
            side,
            scale,
            lambda tile: _in_bits(pixels.read(tile.y // side * across + tile.x // side)[0], depth),
        )


def _put_together(block: Rect, side: int, scale: int, decoded: Callable[[Rect], Pixels]) -> Pixels:
    """The pixels of a block from those of its tiles, of `side` latents, which `decoded` gives."""
    pixels: Pixels | None = None
    step = side * scale
    for y in range(block.y, block.y + block.height, step):
        for x in range(block.x, block.x + block.width, step):
            height = min(step, block.y + block.height - y)
            width = min(step, block.x + block.width - x)
            tile = Rect(y=y // scale, x=x // scale, height=height // scale, width=width // scale)
            top, left = y - block.y, x - block.x
            part = decoded(tile)
            if pixels is None:
                pixels = np.empty((block.height, block.width, 3), part.dtype)
            pixels[top : top + height, left : left + width] = part
    assert pixels is not None, "a block has a tile"
    return pixels


def _decode_tile(adapter: Adapter, latents: LatentRegion, tile: Rect, device: torch.device) -> Tensor:
    info = adapter.info
    padded = latents.canvas.pad(tile, info.decode_halo)
    pixels = decode_region(latents, padded, adapter, device)[0]
    top, left = (tile.y - padded.y) * info.scale_factor, (tile.x - padded.x) * info.scale_factor
    height, width = tile.height * info.scale_factor, tile.width * info.scale_factor
    return pixels[:, top : top + height, left : left + width]


def _in_bits(pixels: Tensor, depth: int) -> Pixels:
    """[3, H, W] in [0, 1] -> [H, W, 3] in [0, 255], or in [0, 65535] for 16 bits."""
    check_autoencoder(pixels, "when it decoded the image")
    if depth == 8:
        return pixels.mul(255.0).round_().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    return pixels.mul(65535.0).round_().to(torch.int32).permute(1, 2, 0).cpu().numpy().astype(np.uint16)
