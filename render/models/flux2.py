"""Flux.2: dev with Mistral's text and the guidance scale as an input, Klein with Qwen3's text."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu
from torch import Tensor

from render.model_info import ModelInfo
from render.models.loading import load_pipeline
from render.models.transformer import Rows, TransformerAdapter, evenly_spaced, stack_rows


class Flux2(TransformerAdapter):
    """The autoencoder's latents hold 2x2 patches already, so a token is one latent of the canvas."""

    @torch.no_grad()
    def encode_prompt(self, prompt: str, negative_prompt: str, guided: bool) -> Rows:
        """Text states, ready for `predict`."""
        states, ids = self._pipeline.encode_prompt(prompt, device=self._device)
        negative, negative_ids = None, None
        if guided:
            negative, negative_ids = self._pipeline.encode_prompt(negative_prompt, device=self._device)
        return stack_rows(guided, states=(negative, states), ids=(negative_ids, ids))

    def _forward(self, latents: Tensor, times: Tensor, rows: Rows, guidance_scale: float) -> Tensor:
        tokens: Tensor = self._transformer(
            hidden_states=latents.flatten(2).transpose(1, 2),
            timestep=times.to(latents.dtype) / 1000,
            guidance=torch.full_like(times, guidance_scale) if self._embeds_guidance else None,
            encoder_hidden_states=rows["states"],
            txt_ids=rows["ids"],
            img_ids=self._pipeline._prepare_latent_ids(latents).to(latents.device),
            return_dict=False,
        )[0]
        return tokens.transpose(1, 2).reshape(latents.shape)

    @property
    def _embeds_guidance(self) -> bool:
        return bool(self._transformer.config.get("guidance_embeds", True))

    def _timestep_options(self, steps: int, tokens: int) -> Mapping[str, Any]:
        if self._scheduler_config.get("use_flow_sigmas"):
            return {}
        return {"sigmas": evenly_spaced(steps), "mu": compute_empirical_mu(tokens, steps)}


class Flux2Klein(Flux2):
    """Classifier-free guidance, and none in a distilled model."""

    @property
    def _embeds_guidance(self) -> bool:
        return False


def load(path: Path, info: ModelInfo, device: torch.device, dtype: str) -> Flux2:
    """Load a folder of class `Flux2Pipeline` or `Flux2KleinPipeline`.

    Raises `ModelNotUsable` when it does not load.
    """
    if info.family == "flux2-klein":
        return Flux2Klein(load_pipeline("Flux2KleinPipeline", path, device, dtype), info, device, dtype)
    return Flux2(load_pipeline("Flux2Pipeline", path, device, dtype), info, device, dtype)
