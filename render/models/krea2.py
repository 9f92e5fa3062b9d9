"""Krea 2: Qwen3-VL's states of several layers, and guidance as 1 + g."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from render.model_info import ModelInfo
from render.models.loading import load_pipeline
from render.models.transformer import Rows, TransformerAdapter, pack, shifted_sigmas, stack_rows, unpack

_DISTILLED_SHIFT = 1.15
"""Of the pipeline, for a distilled model of any size."""


class Krea2(TransformerAdapter):
    """2x2 latents to a token, beside text tokens of a fixed number."""

    @torch.no_grad()
    def encode_prompt(self, prompt: str, negative_prompt: str, guided: bool) -> Rows:
        """Text states, ready for `predict`."""
        states, mask = self._pipeline.encode_prompt(prompt, device=self._device)
        negative, negative_mask = None, None
        if guided:
            negative, negative_mask = self._pipeline.encode_prompt(negative_prompt, device=self._device)
        return stack_rows(guided, states=(negative, states), mask=(negative_mask, mask))

    def _forward(self, latents: Tensor, times: Tensor, rows: Rows, guidance_scale: float) -> Tensor:
        height, width = latents.shape[2:]
        tokens = self._transformer(
            hidden_states=pack(latents),
            encoder_hidden_states=rows["states"],
            timestep=(times / self._scheduler_config["num_train_timesteps"]).to(latents.dtype),
            position_ids=self._pipeline.prepare_position_ids(
                rows["states"].shape[1], height // 2, width // 2, latents.device
            ),
            encoder_attention_mask=rows["mask"],
            return_dict=False,
        )[0]
        return unpack(tokens, height, width)

    def _timestep_options(self, steps: int, tokens: int) -> Mapping[str, Any]:
        options = shifted_sigmas(self._scheduler_config, steps, tokens, longest=6400)
        if "mu" in options and self._pipeline.config.is_distilled:
            return {**options, "mu": _DISTILLED_SHIFT}
        return options


def load(path: Path, info: ModelInfo, device: torch.device, dtype: str) -> Krea2:
    """Load a folder of class `Krea2Pipeline`; raises `ModelNotUsable` when it does not load."""
    return Krea2(load_pipeline("Krea2Pipeline", path, device, dtype), info, device, dtype)
