"""Attention between the pooled tokens of all tiles of an image.

Each tile is pooled to a few cells. A cell's token is its mean over the latents, so it tells where the tile is
light, dark and of which color. Every cell attends to all cells of all tiles, and the result moves the tile.
The order of the tokens is that of the tiles, so every rank that has the tokens computes the same.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class CrossSpatialAttention(nn.Module):
    """Attention across the tiles of one picture. Usable alone:

    >>> tiles = torch.randn(4, 8, 16, 16)
    >>> CrossSpatialAttention(channels=8).sync(tiles).shape
    torch.Size([4, 8, 16, 16])

    The layer is `torch.nn.MultiheadAttention` over the tokens. Every projection starts as the identity, which
    needs no training: similar cells move closer together. All of its weights can be trained.
    """

    def __init__(self, channels: int, *, cells: int = 2, strength: float = 0.5) -> None:
        """`channels` of the latents, `cells` per side and tile, `strength` from 0 (no effect) to 1."""
        super().__init__()
        if channels < 1 or cells < 1:
            raise ValueError(f"channels {channels} and cells {cells} must be 1 or more")
        if not 0.0 <= strength <= 1.0:
            raise ValueError(f"strength {strength} is not from 0 to 1")
        self.cells, self.strength = cells, strength
        self.attention = nn.MultiheadAttention(channels, num_heads=1, bias=False, batch_first=True)
        with torch.no_grad():
            self.attention.in_proj_weight.copy_(torch.eye(channels).repeat(3, 1))
            self.attention.out_proj.weight.copy_(torch.eye(channels))

    def tokens(self, tiles: Tensor) -> Tensor:
        """[N, C, h, w] tiles -> [N, cells * cells, C] tokens: the means of the cells."""
        return functional.adaptive_avg_pool2d(tiles, self.cells).flatten(2).transpose(1, 2)

    def sync(self, tiles: Tensor, strength: float | None = None) -> Tensor:
        """[N, C, h, w] tiles of one image -> the same shape, each moved towards the tiles that it attends to.

        Only the means of the cells move, smoothly from cell to cell; detail stays as it is.
        """
        share = self.strength if strength is None else strength
        if share == 0.0:
            return tiles
        count, channels, height, width = tiles.shape
        own = self.tokens(tiles)
        all_tokens = own.reshape(1, -1, channels)
        attended, _ = self.attention(all_tokens, all_tokens, all_tokens, need_weights=False)
        moved = (attended.reshape(own.shape) - own) * share
        field = moved.transpose(1, 2).reshape(count, channels, self.cells, self.cells)
        return tiles + functional.interpolate(field, (height, width), mode="bilinear", align_corners=False)

    def forward(self, tiles: Tensor) -> Tensor:
        """The same as `sync`."""
        return self.sync(tiles)
