"""Stable Diffusion 1.x and 2.x, epsilon and v-prediction."""

from __future__ import annotations

from pathlib import Path

import torch

from render.model_info import ModelInfo
from render.models.clip_prompts import SD_STATES, encode_long, is_plain
from render.models.loading import load_pipeline
from render.models.unet import TextStates, UNetAdapter, find_trained_attention


class StableDiffusion(UNetAdapter):
    """An SD 1.x or 2.x model; the UNet is conditioned on the text alone, not on the window's position."""

    @torch.no_grad()
    def encode_prompt(self, prompt: str, negative_prompt: str, guided: bool) -> TextStates:
        """Text states, ready for `predict`; computed once per image."""
        prompts = [negative_prompt, prompt] if guided else [prompt]
        if not is_plain(self._pipeline, prompts):
            return TextStates(states=encode_long(self._pipeline, prompts, SD_STATES))
        conditional, unconditional = self._pipeline.encode_prompt(
            prompt, self._device, 1, guided, negative_prompt=negative_prompt or None
        )
        return TextStates(states=torch.cat([unconditional, conditional]) if guided else conditional)


def load(path: Path, info: ModelInfo, device: torch.device, dtype: str) -> StableDiffusion:
    """Load a folder of class `StableDiffusionPipeline`; raises `ModelNotUsable` when it does not load."""
    pipeline = load_pipeline(
        "StableDiffusionPipeline",
        path,
        device,
        dtype,
        safety_checker=None,
        feature_extractor=None,
        image_encoder=None,
        requires_safety_checker=False,
    )
    return StableDiffusion(pipeline, info, device, dtype, find_trained_attention(path, info, device, dtype))
