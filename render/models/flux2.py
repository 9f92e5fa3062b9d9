"""Flux.2: dev with Mistral's text and the guidance scale as an input, Klein with Qwen3's text."""

from __future__ import annotations

from collections.abc import Mapping
from math import sqrt
from pathlib import Path
from typing import Any

import torch
from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu
from torch import Tensor

from render.model_info import ModelInfo
from render.models.loading import load_pipeline
from render.models.referring_transformer import ReferringTransformer
from render.models.transformer import Rows, evenly_spaced, stack_rows


class Flux2(ReferringTransformer):
    """The autoencoder's latents hold 2x2 patches already, so a token is one latent of the canvas.

    The tokens of reference pictures follow the window's, at times of their own.
    """

    @torch.no_grad()
    def encode_prompt(self, prompt: str, negative_prompt: str, guided: bool) -> Rows:
        """Text states, ready for `predict`."""
        states, ids = self._pipeline.encode_prompt(prompt, device=self._device)
        negative, negative_ids = None, None
        if guided:
            negative, negative_ids = self._pipeline.encode_prompt(negative_prompt, device=self._device)
        return stack_rows(guided, states=(negative, states), ids=(negative_ids, ids))

    def reference_size(self, width: int, height: int) -> tuple[int, int]:
        """See `TakesReferences`: the native area at most, and whole latents."""
        shrink = min(1.0, self.info.native_size / sqrt(width * height))
        unit = self.info.scale_factor
        return (
            max(unit, int(width * shrink) // unit * unit),
            max(unit, int(height * shrink) // unit * unit),
        )

    def _forward(self, latents: Tensor, times: Tensor, rows: Rows, guidance_scale: float) -> Tensor:
        image, positions = _tokens(latents), self._pipeline._prepare_latent_ids(latents)
        if references := self._reference_latents:
            others = self._pipeline._prepare_image_ids([each[:1] for each in references])
            image = torch.cat([image, *map(_tokens, references)], dim=1)
            positions = torch.cat([positions, others.expand(len(latents), -1, -1)], dim=1)
        tokens: Tensor = self._transformer(
            hidden_states=image,
            timestep=times.to(latents.dtype) / 1000,
            guidance=torch.full_like(times, guidance_scale) if self._embeds_guidance else None,
            encoder_hidden_states=rows["states"],
            txt_ids=rows["ids"],
            img_ids=positions.to(latents.device),
            return_dict=False,
        )[0]
        own = tokens[:, : latents.shape[2] * latents.shape[3]]
        return own.transpose(1, 2).reshape(latents.shape)

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


def _tokens(latents: Tensor) -> Tensor:
    """[B, C, h, w] -> [B, h * w, C]"""
    return latents.flatten(2).transpose(1, 2)


def load(path: Path, info: ModelInfo, device: torch.device, dtype: str) -> Flux2:
    """Load a folder of class `Flux2Pipeline` or `Flux2KleinPipeline`.

    Raises `ModelNotUsable` when it does not load.
    """
    if info.family == "flux2-klein":
        return Flux2Klein(load_pipeline("Flux2KleinPipeline", path, device, dtype), info, device, dtype)
    return Flux2(load_pipeline("Flux2Pipeline", path, device, dtype), info, device, dtype)
