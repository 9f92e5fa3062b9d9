"""Chroma: Flux.1 without CLIP, with classifier-free guidance and a mask over T5's padding."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from render.model_info import ModelInfo
from render.models.loading import load_pipeline
from render.models.transformer import Rows, TransformerAdapter, pack, shifted_sigmas, stack_rows, unpack


class Chroma(TransformerAdapter):
    """T5's tokens and 2x2 latents to a token."""

    @torch.no_grad()
    def encode_prompt(self, prompt: str, negative_prompt: str, guided: bool) -> Rows:
        """Text states, ready for `predict`."""
        states, _, mask, negative, _, negative_mask = self._pipeline.encode_prompt(
            prompt,
            negative_prompt,
            device=self._device,
            do_classifier_free_guidance=guided,
        )
        return stack_rows(guided, states=(negative, states), mask=(negative_mask, mask))

    def _forward(self, latents: Tensor, times: Tensor, rows: Rows, guidance_scale: float) -> Tensor:
        height, width = latents.shape[2:]
        down, along = height // 2, width // 2
        tokens = self._transformer(
            hidden_states=pack(latents),
            timestep=times.to(latents.dtype) / 1000,
            encoder_hidden_states=rows["states"],
            txt_ids=latents.new_zeros((rows["states"].shape[1], 3)),
            img_ids=self._pipeline._prepare_latent_image_ids(
                len(latents), down, along, latents.device, latents.dtype
            ),
            attention_mask=self._pipeline._prepare_attention_mask(
                len(latents), down * along, latents.dtype, rows["mask"]
            ),
            return_dict=False,
        )[0]
        return unpack(tokens, height, width)

    def _timestep_options(self, steps: int, tokens: int) -> Mapping[str, Any]:
        return shifted_sigmas(self._scheduler_config, steps, tokens)


def load(path: Path, info: ModelInfo, device: torch.device, dtype: str) -> Chroma:
    """Load a folder of class `ChromaPipeline`; raises `ModelNotUsable` when it does not load."""
    unused = {"image_encoder": None, "feature_extractor": None}
    return Chroma(load_pipeline("ChromaPipeline", path, device, dtype, **unused), info, device, dtype)
