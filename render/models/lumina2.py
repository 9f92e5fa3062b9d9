"""Lumina Image 2: a single-stream transformer that predicts x0 - noise at a reversed time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from render.model_info import ModelInfo
from render.models.loading import load_pipeline
from render.models.transformer import Rows, TransformerAdapter, shifted_sigmas


class Lumina2(TransformerAdapter):
    """Gemma's text, and guidance whose result keeps the norms of the prediction with the prompt.

    The rescaled guidance is not a weighted sum of predictions, so both are made in one call of `predict`.
    """

    @torch.no_grad()
    def encode_prompt(self, prompt: str, negative_prompt: str, guided: bool) -> Rows:
        """Text states, ready for `predict`."""
        states, mask, negative, negative_mask = self._pipeline.encode_prompt(
            prompt, True, negative_prompt=negative_prompt or None, device=self._device
        )
        return {"states": states, "mask": mask, "negative": negative, "negative_mask": negative_mask}

    def _predict(
        self, latents: Tensor, times: Tensor, text: Rows, conditions: Sequence[int], guidance_scale: float
    ) -> Tensor:
        with_prompt = self._velocity(latents, times, text["states"], text["mask"])
        if guidance_scale <= 1.0:
            return -with_prompt
        without = self._velocity(latents, times, text["negative"], text["negative_mask"])
        combined = without + guidance_scale * (with_prompt - without)
        # The pipeline takes the norms over the rows of the latents.
        kept, changed = (torch.norm(each, dim=-1, keepdim=True) for each in (with_prompt, combined))
        return -combined * (kept / changed)

    def _velocity(self, latents: Tensor, times: Tensor, states: Tensor, mask: Tensor) -> Tensor:
        velocity: Tensor = self._transformer(
            hidden_states=latents,
            timestep=1 - times / self._scheduler_config["num_train_timesteps"],
            encoder_hidden_states=states.expand(len(latents), -1, -1),
            encoder_attention_mask=mask.expand(len(latents), -1),
            return_dict=False,
        )[0]
        return velocity

    def _timestep_options(self, steps: int, tokens: int) -> Mapping[str, Any]:
        # Where Flux's pipeline counts tokens, this one counts channels.
        return shifted_sigmas(self._scheduler_config, steps, self.info.latent_channels)


def load(path: Path, info: ModelInfo, device: torch.device, dtype: str) -> Lumina2:
    """Load a folder of class `Lumina2Pipeline`; raises `ModelNotUsable` when it does not load."""
    return Lumina2(load_pipeline("Lumina2Pipeline", path, device, dtype), info, device, dtype)
