"""PixArt-Sigma: a diffusion transformer that predicts the noise, conditioned on T5."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from render.model_info import ModelInfo
from render.models.loading import load_pipeline
from render.models.transformer import Rows, TransformerAdapter, stack_rows


class PixArtSigma(TransformerAdapter):
    """Trained on betas; stepped by DPM-Solver++ in stock folders."""

    @torch.no_grad()
    def encode_prompt(self, prompt: str, negative_prompt: str, guided: bool) -> Rows:
        """Text states, ready for `predict`. The prompt is taken as it is, without diffusers' `clean_caption`,
        whose result depends on which packages are installed."""
        states, mask, negative, negative_mask = self._pipeline.encode_prompt(
            prompt, guided, negative_prompt=negative_prompt, device=self._device, max_sequence_length=300
        )
        return stack_rows(guided, states=(negative, states), mask=(negative_mask, mask))

    def _forward(self, latents: Tensor, times: Tensor, rows: Rows, guidance_scale: float) -> Tensor:
        prediction: Tensor = self._transformer(
            latents,
            encoder_hidden_states=rows["states"],
            encoder_attention_mask=rows["mask"],
            timestep=times,
            added_cond_kwargs={"resolution": None, "aspect_ratio": None},
            return_dict=False,
        )[0]
        # The other half of the channels is a learned variance.
        return prediction[:, : latents.shape[1]]


def load(path: Path, info: ModelInfo, device: torch.device, dtype: str) -> PixArtSigma:
    """Load a folder of class `PixArtSigmaPipeline`; raises `ModelNotUsable` when it does not load."""
    return PixArtSigma(load_pipeline("PixArtSigmaPipeline", path, device, dtype), info, device, dtype)
