"""HunyuanImage 2.1: a transformer over a 32x autoencoder; text between quotes is encoded letter by letter."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from render.model_info import ModelInfo
from render.models.loading import load_pipeline
from render.models.transformer import Rows, TransformerAdapter, evenly_spaced, stack_rows


class HunyuanImage(TransformerAdapter):
    """Positions are made inside the network, from the window's corner.

    Guidance is classifier-free at every step. The stock pipeline changes to projected guidance with a
    momentum over the steps (arXiv 2410.02416) after its sixth step.
    """

    @torch.no_grad()
    def encode_prompt(self, prompt: str, negative_prompt: str, guided: bool) -> Rows:
        """Text states, ready for `predict`."""
        states, mask, glyphs, glyph_mask = self._encode(prompt)
        none = (None, None, None, None)
        negative, negative_mask, other, other_mask = self._encode(negative_prompt) if guided else none
        return stack_rows(
            guided,
            states=(negative, states),
            mask=(negative_mask, mask),
            glyphs=(other, glyphs),
            glyph_mask=(other_mask, glyph_mask),
        )

    def _encode(self, prompt: str) -> tuple[Tensor, ...]:
        found: tuple[Tensor, ...] = self._pipeline.encode_prompt(prompt, device=self._device)
        return found

    def _forward(self, latents: Tensor, times: Tensor, rows: Rows, guidance_scale: float) -> Tensor:
        prediction: Tensor = self._transformer(
            hidden_states=latents,
            timestep=times.to(latents.dtype),
            encoder_hidden_states=rows["states"].to(latents.dtype),
            encoder_attention_mask=rows["mask"],
            encoder_hidden_states_2=rows["glyphs"].to(latents.dtype),
            encoder_attention_mask_2=rows["glyph_mask"],
            return_dict=False,
        )[0]
        return prediction

    def _timestep_options(self, steps: int, tokens: int) -> Mapping[str, Any]:
        return {} if self._scheduler_config.get("use_flow_sigmas") else {"sigmas": evenly_spaced(steps)}


def load(path: Path, info: ModelInfo, device: torch.device, dtype: str) -> HunyuanImage:
    """Load a folder of class `HunyuanImagePipeline`; raises `ModelNotUsable` when it does not load."""
    unused = {"guider": None, "ocr_guider": None}
    pipeline = load_pipeline("HunyuanImagePipeline", path, device, dtype, **unused)
    return HunyuanImage(pipeline, info, device, dtype)
