"""Flux.1 Kontext: Flux.1 dev that looks at a picture, which the prompt tells it to change."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers.pipelines.flux.pipeline_flux_kontext import PREFERRED_KONTEXT_RESOLUTIONS
from torch import Tensor

from render.model_info import ModelInfo
from render.models.flux import Flux
from render.models.loading import load_pipeline
from render.models.referring_transformer import ReferringTransformer
from render.models.transformer import pack

_TRAINED_SIZE = 1024
"""The side of the square among the sizes that it was trained on."""


class FluxKontext(ReferringTransformer, Flux):
    """The picture's tokens follow the window's; their first position is 1 in place of 0."""

    def reference_size(self, width: int, height: int) -> tuple[int, int]:
        """See `TakesReferences`: of the sizes that the model was trained on, the one of the nearest shape."""
        _, *nearest = min((abs(width / height - w / h), w, h) for w, h in PREFERRED_KONTEXT_RESOLUTIONS)
        unit = self.info.scale_factor * self.info.patch
        found = [max(unit, side * self.info.native_size // _TRAINED_SIZE // unit * unit) for side in nearest]
        return found[0], found[1]

    def _image(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        tokens, positions = super()._image(latents)
        for reference in self._reference_latents:
            own = self._positions(reference)
            own[:, 0] = 1
            tokens = torch.cat([tokens, pack(reference)], dim=1)
            positions = torch.cat([positions, own])
        return tokens, positions


def load(path: Path, info: ModelInfo, device: torch.device, dtype: str) -> FluxKontext:
    """Load a folder of class `FluxKontextPipeline`; raises `ModelNotUsable` when it does not load."""
    unused = {"image_encoder": None, "feature_extractor": None}
    pipeline = load_pipeline("FluxKontextPipeline", path, device, dtype, **unused)
    return FluxKontext(pipeline, info, device, dtype)
