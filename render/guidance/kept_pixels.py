"""Pixels of the init image that come back untouched.

In latents: at every step of every stage the kept area follows the source's own latents, noised to the step
with the stage's noise, so that what is painted around it sees it and joins it (RePaint, Lugmayr et al. 2022;
Blended Latent Diffusion, Avrahami et al. 2023). The first stage begins before there is anything around the
product, so there the area is smaller by a latent on each side. It is followed by a second one of the same
size, which begins with the product put onto the first one's picture and repaints its surroundings: the edge
is then one of this product in this picture, and no model has to guess it.

In pixels: wherever a stage is decoded, the source's own pixels are put over it, mixed in linear light where
their weight is not full. Where it is full they are the source's pixels, to the byte. The rim that the
autoencoder draws beside a product is taken away (`product_edge.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from render.guidance.hook import GuidanceHook, StageContext, Step
from render.guidance.product_edge import rim_reach, without_rim
from render.plan.stages import Stage
from render.plan.topology import Topology, topology_of
from render.rect import Rect
from render.sampling.noise import INITIAL, stage_noise
from render.spec import Spec
from render.spec.source_image import SourceImage

ReadPixels = Callable[..., NDArray[np.unsignedinteger]]
"""`SourceImage.pixels` or `SourceImage.kept`."""
_TABLE = 4096
"""Steps of the tables between sRGB and linear light; between two steps the curve is taken for a line."""


class KeptPixels(GuidanceHook):
    """Holds the kept area to the source's own latents."""

    def __init__(self, context: StageContext, reference: Tensor, weights: Tensor) -> None:
        """`reference` is [C, area.height, area.width], `weights` [area.height, area.width]."""
        self._reference, self._weights, self._rest = reference, weights, 1.0 - weights
        seed = context.spec.seed_of(context.stage.index)
        noise = stage_noise(context.stage, seed, INITIAL, len(reference), context.area)
        self._noise = noise.to(context.device)

    @classmethod
    def needs_reference(cls, spec: Spec, stage: Stage) -> bool:
        return spec.kept is not None

    @classmethod
    def create(cls, context: StageContext) -> Self | None:
        source = context.spec.kept
        if source is None or context.reference is None:
            return None
        canvas, pixel = topology_of(context.stage.grid), context.adapter.info.scale_factor
        shrunk = context.stage.index == 0 and source.stands_free
        weights = latent_weights(source, canvas, pixel, context.area, shrunk=shrunk)
        return cls(context, context.reference.latents, weights.to(context.device))

    def adjust_latents(self, step: Step, x: Tensor) -> Tensor:
        noised = self._noise * step.level.sigma + self._reference * step.level.alpha
        return x * self._rest + noised * self._weights

    def adjust_denoised(self, step: Step, denoised: Tensor) -> Tensor:
        return denoised * self._rest + self._reference * self._weights


def latent_weights(
    source: SourceImage, canvas: Topology, pixel: int, area: Rect, *, shrunk: bool = False
) -> Tensor:
    """[area.height, area.width]: by how much each latent of an area of the canvas is kept, on the host.

    That is the mean over the latent's pixels; `shrunk` by one latent on each side. A function of the place
    alone.
    """
    if not area.area:
        return torch.zeros((area.height, area.width))
    padded = canvas.pad(area, 1 if shrunk else 0)
    alpha = shares(read_pixels(source.kept, canvas, pixel, padded)[:, 3:])
    cells = functional.avg_pool2d(alpha, pixel)
    if not shrunk:
        return cells[0, 0]
    # A side of the canvas is no edge of the product.
    least = -functional.max_pool2d(-cells, 3, stride=1, padding=1)
    top, left = area.y - padded.y, area.x - padded.x
    return least[0, 0, top : top + area.height, left : left + area.width].clone()


def read_pixels(read: ReadPixels, canvas: Topology, pixel: int, area: Rect) -> Tensor:
    """[1, bands, H, W] of a rectangle of the canvas (in latents), from an image scaled to it: uint8, or int32
    for an image of 16 bits."""
    found: Tensor | None = None
    size = canvas.width * pixel, canvas.height * pixel
    for there, here in canvas.intersect(area, canvas.whole):
        rows, cols = (_scaled(side, pixel) for side in here)
        part = Rect(y=rows.start, x=cols.start, height=rows.stop - rows.start, width=cols.stop - cols.start)
        numbers = read(part, *size, wrap_x=canvas.wrap_x, wrap_y=canvas.wrap_y)
        # torch does little with unsigned numbers of 16 bits.
        cut = torch.from_numpy(numbers.astype(np.uint8 if numbers.dtype == np.uint8 else np.int32))
        if found is None:
            shape = 1, cut.shape[2], area.height * pixel, area.width * pixel
            found = torch.empty(shape, dtype=cut.dtype)
        down, along = (_scaled(side, pixel) for side in there)
        found[0, :, down, along] = cut.permute(2, 0, 1)
    assert found is not None, "the area meets the canvas"
    return found


def shares(numbers: Tensor) -> Tensor:
    """What `read_pixels` returns, in [0, 1]."""
    return numbers.float() / (255 if numbers.dtype == torch.uint8 else 65535)


def _scaled(side: slice, pixel: int) -> slice:
    return slice(side.start * pixel, side.stop * pixel)


def put_over(
    pixels: Tensor, source: SourceImage, canvas: Topology, pixel: int, area: Rect, *, decoded: bool = False
) -> Tensor:
    """[1, 3, H, W] pixels in [0, 1] of an area of the canvas (in latents), with what is kept put over them.

    Where the weight is full, a pixel is the source's number divided by the largest one, which rounds back to
    that number.
    Where it is zero, the pixel stays as it is, or is darkened by the product's shadow; of `decoded` ones the
    product's rim is taken away, exactly but for `RIM_LATENTS` at the area's own edges. Elementwise, with
    tables in place of powers, whose last bits depend on where in a tensor they are computed.
    """
    kept = shares(read_pixels(source.kept, canvas, pixel, area).to(pixels.device))
    colors, weight = kept[:, :3], kept[:, 3:]
    if decoded and source.stands_free:
        pixels = without_rim(pixels, colors, weight, rim_reach(pixel))
    if source.shadow:
        shade = shares(read_pixels(source.shade, canvas, pixel, area).to(pixels.device))
        pixels = to_srgb(to_linear(pixels) * (1.0 - shade * source.shadow))
    light = to_linear(pixels) * (1.0 - weight) + to_linear(colors) * weight
    mixed = torch.where(weight == 1.0, colors, to_srgb(light))
    return torch.where(weight == 0.0, pixels, mixed)


def to_linear(values: Tensor) -> Tensor:
    """sRGB values in [0, 1] -> linear light in [0, 1] (IEC 61966-2-1)."""
    return _looked_up(values, "linear")


def to_srgb(light: Tensor) -> Tensor:
    """Linear light in [0, 1] -> sRGB values in [0, 1]. The table is over square roots: the curve is steep."""
    return _looked_up(light.sqrt(), "srgb")


def _looked_up(values: Tensor, table: str) -> Tensor:
    entries = _table(table, values.device)
    places = values.clamp(0.0, 1.0) * _TABLE
    below = places.long().clamp_(max=_TABLE - 1)
    low, high = entries[below], entries[below + 1]
    return low + (high - low) * (places - below)


@cache
def _table(name: str, device: torch.device) -> Tensor:
    steps = np.arange(_TABLE + 1) / _TABLE
    if name == "linear":
        values = np.where(steps <= 0.04045, steps / 12.92, ((steps + 0.055) / 1.055) ** 2.4)
    else:
        light = steps * steps
        values = np.where(light <= 0.0031308, light * 12.92, 1.055 * light ** (1 / 2.4) - 0.055)
    return torch.from_numpy(values.astype(np.float32)).to(device)
