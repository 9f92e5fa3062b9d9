"""A tiny exact model: its answer at a latent depends on a known neighbourhood, its place and its text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from render.model_info import ModelInfo
from render.models.adapter import WindowPlace
from render.sampling.schedule import NoiseSchedule


class ToyModel:
    """The `Adapter` protocol over two small convolutions; 8 px per latent."""

    prediction_type = "epsilon"
    pipeline = None
    autoencoder = None

    def __init__(self, native: int = 128, channels: int = 4) -> None:
        self.info = ModelInfo(
            guidance_scale=2.0,
            family="toy",
            latent_channels=channels,
            scale_factor=8,
            native_size=native,
            digest="toy",
            decode_halo=2,
            token_width=3,
        )
        draw = torch.Generator().manual_seed(5)
        self._mix = torch.randn((channels, channels, 3, 3), generator=draw) * 0.2
        self._paint = torch.randn((3, channels, 3, 3), generator=draw) * 0.1
        self.calls: list[tuple[int, ...]] = []

    def schedule(self, sampler: str, steps: int, window: tuple[int, int] | None = None) -> NoiseSchedule:
        sigmas = torch.linspace(10.0, 0.0, steps + 1).tolist()
        return NoiseSchedule(
            timesteps=tuple(999.0 * s / 10 for s in sigmas[:-1]), sigmas=tuple(sigmas), initial_scale=10.0
        )

    def encode_prompt(self, prompt: str, negative_prompt: str, guided: bool) -> float:
        return float(len(prompt)) / 100

    def predict(
        self,
        latents: Tensor,
        timestep: float,
        text: Any,
        places: Sequence[WindowPlace],
        conditions: Sequence[int],
        guidance_scale: float,
    ) -> Tensor:
        self.calls.append(tuple(latents.shape))
        where = torch.tensor([place.pixel_y + 2 * place.pixel_x for place in places]) / 4096
        mixed = functional.conv2d(latents, self._mix, padding=1)
        condition = torch.tensor(conditions) / 100
        return torch.tanh(mixed) + latents * 0.5 + (where + condition + text)[:, None, None, None]

    def prepare_context(self, tokens: Tensor | None, strength: float, form: str) -> Tensor | None:
        return None if tokens is None else tokens.mean(1).sum(1) * strength

    def predict_with_context(
        self,
        latents: Tensor,
        timestep: float,
        text: Any,
        places: Sequence[WindowPlace],
        conditions: Sequence[int],
        guidance_scale: float,
        context: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        answer = self.predict(latents, timestep, text, places, conditions, guidance_scale)
        if context is not None:
            answer = answer + context[list(conditions)][:, None, None, None]
        return answer, latents.mean((2, 3))[:, :3]

    def decode(self, latents: Tensor) -> Tensor:
        painted = functional.conv2d(latents, self._paint, padding=1)
        return functional.interpolate(painted.sigmoid(), scale_factor=8.0, mode="nearest")

    def encode(self, pixels: Tensor) -> Tensor:
        small = functional.avg_pool2d(pixels, 8)
        return functional.pad(small, (0, 0, 0, 0, 0, self.info.latent_channels - 3))
