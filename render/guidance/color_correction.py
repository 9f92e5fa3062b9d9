"""A stage keeps the colours of the picture that it enlarges, in what it is decoded to as well.

An autoencoder moves soft tints a little towards what it knows, and a cascade decodes and encodes at every
stage: a shadow became a stain. But what the colours are to be is known. Their means over each latent's
pixels go with the canvas, and wherever the stage is decoded its coarse colours are moved to them; what is
finer stays. (StableSR, Wang et al. 2023, and others correct what they upscale so, by its low frequencies.)
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from render.canvas import LatentRegion
from render.guidance.ilvr import low_pass
from render.models.adapter import Adapter
from render.plan.geometry import Rect

COLOUR_CHANNELS = 4
"""Of a plane of colours that are used: three means, and by what share they are kept."""
SPREAD = 1.0
"""Of the Gaussian that parts coarse colours from fine ones, in latents."""


def decoded(piece: LatentRegion, area: Rect, adapter: Adapter, device: torch.device) -> Tensor:
    """[1, 3, H, W] pixels in [0, 1] of an area that the piece holds, in its stage's colours."""
    pixels = adapter.decode(piece.read(area)[None].to(device))
    if piece.colours is None:
        return pixels
    colours = piece.read_colours(area).to(pixels.device)
    missing = (colours[:3] - means(pixels, adapter.info.scale_factor)) * colours[3]
    down, along = (low_pass(length, SPREAD).to(missing.device) for length in missing.shape[1:])
    coarse = (down @ missing @ along.T)[None]
    smooth = functional.interpolate(coarse, pixels.shape[2:], mode="bilinear", align_corners=False)
    return pixels.add_(smooth).clamp_(0.0, 1.0)


def means(pixels: Tensor, scale_factor: int) -> Tensor:
    """[1, 3, H, W] pixels -> [3, H / scale_factor, W / scale_factor], over each latent's."""
    return functional.avg_pool2d(pixels, scale_factor)[0]


def colour_plane(colours: Tensor, share: Tensor, channels: int) -> Tensor:
    """[3, h, w] means, and by what share [h, w] they are kept, as a plane of a canvas, [channels, h, w]."""
    plane = colours.new_zeros((channels, *colours.shape[1:]))
    plane[:3], plane[3] = colours, share
    return plane
