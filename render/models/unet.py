"""What the adapters of UNet models share: guidance, the schedule and the forward."""

from __future__ import annotations

import copy
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from render.model_info import ModelInfo
from render.models.adapter import TextSource, WindowPlace
from render.models.autoencoders import open_autoencoder
from render.models.controlnet import ControlInput, residuals
from render.models.cross_window_attention import Context, cross_window_attention, pooled_kv
from render.models.inpainting import BlankPictures, cut_out
from render.models.loading import DTYPES
from render.models.model_call import ModelCall
from render.models.seeing_unet import SeeingUNet
from render.models.trained_cross_window_attention import (
    TrainedContext,
    TrainedCrossWindowAttention,
    load_trained_attention,
)
from render.sampling.diffusers_schedule import noise_schedule
from render.sampling.process import EPSILON
from render.sampling.schedule import NoiseSchedule
from render.sampling.scheduler_config import NoiseKind, trained_noise
from render.spec import POOLED
from render.spec.reference import ReferencePicture


@dataclass(frozen=True, kw_only=True)
class TextStates:
    """An encoded prompt: rows [unconditional, conditional] when it was encoded guided, else [conditional].
    A condition index is the number of a row."""

    states: Tensor
    """[1 or 2, tokens, channels]"""
    pooled: Tensor | None = None
    """[1 or 2, channels], for models that take it"""
    image: Tensor | None = None
    """[1 or 2, pictures, ..], the references as an IP-Adapter's encoder sees them"""


def find_trained_attention(
    path: Path, info: ModelInfo, device: torch.device, dtype: str
) -> TrainedCrossWindowAttention | None:
    """The trained cross attention of a folder that brings one; raises `ModelNotUsable` if it is broken."""
    return load_trained_attention(path, device, DTYPES[dtype]) if info.has_cross_window_attention else None


class UNetAdapter:
    """A UNet that attends to text, beside an autoencoder: all that Stable Diffusion 1, 2 and XL share."""

    texts: TextSource | None = None

    def __init__(
        self,
        pipeline: Any,
        info: ModelInfo,
        device: torch.device,
        dtype: str,
        trained_attention: TrainedCrossWindowAttention | None = None,
    ) -> None:
        self.info, self._trained_attention = info, trained_attention
        scheduler = pipeline.scheduler
        self._scheduler_config = dict(scheduler.config) | {"_class_name": type(scheduler).__name__}
        noise = trained_noise(self._scheduler_config)
        self.prediction_type = noise.prediction_type
        # EDM's `epsilon` is the velocity with the other sign (see `render.sampling.scheduler_config`).
        config_type = self._scheduler_config.get("prediction_type", EPSILON)
        self._reversed = noise.kind is NoiseKind.EDM and config_type == EPSILON
        self.controlnets: tuple[Any, ...] = ()
        self._controls: Sequence[ControlInput] = ()
        self._pipeline, self._device, self._dtype = pipeline, device, DTYPES[dtype]
        self.pipeline = pipeline
        self._unet = pipeline.unet
        # A refiner has none: it works on the model's latents.
        self.autoencoder = None if pipeline.vae is None else open_autoencoder(pipeline.vae, device)
        if device.type == "cpu":
            # Channels innermost is how its attention reads them, and its convolutions are faster so too.
            self._unet.to(memory_format=torch.channels_last)
        # Distilled models take the guidance scale as an input instead of a second forward.
        self._blank = BlankPictures()
        self._guidance_width: int | None = pipeline.unet.config.time_cond_proj_dim

    def schedule(self, sampler: str, steps: int, window: tuple[int, int] | None = None) -> NoiseSchedule:
        """The sigmas and timesteps that the stock diffusers scheduler of this sampler would use."""
        return noise_schedule(self._scheduler_config, sampler, steps)

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
        return self._forward(
            latents,
            torch.tensor(timestep, dtype=torch.float32, device=self._device),
            text.states[list(conditions)],
            guidance_scale,
            self._added_with_image(text, places, conditions),
        )

    def following(self, controls: Sequence[ControlInput]) -> UNetAdapter:
        """See `FollowsControls`."""
        follower = copy.copy(self)
        follower._controls = controls
        return follower

    def seeing(self, pictures: Sequence[ReferencePicture]) -> SeeingUNet:
        """See `SeesReferences`. The spec has an IP-Adapter then."""
        return SeeingUNet(self, pictures)

    @property
    def network(self) -> nn.Module:
        """See `JoinsCalls`."""
        network: nn.Module = self._unet
        return network

    def join_key(self, call: ModelCall) -> Hashable | None:
        """Latents of one shape, and texts of one length; see `JoinsCalls`."""
        if call.controls or call.text.image is not None:
            # Each call has networks, weights and control types, or pictures, of its own.
            return None
        scale = None if self._guidance_width is None else call.guidance_scale
        return call.latents.shape[1:], call.text.states.shape[1:], scale

    @torch.no_grad()
    def predict_joined(self, calls: Sequence[ModelCall]) -> Tensor:
        """Predictions for all rows of all calls, in order; see `JoinsCalls`."""
        added = [self._added(call.text, call.places, call.conditions) for call in calls]
        times = [torch.full((len(call.latents),), call.timestep, dtype=torch.float32) for call in calls]
        return self._forward(
            torch.cat([call.latents for call in calls]),
            torch.cat(times).to(self._device),
            torch.cat([call.text.states[list(call.conditions)] for call in calls]),
            calls[0].guidance_scale,
            None if added[0] is None else _cat_rows([one for one in added if one is not None]),
        )

    def _forward(
        self,
        latents: Tensor,
        times: Tensor,
        states: Tensor,
        guidance_scale: float,
        added: dict[str, Any] | None,
    ) -> Tensor:
        sample = self._blank.complete(self, latents.to(self._device, self._dtype))
        inputs: dict[str, Any] = {
            "timestep": times,
            "encoder_hidden_states": states,
            "added_cond_kwargs": added,
        }
        prediction: Tensor = self._unet(
            sample,
            **inputs,
            **residuals(self.controlnets, self._controls, sample[:, : self.info.latent_channels], inputs),
            timestep_cond=self._guidance_input(guidance_scale, len(latents)),
            return_dict=False,
        )[0].float()
        return -prediction if self._reversed else prediction

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

    def decode(self, latents: Tensor) -> Tensor:
        """[B, C, h, w] latents in the loop's scale -> [B, 3, 8h, 8w] pixels in [0, 1], float32."""
        assert self.autoencoder is not None, "a refiner is loaded without one"
        return self.autoencoder.decode(latents)

    def encode(self, pixels: Tensor) -> Tensor:
        """[B, 3, H, W] pixels in [0, 1] -> [B, C, H/8, W/8] latents in the loop's scale, float32."""
        assert self.autoencoder is not None, "a refiner is loaded without one"
        return self.autoencoder.encode(pixels)

    def masked_picture(self, pixels: Tensor, painted: Tensor) -> Tensor:
        """See `TakesMasks`: the mask at the corner of each latent, then the latents of what is kept."""
        mask = painted[:, :, :: self.info.scale_factor, :: self.info.scale_factor]
        latents = self.encode(cut_out(pixels, painted))
        return torch.cat([mask.to(latents), latents], dim=1)

    def _added(
        self, text: TextStates, places: Sequence[WindowPlace], conditions: Sequence[int]
    ) -> dict[str, Tensor] | None:
        """What a family's UNet is told besides the text; SD is told nothing."""
        return None

    def _added_with_image(
        self, text: TextStates, places: Sequence[WindowPlace], conditions: Sequence[int]
    ) -> dict[str, Any] | None:
        """`_added`, and the references as diffusers' UNet takes them."""
        added = self._added(text, places, conditions)
        if text.image is None:
            return added
        return {**(added or {}), "image_embeds": [text.image[list(conditions)]]}

    def _guidance_input(self, guidance_scale: float, batch: int) -> Tensor | None:
        if self._guidance_width is None:
            return None
        scale = torch.tensor(guidance_scale - 1.0).repeat(batch)
        embedding = self._pipeline.get_guidance_scale_embedding(scale, embedding_dim=self._guidance_width)
        return torch.as_tensor(embedding).to(self._device, self._dtype)


def _cat_rows(parts: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
