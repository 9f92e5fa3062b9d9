"""Z-Image: a single-stream transformer that predicts x0 - noise at a reversed time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from render.model_info import ModelInfo
from render.models.loading import load_pipeline
from render.models.transformer import Rows, TransformerAdapter, shifted_sigmas


class ZImage(TransformerAdapter):
    """Prompts of their own length, so each evaluation is a call of its own: in one call the network pads all
    to the longest, and a row's bits would depend on the other rows."""

    @torch.no_grad()
    def encode_prompt(self, prompt: str, negative_prompt: str, guided: bool) -> Rows:
        """Text states, ready for `predict`."""
        states, negative = self._pipeline.encode_prompt(
            prompt,
            device=self._device,
            do_classifier_free_guidance=guided,
            negative_prompt=negative_prompt or None,
        )
        return {"states": [*negative, *states]}

    def _predict(
        self, latents: Tensor, times: Tensor, text: Rows, conditions: Sequence[int], guidance_scale: float
    ) -> Tensor:
        predictions = [
            self._transformer(
                [frame[:, None]], (1000 - time[None]) / 1000, [text["states"][row]], return_dict=False
            )[0][0][:, 0]
            for frame, time, row in zip(latents, times, conditions, strict=True)
        ]
        return -torch.stack(predictions)

    def _timestep_options(self, steps: int, tokens: int) -> Mapping[str, Any]:
        return shifted_sigmas(self._scheduler_config, steps, tokens)


def load(path: Path, info: ModelInfo, device: torch.device, dtype: str) -> ZImage:
    """Load a folder of class `ZImagePipeline`; raises `ModelNotUsable` when it does not load."""
    return ZImage(load_pipeline("ZImagePipeline", path, device, dtype), info, device, dtype)
