"""Runs a layered autoencoder over tiles with any number of ranks in this process."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from render.models.autoencoders.tile_store import TileStore
from render.models.autoencoders.tiles import TilePass
from render.plan.tile_grid import even_grid
from render.plan.topology import Topology
from tests.support.groups import ThreadGroup, run_ranks


def run_over_tiles(
    autoencoder: Any,
    source: Tensor,
    canvas: Topology,
    side: int,
    *,
    ranks: int = 1,
    budget: int | None = None,
) -> Tensor:
    """Pixels of latents [1, C, h, w], or latents of pixels [1, 3, H, W]; the same bits on every rank."""
    scale = source.shape[-1] // canvas.width

    def work(group: ThreadGroup) -> Tensor:
        grid = even_grid(canvas, side, ranks)
        with TileStore(torch.device("cpu"), budget) as store:
            run = TilePass(grid=grid, group=group, store=store, dtype=autoencoder.dtype)

            def piece(index: int) -> Tensor:
                tile = grid.tiles[index]
                rows = slice(tile.y * scale, (tile.y + tile.height) * scale)
                return source[..., rows, tile.x * scale : (tile.x + tile.width) * scale]

            entered = run.make(piece, source.shape[1], scale, torch.float32)
            layers = autoencoder.decode_tiles if scale == 1 else autoencoder.encode_tiles
            return layers(entered).gather(canvas.whole)  # type: ignore[no-any-return]

    first, *others = run_ranks(ranks, work)
    assert all(torch.equal(first, other) for other in others)
    return first
