"""Sana and Sana Sprint: a linear transformer over a 32x autoencoder, instructed Gemma text."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from render.model_info import ModelInfo
from render.models.loading import load_pipeline
from render.models.transformer import Rows, TransformerAdapter, stack_rows


class Sana(TransformerAdapter):
    """Flow matching, stepped by DPM-Solver++ in stock folders; no positions."""

    @torch.no_grad()
    def encode_prompt(self, prompt: str, negative_prompt: str, guided: bool) -> Rows:
        """Text states, ready for `predict`."""
        states, mask, negative, negative_mask = self._pipeline.encode_prompt(
            prompt,
            guided,
            negative_prompt=negative_prompt,
            device=self._device,
            complex_human_instruction=_instruction(self._pipeline),
        )
        return stack_rows(guided, states=(negative, states), mask=(negative_mask, mask))

    def _forward(self, latents: Tensor, times: Tensor, rows: Rows, guidance_scale: float) -> Tensor:
        prediction: Tensor = self._transformer(
            latents,
            encoder_hidden_states=rows["states"].to(latents.dtype),
            encoder_attention_mask=rows["mask"],
            timestep=times * self._transformer.config.timestep_scale,
            return_dict=False,
        )[0]
        # Half of the channels are a learned variance in some.
        return prediction[:, : latents.shape[1]]


class SanaSprint(Sana):
    """A consistency model of TrigFlow (arXiv 2410.11081), which takes the guidance scale as an input."""

    @torch.no_grad()
    def encode_prompt(self, prompt: str, negative_prompt: str, guided: bool) -> Rows:
        """Text states, ready for `predict`."""
        states, mask = self._pipeline.encode_prompt(
            prompt, device=self._device, complex_human_instruction=_instruction(self._pipeline)
        )
        return {"states": states, "mask": mask}

    def _forward(self, latents: Tensor, times: Tensor, rows: Rows, guidance_scale: float) -> Tensor:
        # The network was trained as flow matching; its time, input and output are those of TrigFlow's angle.
        share = torch.sin(times) / (torch.cos(times) + torch.sin(times))
        at = share.view(-1, 1, 1, 1)
        norm = torch.sqrt(at**2 + (1 - at) ** 2)
        inputs = latents * norm
        guidance = torch.full_like(times, guidance_scale) * self._transformer.config.guidance_embeds_scale
        prediction = self._transformer(
            inputs.to(self._dtype),
            encoder_hidden_states=rows["states"].to(self._dtype),
            encoder_attention_mask=rows["mask"],
            guidance=guidance.to(self._dtype),
            timestep=share,
            return_dict=False,
        )[0]
        velocity: Tensor = ((1 - 2 * at) * inputs + (1 - 2 * at + 2 * at**2) * prediction) / norm
        return velocity

    def _timestep_options(self, steps: int, tokens: int) -> Mapping[str, Any]:
        return {} if steps == 2 else {"intermediate_timesteps": None}


def _instruction(pipeline: Any) -> list[str]:
    """The instruction that the stock pipeline puts before every prompt."""
    default: list[str] = inspect.signature(pipeline.__call__).parameters["complex_human_instruction"].default
    return default


def load(path: Path, info: ModelInfo, device: torch.device, dtype: str) -> Sana:
    """Load a folder of class `SanaPipeline` or `SanaSprintPipeline`.

    Raises `ModelNotUsable` when it does not load.
    """
    if info.family == "sana-sprint":
        return SanaSprint(load_pipeline("SanaSprintPipeline", path, device, dtype), info, device, dtype)
    return Sana(load_pipeline("SanaPipeline", path, device, dtype), info, device, dtype)
