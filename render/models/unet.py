"""What the adapters of UNet models share: loading, guidance, the schedule and the autoencoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from torch import Tensor

from render.model_info import ModelInfo
from render.models.adapter import WindowPlace
from render.models.cross_window_attention import Context, cross_window_attention, pooled_kv
from render.models.loading import DTYPES
from render.models.streaming_vae import can_stream, run_streaming
from render.models.trained_cross_window_attention import (
    TrainedContext,
    TrainedCrossWindowAttention,
    load_trained_attention,
)
from render.sampling.diffusers_schedule import noise_schedule
from render.sampling.schedule import NoiseSchedule
from render.spec import POOLED

_STRIP = 512
"""Latents that the autoencoder takes at a time where it runs in strips, in whole rows: few enough that a wide
tile wants no more memory than a narrow one."""


@dataclass(frozen=True, kw_only=True)
class TextStates:
    """An encoded prompt: rows [unconditional, conditional] when it was encoded guided, else [conditional].
    A condition index is the number of a row."""

    states: Tensor
    """[1 or 2, tokens, channels]"""
    pooled: Tensor | None = None
    """[1 or 2, channels], for models that take it"""


def find_trained_attention(
    path: Path, info: ModelInfo, device: torch.device, dtype: str
) -> TrainedCrossWindowAttention | None:
    """The trained cross attention of a folder that brings one; raises `ModelNotUsable` if it is broken."""
    return load_trained_attention(path, device, DTYPES[dtype]) if info.has_cross_window_attention else None


def _strip_rows(width: int) -> int:
    return max(1, _STRIP // width)


class UNetAdapter:
    """A UNet that attends to text, and an autoencoder: all that Stable Diffusion 1, 2 and XL share."""

    def __init__(
        self,
        pipeline: Any,
        info: ModelInfo,
        device: torch.device,
        dtype: str,
        trained_attention: TrainedCrossWindowAttention | None = None,
    ) -> None:
        self.info, self._trained_attention = info, trained_attention
        self.prediction_type = str(pipeline.scheduler.config.get("prediction_type", "epsilon"))
        self._pipeline, self._device, self._dtype = pipeline, device, DTYPES[dtype]
        self._unet, self._vae = pipeline.unet, pipeline.vae
        if device.type == "cpu":
            # Channels innermost is how its attention reads them, and its convolutions are faster so too.
            self._unet.to(memory_format=torch.channels_last)
        # On a CPU, where memory and caches are small. A GPU is faster with one large call.
        self._in_strips = (
            device.type == "cpu"
            and isinstance(self._vae, diffusers.AutoencoderTiny)
            and can_stream(self._vae.encoder.layers)
            and can_stream(self._vae.decoder.layers)
        )
        # Distilled models take the guidance scale as an input instead of a second forward.
        self._guidance_width: int | None = pipeline.unet.config.time_cond_proj_dim

    def schedule(self, sampler: str, steps: int) -> NoiseSchedule:
        """The sigmas and timesteps that the stock diffusers scheduler of this sampler would use."""
        return noise_schedule(self._pipeline.scheduler.config, sampler, steps)

    @torch.no_grad()
    def predict(
        self,
        latents: Tensor,
        timestep: float,
        text: TextStates,
        places: Sequence[WindowPlace],
        conditions: Sequence[int],
        guidance_scale: float,
    ) -> Tensor:
        """Predictions for [B, C, h, w] scaled latents, float32; see `Adapter.predict`."""
        prediction: Tensor = self._unet(
            latents.to(self._device, self._dtype),
            torch.tensor(timestep, dtype=torch.float32, device=self._device),
            encoder_hidden_states=text.states[list(conditions)],
            timestep_cond=self._guidance_input(guidance_scale, len(latents)),
            added_cond_kwargs=self._added(text, places, conditions),
            return_dict=False,
        )[0].float()
        return prediction

    def prepare_context(self, tokens: Tensor | None, strength: float, form: str) -> Context:
        """What windows attend to at a step, from [conditions, N, token_width]; see
        `Adapter.prepare_context`."""
        if form == POOLED:
            return pooled_kv(self._unet, tokens, strength, self._dtype)
        assert self._trained_attention is not None, "the plan refuses this form for a model without it"
        with torch.no_grad():
            return TrainedContext.of(self._trained_attention, tokens, strength)

    def predict_with_context(
        self,
        latents: Tensor,
        timestep: float,
        text: TextStates,
        places: Sequence[WindowPlace],
        conditions: Sequence[int],
        guidance_scale: float,
        context: Context,
    ) -> tuple[Tensor, Tensor]:
        """`predict`, and each row's token [B, token_width]; see `Adapter.predict_with_context`."""
        with cross_window_attention(self._unet, context, places, conditions) as tokens:
            prediction = self.predict(latents, timestep, text, places, conditions, guidance_scale)
        return prediction, torch.cat(tokens, dim=1)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """[B, C, h, w] latents in the loop's scale -> [B, 3, 8h, 8w] pixels in [0, 1], float32."""
        config = self._vae.config
        latents = latents.to(self._device, self._vae.dtype)
        moments = self._moments(latents)
        if moments is None:
            latents = latents / config.scaling_factor
        else:
            latents = latents * moments[1] / config.scaling_factor + moments[0]
        if self._in_strips:
            # The two lines around the layers are diffusers' `DecoderTiny.forward`, which means [0, 1] by it.
            latents = torch.tanh(latents / 3) * 3
            rows = _strip_rows(latents.shape[3])
            return run_streaming(self._vae.decoder.layers, latents, rows).float().clamp_(0.0, 1.0)
        pixels: Tensor = self._vae.decode(latents, return_dict=False)[0].float()
        return (pixels * 0.5 + 0.5).clamp(0.0, 1.0)

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """[B, 3, H, W] pixels in [0, 1] -> [B, C, H/8, W/8] latents in the loop's scale, float32."""
        config = self._vae.config
        if self._in_strips:
            pixels = pixels.to(self._device, self._vae.dtype)
            scale = self.info.scale_factor
            rows = _strip_rows(pixels.shape[3] // scale) * scale
            mode = run_streaming(self._vae.encoder.layers, pixels, rows).float()
            return mode * float(config.scaling_factor)
        encoded = self._vae.encode(pixels.to(self._device, self._vae.dtype) * 2.0 - 1.0)
        encodes_exactly = hasattr(encoded, "latents")
        latents: Tensor = (encoded.latents if encodes_exactly else encoded.latent_dist.mode()).float()
        moments = self._moments(latents)
        if moments is not None:
            latents = (latents - moments[0]) / moments[1]
        return latents * float(config.scaling_factor)

    def _added(
        self, text: TextStates, places: Sequence[WindowPlace], conditions: Sequence[int]
    ) -> dict[str, Tensor] | None:
        """What a family's UNet is told besides the text; SD is told nothing."""
        return None

    def _guidance_input(self, guidance_scale: float, batch: int) -> Tensor | None:
        if self._guidance_width is None:
            return None
        scale = torch.tensor(guidance_scale - 1.0).repeat(batch)
        embedding = self._pipeline.get_guidance_scale_embedding(scale, embedding_dim=self._guidance_width)
        return torch.as_tensor(embedding).to(self._device, self._dtype)

    def _moments(self, latents: Tensor) -> tuple[Tensor, Tensor] | None:
        """Per-channel (mean, deviation) of the autoencoder's latents, where its config gives them."""
        mean, deviation = (self._vae.config.get(key) for key in ("latents_mean", "latents_std"))
        if mean is None or deviation is None:
            return None
        column = (1, -1, 1, 1)
        return latents.new_tensor(mean).view(column), latents.new_tensor(deviation).view(column)
