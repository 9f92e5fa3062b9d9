"""Flux.1 Fill: Flux.1 dev that fills an area of a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from render.model_info import ModelInfo
from render.models.flux import Flux
from render.models.inpainting import BlankPictures, cut_out
from render.models.loading import load_pipeline


class FluxFill(Flux):
    """A token of the image has the picture's latents and the mask after its own; see `TakesMasks`."""

    def __init__(self, pipeline: Any, info: ModelInfo, device: torch.device, dtype: str) -> None:
        super().__init__(pipeline, info, device, dtype)
        self._blank = BlankPictures()

    def masked_picture(self, pixels: Tensor, painted: Tensor) -> Tensor:
        """See `TakesMasks`: the latents of what is kept, then each pixel of a latent's mask by itself."""
        mask = functional.pixel_unshuffle(painted, self.info.scale_factor)
        latents = self.encode(cut_out(pixels, painted))
        return torch.cat([latents, mask.to(latents)], dim=1)

    def _image(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        return super()._image(self._blank.complete(self, latents))


def load(path: Path, info: ModelInfo, device: torch.device, dtype: str) -> FluxFill:
    """Load a folder of class `FluxFillPipeline`; raises `ModelNotUsable` when it does not load."""
    return FluxFill(load_pipeline("FluxFillPipeline", path, device, dtype), info, device, dtype)
