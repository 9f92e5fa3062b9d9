"""Stable Diffusion 3 and 3.5, with and without the T5 text encoder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from render.model_info import ModelInfo
from render.models.loading import load_pipeline
from render.models.transformer import Rows, TransformerAdapter, shifted_sigmas, stack_rows


class StableDiffusion3(TransformerAdapter):
    """Two CLIPs and perhaps T5. Its table of positions is cropped at the centre for a window."""

    @torch.no_grad()
    def encode_prompt(self, prompt: str, negative_prompt: str, guided: bool) -> Rows:
        """Text states, ready for `predict`."""
        states, negative, pooled, negative_pooled = self._pipeline.encode_prompt(
            prompt,
            None,
            None,
            device=self._device,
            do_classifier_free_guidance=guided,
            negative_prompt=negative_prompt or None,
        )
        return stack_rows(guided, states=(negative, states), pooled=(negative_pooled, pooled))

    def _forward(self, latents: Tensor, times: Tensor, rows: Rows, guidance_scale: float) -> Tensor:
        prediction: Tensor = self._transformer(
            hidden_states=latents,
            timestep=times,
            encoder_hidden_states=rows["states"],
            pooled_projections=rows["pooled"],
            return_dict=False,
        )[0]
        return prediction

    def _timestep_options(self, steps: int, tokens: int) -> Mapping[str, Any]:
        if not self._scheduler_config.get("use_dynamic_shifting"):
            return {}
        return {"mu": shifted_sigmas(self._scheduler_config, steps, tokens, most=1.16)["mu"]}


def load(path: Path, info: ModelInfo, device: torch.device, dtype: str) -> StableDiffusion3:
    """Load a folder of class `StableDiffusion3Pipeline`; raises `ModelNotUsable` when it does not load."""
    unused = {"image_encoder": None, "feature_extractor": None}
    pipeline = load_pipeline("StableDiffusion3Pipeline", path, device, dtype, **unused)
    return StableDiffusion3(pipeline, info, device, dtype)
