"""Bicubic interpolation between the pictures of two stages, at the places that the plan gives."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from render.plan.enlarge_layout import EnlargeLayout
from render.plan.geometry import Rect


def sample(picture: Tensor, read: Rect, area: Rect, layout: EnlargeLayout) -> Tensor:
    """The pixels of an area of the new canvas, by bicubic interpolation in a picture [1, 3, H, W] of `read`,
    an area of the one below, at any scale."""
    pixel = layout.scale_factor
    y, x = _positions(area, layout)
    # grid_sample takes positions in [-1, 1] over the edges of the picture.
    grid_y = (y - read.y * pixel + 0.5) / (read.height * pixel) * 2 - 1
    grid_x = (x - read.x * pixel + 0.5) / (read.width * pixel) * 2 - 1
    grid = torch.stack(torch.meshgrid(grid_x, grid_y, indexing="xy"), dim=-1)[None].to(picture.device)
    return functional.grid_sample(picture, grid, mode="bicubic", padding_mode="border", align_corners=False)


def _positions(area: Rect, layout: EnlargeLayout) -> tuple[Tensor, Tensor]:
    """Where the centers of the pixels of an area of the new canvas lie below, in pixels: (y, x)."""
    pixel, below = layout.scale_factor, layout.below
    assert below is not None, "there is a picture below"
    ratio_y, ratio_x = below.height / layout.canvas.height, below.width / layout.canvas.width
    y = (torch.arange(area.height * pixel) + area.y * pixel + 0.5) * ratio_y - 0.5
    x = (torch.arange(area.width * pixel) + area.x * pixel + 0.5) * ratio_x - 0.5
    return y, x
