"""A whole canvas through a layered autoencoder, over the tiles of all ranks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from render.canvas import LatentRegion
from render.distributed import Group
from render.guidance.color_correction import color_means, correct_tiles
from render.models.adapter import Adapter
from render.models.autoencoders.autoencoder import LayeredAutoencoder
from render.models.autoencoders.tile_store import TileStore
from render.models.autoencoders.tiles import TilePass, Tiles
from render.plan.geometry import Rect
from render.plan.tile_grid import TileGrid


def decode_layered(
    adapter: Adapter, latents: LatentRegion, grid: TileGrid, group: Group, store: TileStore
) -> Tiles:
    """The pixels of all tiles, float32 in [0, 1], in the colors that the stage keeps. All ranks must call it;
    `latents` holds this rank's tiles."""
    autoencoder = adapter.autoencoder
    assert isinstance(autoencoder, LayeredAutoencoder), "as its info says"
    run = TilePass(grid=grid, group=group, store=store, dtype=autoencoder.dtype)
    entered = run.make(
        lambda index: latents.read(grid.tiles[index])[None].to(store.device),
        adapter.info.latent_channels,
        dtype=torch.float32,
    )
    return correct_tiles(autoencoder.decode_tiles(entered), latents, adapter.info.scale_factor)


def encode_layered(
    pixels: Callable[[Rect], Tensor], grid: TileGrid, adapter: Adapter, group: Group, store: TileStore
) -> Callable[[Rect], Tensor]:
    """Latents and colors [C + 3, tile.height, tile.width] of each of this rank's tiles, of a canvas that is
    encoded as a whole. All ranks must call it; `pixels` gives [1, 3, H, W] in [0, 1] of a tile."""
    autoencoder, pixel = adapter.autoencoder, adapter.info.scale_factor
    assert isinstance(autoencoder, LayeredAutoencoder), "as its info says"
    run = TilePass(grid=grid, group=group, store=store, dtype=autoencoder.dtype)
    colors: dict[int, Tensor] = {}

    def entered(index: int) -> Tensor:
        picture = pixels(grid.tiles[index])
        colors[index] = color_means(picture, pixel)
        return picture.to(store.device)

    latents = autoencoder.encode_tiles(run.make(entered, 3, pixel, torch.float32))
    numbers = {grid.tiles[index]: index for index in run.own}

    def encoded(tile: Rect) -> Tensor:
        number = numbers[tile]
        return torch.cat([latents.read(number)[0], colors[number].to(store.device)])

    return encoded
