"""Latents to pixels, in decode tiles that the spec lays out, each with enough halo around it."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from render.models.adapter import Adapter
from render.picture.encode import Pixels
from render.plan.geometry import Rect, grown


def decode_block(adapter: Adapter, latents: Tensor, block: Rect, side: int, device: torch.device) -> Pixels:
    """Pixels of a block of the picture, decoded tile by tile.

    `latents` is the whole canvas [C, h, w] on the host; `block` is in pixels, aligned to decode tiles of
    `side` latents. Tiles start at multiples of `side` on the canvas, so a block's pixels do not depend on
    who decodes it.
    """
    scale = adapter.facts.scale_factor
    picture = np.empty((block.height, block.width, 3), np.uint8)
    step = side * scale
    for y in range(block.y, block.y + block.height, step):
        for x in range(block.x, block.x + block.width, step):
            height = min(step, block.y + block.height - y)
            width = min(step, block.x + block.width - x)
            tile = Rect(y=y // scale, x=x // scale, height=height // scale, width=width // scale)
            top, left = y - block.y, x - block.x
            picture[top : top + height, left : left + width] = _decode_tile(adapter, latents, tile, device)
    return picture


def _decode_tile(adapter: Adapter, latents: Tensor, tile: Rect, device: torch.device) -> Pixels:
    facts = adapter.facts
    canvas = Rect(y=0, x=0, height=latents.shape[1], width=latents.shape[2])
    wide = grown(tile, facts.decode_halo, canvas)
    rows, cols = wide.slices
    pixels = adapter.decode(latents[None, :, rows, cols].to(device))[0]
    top, left = (tile.y - wide.y) * facts.scale_factor, (tile.x - wide.x) * facts.scale_factor
    height, width = tile.height * facts.scale_factor, tile.width * facts.scale_factor
    kept = pixels[:, top : top + height, left : left + width]
    return (kept * 255.0).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
