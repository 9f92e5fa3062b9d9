"""Kolors: the UNet of SDXL under the text of ChatGLM3."""

from __future__ import annotations

from pathlib import Path

import torch

from render.model_info import ModelInfo
from render.models.loading import load_pipeline, quiet
from render.models.sdxl import StableDiffusionXL
from render.models.unet import TextStates, find_trained_attention


class Kolors(StableDiffusionXL):
    """The UNet projects ChatGLM's states itself; their last token is the pooled text."""

    @torch.no_grad()
    def encode_prompt(self, prompt: str, negative_prompt: str, guided: bool) -> TextStates:
        """Text states, ready for `predict`; computed once per image."""
        with quiet():  # transformers warns of how diffusers' ChatGLM is written
            conditional, unconditional, own, other = self._pipeline.encode_prompt(
                prompt,
                device=self._device,
                do_classifier_free_guidance=guided,
                negative_prompt=negative_prompt,
            )
        if not guided:
            return TextStates(states=conditional, pooled=own)
        return TextStates(states=torch.cat([unconditional, conditional]), pooled=torch.cat([other, own]))


def load(path: Path, info: ModelInfo, device: torch.device, dtype: str) -> Kolors:
    """Load a folder of class `KolorsPipeline`; raises `ModelNotUsable` when it does not load."""
    unused = {"feature_extractor": None, "image_encoder": None}
    pipeline = load_pipeline("KolorsPipeline", path, device, dtype, **unused)
    if dtype == "float16" and pipeline.vae.config.force_upcast:
        pipeline.vae.to(torch.float32)
    return Kolors(pipeline, info, device, dtype, find_trained_attention(path, info, device, dtype))
