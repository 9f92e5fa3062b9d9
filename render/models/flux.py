"""Flux.1: dev, which takes the guidance scale as an input, and schnell, which takes none."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from render.model_info import ModelInfo
from render.models.loading import load_pipeline
from render.models.transformer import Rows, TransformerAdapter, pack, shifted_sigmas, stack_rows, unpack


class Flux(TransformerAdapter):
    """CLIP's pooled text, T5's tokens, and 2x2 latents to a token."""

    @torch.no_grad()
    def encode_prompt(self, prompt: str, negative_prompt: str, guided: bool) -> Rows:
        """Text states, ready for `predict`. `guided` is the pipeline's `true_cfg_scale` above 1."""
        states, pooled, _ = self._pipeline.encode_prompt(prompt, None, device=self._device)
        negative, negative_pooled = None, None
        if guided:
            negative, negative_pooled, _ = self._pipeline.encode_prompt(
                negative_prompt, None, device=self._device
            )
        return stack_rows(guided, states=(negative, states), pooled=(negative_pooled, pooled))

    def _forward(self, latents: Tensor, times: Tensor, rows: Rows, guidance_scale: float) -> Tensor:
        height, width = latents.shape[2:]
        guidance = torch.full_like(times, guidance_scale) if self.info.takes_guidance else None
        tokens = self._transformer(
            hidden_states=pack(latents),
            timestep=times.to(latents.dtype) / 1000,
            guidance=guidance,
            pooled_projections=rows["pooled"],
            encoder_hidden_states=rows["states"],
            txt_ids=latents.new_zeros((rows["states"].shape[1], 3)),
            img_ids=self._pipeline._prepare_latent_image_ids(
                len(latents), height // 2, width // 2, latents.device, latents.dtype
            ),
            return_dict=False,
        )[0]
        return unpack(tokens, height, width)

    def _timestep_options(self, steps: int, tokens: int) -> Mapping[str, Any]:
        return shifted_sigmas(self._scheduler_config, steps, tokens)


def load(path: Path, info: ModelInfo, device: torch.device, dtype: str) -> Flux:
    """Load a folder of class `FluxPipeline`; raises `ModelNotUsable` when it does not load."""
    unused = {"image_encoder": None, "feature_extractor": None}
    return Flux(load_pipeline("FluxPipeline", path, device, dtype, **unused), info, device, dtype)
