"""What a model paints of a product beside it is taken away again.

It is filled from farther out: with the surroundings beyond it, blurred (normalized convolution, Knutsson and
Westin 1993).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

ALIKE, DIFFERENT = 0.1, 0.25
"""By how much a product and its surroundings differ, in [0, 1], up to which nothing of a rim is taken away,
and from which on all of it is. Where they are alike no rim shows, and what is painted may be the same ground
going on, which a fill would interrupt."""
RIM_LATENTS = 2
"""A pixel without its rim depends on pixels that are less than so many latents away."""
_BLANK = 1e-6
"""Less weight than this is none."""


def without_fringe(pixels: Tensor, kept: Tensor, reach: int) -> Tensor:
    """[1, 3, H, W] pixels, with a ring of `reach` pixels around what is kept filled from farther out.

    `kept` is [1, 1, H, W], 0 to 1. A model that paints around a product paints some of it, too.
    """
    free = _free(kept, reach)
    ground, weight = _spread(pixels, free, reach)
    return torch.where((free == 0.0) & (weight > 1e-4), ground, pixels)


def rim_reach(pixel: int) -> int:
    """Width in pixels of a rim: half of a latent, which is `pixel` pixels."""
    return max(1, pixel // 2)


def without_rim(pixels: Tensor, colors: Tensor, kept: Tensor, reach: int) -> Tensor:
    """[1, 3, H, W] decoded pixels, with the ring filled where the product differs from its surroundings.

    `colors` is [1, 3, H, W], the product's own, and `kept` as above. An autoencoder draws an edge up to half
    a latent off its place, and in other colors. A pixel depends on those up to 3 * `reach` away.
    """
    if bool((kept == 0.0).all()) or bool((kept == 1.0).all()):
        return pixels
    free = _free(kept, reach)
    ground, weight = _spread(pixels, free, reach)
    product, _ = _spread(colors, kept, reach)
    contrast = (product - ground).abs().amax(1, keepdim=True)
    share = ((contrast - ALIKE) / (DIFFERENT - ALIKE)).clamp(0.0, 1.0)
    share = share * (3.0 - 2.0 * share)
    filled = pixels + (ground - pixels) * share
    return torch.where((free == 0.0) & (weight > _BLANK), filled, pixels)


def grown(planes: Tensor, reach: int) -> Tensor:
    """[1, C, H, W]: the largest value within `reach` pixels down and along; first down and then along, which
    is far less work than a square."""
    size = 2 * reach + 1
    tall = functional.max_pool2d(planes, (size, 1), stride=1, padding=(reach, 0))
    return functional.max_pool2d(tall, (1, size), stride=1, padding=(0, reach))


def _free(kept: Tensor, reach: int) -> Tensor:
    """1 where nothing is kept within `reach` pixels, else 0."""
    return (grown(kept, reach) == 0.0).float()


def _spread(values: Tensor, weights: Tensor, reach: int) -> tuple[Tensor, Tensor]:
    """Means of the values around each pixel by their weights and a Gaussian, and the sums of the weights."""
    taps = torch.exp(-0.5 * (torch.arange(-2 * reach, 2 * reach + 1, device=values.device) / reach) ** 2)
    taps = taps / taps.sum()
    total = _blurred(weights, taps)
    return _blurred(values * weights, taps) / total.clamp(min=_BLANK), total


def _blurred(planes: Tensor, taps: Tensor) -> Tensor:
    reach, channels = len(taps) // 2, planes.shape[1]
    rows = taps.view(1, 1, -1, 1).expand(channels, 1, -1, 1)
    tall = functional.conv2d(planes, rows, padding=(reach, 0), groups=channels)
    return functional.conv2d(tall, rows.transpose(2, 3), padding=(0, reach), groups=channels)
