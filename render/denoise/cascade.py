"""From one stage of the cascade to the next: start from noise, or from the finished stage below.

A stage above the first decodes the one below, enlarges its pixels, encodes them again and noises them to
the spec's strength (SDEdit, Meng et al. 2022; DemoFusion, Du et al. 2024, does the like on latents). The
work is laid out in refinement tiles by the spec; ranks take turns, and one gather of the new latents
gives all of them the whole canvas.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from render.denoise.canvas import Canvas
from render.denoise.group import Group
from render.denoise.noise import INITIAL, normal
from render.models.adapter import Adapter, NoiseSchedule
from render.plan.geometry import Rect, grown
from render.plan.stages import Stage

LARGEST_REFINE_TILE = 64
"""Longest side of a refinement tile on the new canvas, in latents; small canvases are cut in four."""
_BICUBIC_REACH = 3
"""Source pixels around a point that a bicubic kernel reads, and one to spare."""


def first_canvas(stage: Stage, schedule: NoiseSchedule, seed: int, channels: int) -> Canvas:
    """Pure noise, at the scale that the sampler starts from."""
    return Canvas(step=0, planes=_noise(stage, seed, channels).mul_(schedule.initial_scale)[None])


def next_canvas(latents: Tensor, stage: Stage, schedule: NoiseSchedule, seed: int) -> Canvas:
    """Enlarged latents [C, height, width] of the stage below, noised to the stage's first step."""
    sigma = schedule.sigmas[stage.first_step]
    noised = _noise(stage, seed, latents.shape[0]).mul_(sigma).add_(latents)
    return Canvas(step=stage.first_step, planes=noised[None])


def enlarge(latents: Tensor, stage: Stage, adapter: Adapter, group: Group, device: torch.device) -> Tensor:
    """[C, h, w] finished latents of the stage below -> [C, height, width] for `stage`, on the host."""
    tiles = _refine_tiles(stage)
    share = -(-len(tiles) // group.world_size)
    mine = tiles[group.rank * share : (group.rank + 1) * share]
    height, width = stage.grid.height, stage.grid.width
    side = _refine_side(height), _refine_side(width)
    message = torch.zeros((share, latents.shape[0], *side), device=device)
    for slot, tile in enumerate(mine):
        fresh = _refined(latents, tile, stage, adapter, device)
        message[slot, :, : tile.height, : tile.width] = fresh
    messages = group.all_gather(message).wait().cpu().flatten(0, 1)
    whole = torch.empty((latents.shape[0], height, width))
    for slot, tile in enumerate(tiles):
        rows, cols = tile.slices
        whole[:, rows, cols] = messages[slot, :, : tile.height, : tile.width]
    return whole


def _noise(stage: Stage, seed: int, channels: int) -> Tensor:
    whole = Rect(y=0, x=0, height=stage.grid.height, width=stage.grid.width)
    return torch.from_numpy(normal(seed, stage.index, INITIAL, channels, whole))


def _refine_tiles(stage: Stage) -> list[Rect]:
    height, width = stage.grid.height, stage.grid.width
    tall, wide = _refine_side(height), _refine_side(width)
    return [
        Rect(y=y, x=x, height=min(tall, height - y), width=min(wide, width - x))
        for y in range(0, height, tall)
        for x in range(0, width, wide)
    ]


def _refine_side(length: int) -> int:
    return min(LARGEST_REFINE_TILE, -(-length // 2))


def _refined(below: Tensor, tile: Rect, stage: Stage, adapter: Adapter, device: torch.device) -> Tensor:
    """New latents [C, tile.height, tile.width] of one refinement tile."""
    halo, pixel = adapter.facts.decode_halo, adapter.facts.scale_factor
    canvas = Rect(y=0, x=0, height=stage.grid.height, width=stage.grid.width)
    wide = grown(tile, halo, canvas)
    pixels = _enlarged_pixels(below, wide, stage, adapter, device)
    fresh = adapter.encode(pixels)[0]
    top, left = tile.y - wide.y, tile.x - wide.x
    assert pixels.shape[-1] == wide.width * pixel
    return fresh[:, top : top + tile.height, left : left + tile.width]


def _enlarged_pixels(
    below: Tensor, wide: Rect, stage: Stage, adapter: Adapter, device: torch.device
) -> Tensor:
    """[1, 3, H, W] pixels of the area `wide` (in the new canvas's latents), from the stage below."""
    pixel = adapter.facts.scale_factor
    ratio_y, ratio_x = below.shape[1] / stage.grid.height, below.shape[2] / stage.grid.width
    # Where the new pixels' centres lie on the picture below, in its pixels.
    y = (torch.arange(wide.height * pixel) + wide.y * pixel + 0.5) * ratio_y - 0.5
    x = (torch.arange(wide.width * pixel) + wide.x * pixel + 0.5) * ratio_x - 0.5
    source = Rect(y=0, x=0, height=below.shape[1], width=below.shape[2])
    span = partial(_latent_span, pixel=pixel)
    (top, bottom), (left, right) = span(y, source.height), span(x, source.width)
    needed = Rect(y=top, x=left, height=bottom - top, width=right - left)
    area = grown(needed, adapter.facts.decode_halo, source)
    rows, cols = area.slices
    picture = adapter.decode(below[None, :, rows, cols].to(device))
    # grid_sample wants places in [-1, 1] over the decoded area's edges.
    place_y = (y - area.y * pixel + 0.5) / (area.height * pixel) * 2 - 1
    place_x = (x - area.x * pixel + 0.5) / (area.width * pixel) * 2 - 1
    places = torch.stack(torch.meshgrid(place_x, place_y, indexing="xy"), dim=-1)[None].to(device)
    enlarged = functional.grid_sample(
        picture, places, mode="bicubic", padding_mode="border", align_corners=False
    )
    return enlarged.clamp_(0.0, 1.0)


def _latent_span(places: Tensor, length: int, pixel: int) -> tuple[int, int]:
    """The latents [first, end) whose pixels a bicubic kernel reads at these places."""
    first = (int(places[0].floor()) - _BICUBIC_REACH) // pixel
    last = (int(places[-1].ceil()) + _BICUBIC_REACH) // pixel
    return max(0, first), min(length, last + 1)
