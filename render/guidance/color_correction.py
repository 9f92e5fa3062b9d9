"""A stage keeps the colors of the image that it enlarges, also when it is decoded.

An autoencoder moves soft tints a little towards those it was trained on, and a cascade decodes and encodes at
every stage, so a shadow would become a stain. The right colors are known: their means over each latent's
pixels are kept beside the canvas, and wherever the stage is decoded, its coarse colors are moved to them.
Finer detail stays. (StableSR, Wang et al. 2023, and others correct the low frequencies of their result in the
same way.)
"""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor
from torch.nn import functional

from render.canvas import LatentRegion
from render.guidance.hook import GuidanceHook, StageContext
from render.guidance.ilvr import low_pass_matrix
from render.guidance.kept_pixels import put_over
from render.guidance.prediction_weights import stage_prompt_weights
from render.guidance.product_edge import RIM_LATENTS
from render.models.adapter import Adapter
from render.models.autoencoders.tiles import Patch, Tiles
from render.plan.stages import PAINTING_STAGES, Stage
from render.rect import Rect
from render.spec import Spec

COLOR_CHANNELS = 4
"""Channels of a color plane that are used: three means, and the strength by which they are kept."""
COARSE_SIGMA = 1.0
"""Standard deviation, in latents, of the Gaussian that separates coarse colors from fine ones."""
_COARSE_REACH = 4
"""Latents around a tile that its coarse colors depend on: three deviations, and one to interpolate."""


class ColorCorrection(GuidanceHook):
    """Passes the color plane of a stage on to the decoder. It changes no step."""

    def __init__(self, colors: Tensor) -> None:
        """`colors` is [C, area.height, area.width], a `color_plane`."""
        self._colors = colors

    @classmethod
    def create(cls, context: StageContext) -> Self | None:
        return None if context.reference is None else cls(context.reference.colors)

    def decoder_planes(self) -> Tensor:
        return self._colors[:COLOR_CHANNELS]


def color_strength(spec: Spec, stage: Stage, area: Rect) -> Tensor:
    """[area.height, area.width]: how strongly a stage keeps the colors of the image that it enlarges, 0 to 1.

    It is 0 in three places. The stage above the first one has a first image that is small enough to have
    stains of its own, and removes them. Where a region prompt first appears, the image below has nothing to
    keep. And in a tile set the sides that join are equal to the bit, but what lies behind them is not.
    """
    painted = PAINTING_STAGES if spec.kept is not None else 1 if spec.init is None else None
    cleans = stage.index == painted
    keeps = stage.enlarges and not cleans and stage.tile_set_layout is None
    strength = torch.full((area.height, area.width), spec.ilvr if keeps else 0.0)
    weights = stage_prompt_weights(spec, stage, area) if stage.composes else None
    if weights is not None:
        for number, patch in enumerate(stage.patches, start=1):
            if patch.text in stage.composes:
                strength *= 1.0 - weights[number]
    return strength


def decode_region(region: LatentRegion, area: Rect, adapter: Adapter, device: torch.device) -> Tensor:
    """[1, 3, H, W] pixels in [0, 1] of an area that the region holds, in the colors that its stage keeps, and
    with the pixels of the init image that are kept."""
    pixels = _corrected(adapter.decode(region.read(area)[None].to(device)), region, area, adapter)
    if region.kept is None:
        return pixels
    return put_over(pixels, region.kept, region.canvas, adapter.info.scale_factor, area, decoded=True)


def _corrected(pixels: Tensor, region: LatentRegion, area: Rect, adapter: Adapter) -> Tensor:
    if region.colors is None:
        return pixels
    colors = region.read_colors(area).to(pixels.device)
    missing = (colors[:3] - color_means(pixels, adapter.info.scale_factor)) * colors[3]
    vertical, horizontal = (
        low_pass_matrix(length, COARSE_SIGMA).to(missing.device) for length in missing.shape[1:]
    )
    coarse = (vertical @ missing @ horizontal.T)[None]
    smooth = functional.interpolate(coarse, pixels.shape[2:], mode="bilinear", align_corners=False)
    return pixels.add_(smooth).clamp_(0.0, 1.0)


def correct_tiles(pixels: Tiles, region: LatentRegion, scale_factor: int) -> Tiles:
    """`pixels` of a whole stage in the colors that it keeps, and with the pixels of the init image that are
    kept; `region` holds this rank's tiles.

    All ranks must call it. Frees `pixels`. The result is that of `decode_region` for the whole canvas.
    """
    corrected = _corrected_tiles(pixels, region, scale_factor)
    if region.kept is None:
        return corrected
    kept, canvas, tiles = region.kept, region.canvas, corrected.run.grid.tiles
    margin = RIM_LATENTS if kept.stands_free else 0

    def finished(patch: Patch, index: int) -> Tensor:
        area = canvas.pad(tiles[index], margin)
        return patch.center(put_over(patch.values, kept, canvas, scale_factor, area, decoded=True))

    return corrected.map(finished, channels=3, reach=margin * scale_factor)


def _corrected_tiles(pixels: Tiles, region: LatentRegion, scale_factor: int) -> Tiles:
    if region.colors is None:
        return pixels
    run, tiles = pixels.run, pixels.run.grid.tiles

    def missing_colors(index: int) -> Tensor:
        colors = region.read_colors(tiles[index]).to(run.device)
        return ((colors[:3] - color_means(pixels.read(index), scale_factor)) * colors[3])[None]

    missing = run.make(missing_colors, 3, dtype=pixels.dtype)
    corrected = run.empty_like(pixels)
    for index, patch in missing.patches(_COARSE_REACH):
        vertical, horizontal = (
            low_pass_matrix(length, COARSE_SIGMA).to(run.device) for length in patch.values.shape[2:]
        )
        coarse = vertical @ patch.values @ horizontal.T
        size = [length * scale_factor for length in coarse.shape[2:]]
        smooth = functional.interpolate(coarse, size, mode="bilinear", align_corners=False)
        corrected.put(index, (pixels.take(index) + patch.center(smooth, scale_factor)).clamp_(0.0, 1.0))
    missing.drop_all()
    pixels.drop_all()
    return corrected


def color_means(pixels: Tensor, scale_factor: int) -> Tensor:
    """[1, 3, H, W] pixels -> [3, H / scale_factor, W / scale_factor]: the mean over each latent's pixels."""
    return functional.avg_pool2d(pixels, scale_factor)[0]


def color_plane(colors: Tensor, strength: Tensor, channels: int) -> Tensor:
    """[3, h, w] means and the strength [h, w] by which they are kept, as a canvas plane [channels, h, w]."""
    plane = colors.new_zeros((channels, *colors.shape[1:]))
    plane[:3], plane[3] = colors, strength
    return plane
