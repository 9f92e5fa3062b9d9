"""Latents to pixels, in decode tiles that the plan lays out, each with enough halo around it."""

from __future__ import annotations

import numpy as np
import torch

from render.canvas import LatentRegion
from render.guidance.color_correction import decode_region
from render.models.adapter import Adapter
from render.output.encode import Pixels
from render.plan.geometry import Rect


def decode_block(
    adapter: Adapter, latents: LatentRegion, block: Rect, decode_tile: int, device: torch.device
) -> Pixels:
    """[block.height, block.width, 3] pixels of a block of the image, decoded tile by tile.

    `latents` holds the block and its halo; `block` is in pixels, aligned to decode tiles of `decode_tile`
    latents. On a canvas that wraps, a tile at its edge takes its halo from the other side. Tiles start at
    multiples of `decode_tile` on the canvas, so a block's pixels do not depend on the rank that decodes it.
    """
    scale = adapter.info.scale_factor
    pixels = np.empty((block.height, block.width, 3), np.uint8)
    step = decode_tile * scale
    for y in range(block.y, block.y + block.height, step):
        for x in range(block.x, block.x + block.width, step):
            height = min(step, block.y + block.height - y)
            width = min(step, block.x + block.width - x)
            tile = Rect(y=y // scale, x=x // scale, height=height // scale, width=width // scale)
            top, left = y - block.y, x - block.x
            pixels[top : top + height, left : left + width] = _decode_tile(adapter, latents, tile, device)
    return pixels


def _decode_tile(adapter: Adapter, latents: LatentRegion, tile: Rect, device: torch.device) -> Pixels:
    info = adapter.info
    padded = latents.canvas.pad(tile, info.decode_halo)
    pixels = decode_region(latents, padded, adapter, device)[0]
    top, left = (tile.y - padded.y) * info.scale_factor, (tile.x - padded.x) * info.scale_factor
    height, width = tile.height * info.scale_factor, tile.width * info.scale_factor
    inside = pixels[:, top : top + height, left : left + width]
    return inside.mul_(255.0).round_().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
