"""Inpainting models: networks that are told what to paint anew, and what lies around it.

Beside the latents they take the mask and the latents of the picture with the masked area cut out, as channels
of the same input (Stable Diffusion 1.5 Inpainting, SDXL Inpainting 0.1, Flux.1 Fill).
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from render.model_info import ModelInfo

_CUT_OUT = 0.5
"""The color that stands for what is cut out: gray."""


@runtime_checkable
class TakesMasks(Protocol):
    """An adapter of such a model: its `predict` also takes latents with `masked_picture` after them."""

    info: ModelInfo

    def masked_picture(self, pixels: Tensor, painted: Tensor) -> Tensor:
        """[1, K, h, w] float32: the channels after the latents.

        `pixels` is [1, 3, H, W] in [0, 1], `painted` [1, 1, H, W]: 1 where the image is painted anew, else 0.
        """
        ...


def cut_out(pixels: Tensor, painted: Tensor) -> Tensor:
    """[1, 3, H, W] pixels with gray where they are painted anew."""
    return torch.where(painted > 0, _CUT_OUT, pixels)


class BlankPictures:
    """The channels of calls that bring none: nothing is kept, so all of the image is painted."""

    def __init__(self) -> None:
        self._found: dict[tuple[int, int], Tensor] = {}

    def complete(self, adapter: TakesMasks, latents: Tensor) -> Tensor:
        """[B, C, h, w] latents -> [B, C + K, h, w]; those that have the channels, and those of models that
        take none, stay as they are."""
        if not adapter.info.takes_mask or latents.shape[1] > adapter.info.latent_channels:
            return latents
        height, width = latents.shape[2:]
        if (height, width) not in self._found:
            size = height * adapter.info.scale_factor, width * adapter.info.scale_factor
            blank = adapter.masked_picture(torch.zeros(1, 3, *size), torch.ones(1, 1, *size))
            self._found[height, width] = blank
        found = self._found[height, width].to(latents.device, latents.dtype)
        return torch.cat([latents, found.expand(len(latents), -1, -1, -1)], dim=1)
