"""What the adapters of transformer models share: padding to whole patches, the schedule, the forward.

A family's adapter implements `encode_prompt` with its pipeline's own `encode_prompt`, and `_forward`.
Positions are a window's own, as in training; a window is an image to the network.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from render.model_info import ModelInfo
from render.models.adapter import TextSource, WindowPlace
from render.models.autoencoders import open_autoencoder
from render.models.loading import DTYPES
from render.models.model_call import ModelCall
from render.sampling.diffusers_schedule import noise_schedule
from render.sampling.schedule import NoiseSchedule
from render.sampling.scheduler_config import trained_noise

Rows = Mapping[str, Any]
"""An encoded prompt: what the network is given, each with the rows [unconditional, conditional] when it was
encoded guided, else [conditional]. A condition index is the number of a row."""


class TransformerAdapter:
    """A diffusion transformer and its autoencoder."""

    texts: TextSource | None = None

    def __init__(self, pipeline: Any, info: ModelInfo, device: torch.device, dtype: str) -> None:
        self.info = info
        self.pipeline = self._pipeline = pipeline
        self._device, self._dtype = device, DTYPES[dtype]
        self._transformer = pipeline.transformer
        self.autoencoder = open_autoencoder(pipeline.vae, device)
        scheduler = pipeline.scheduler
        self._scheduler_config = dict(scheduler.config) | {"_class_name": type(scheduler).__name__}
        self.prediction_type = trained_noise(self._scheduler_config).prediction_type

    def schedule(self, sampler: str, steps: int, window: tuple[int, int] | None = None) -> NoiseSchedule:
        """The steps that the pipeline would take for an image of a window's size; see `Adapter.schedule`."""
        native = self.info.native_size // self.info.scale_factor
        height, width = window or (native, native)
        patch = self.info.patch
        tokens = -(-height // patch) * -(-width // patch)
        return noise_schedule(self._scheduler_config, sampler, steps, self._timestep_options(steps, tokens))

    @torch.no_grad()
    def predict(
        self,
        latents: Tensor,
        timestep: float,
        text: Rows,
        places: Sequence[WindowPlace],
        conditions: Sequence[int],
        guidance_scale: float,
    ) -> Tensor:
        """Predictions for [B, C, h, w] latents, float32; see `Adapter.predict`."""
        times = torch.full((len(latents),), timestep, dtype=torch.float32, device=self._device)
        return self._on_whole_patches(
            latents, lambda whole: self._predict(whole, times, text, conditions, guidance_scale)
        )

    @property
    def network(self) -> nn.Module:
        """See `JoinsCalls`."""
        network: nn.Module = self._transformer
        return network

    def join_key(self, call: ModelCall) -> Hashable | None:
        """Latents of one shape, and texts of one length; see `JoinsCalls`."""
        if type(self)._predict is not TransformerAdapter._predict:
            # The text is not one row for each evaluation, or more than one forward makes a prediction.
            return None
        shapes = tuple((name, None if row is None else row.shape[1:]) for name, row in call.text.items())
        return call.latents.shape[1:], shapes, call.guidance_scale

    @torch.no_grad()
    def predict_joined(self, calls: Sequence[ModelCall]) -> Tensor:
        """Predictions for all rows of all calls, in order; see `JoinsCalls`."""
        times = [torch.full((len(call.latents),), call.timestep, dtype=torch.float32) for call in calls]
        taken = [take_rows(call.text, call.conditions) for call in calls]
        rows = {
            name: None if value is None else torch.cat([one[name] for one in taken])
            for name, value in taken[0].items()
        }
        return self._on_whole_patches(
            torch.cat([call.latents for call in calls]),
            lambda whole: self._forward(
                whole, torch.cat(times).to(self._device), rows, calls[0].guidance_scale
            ),
        )

    def _on_whole_patches(self, latents: Tensor, predict: Callable[[Tensor], Tensor]) -> Tensor:
        """Predictions in float32 of latents that are filled up to whole patches for the network."""
        height, width = latents.shape[2:]
        latents = filled_up(latents, self.info.patch)
        return predict(latents.to(self._device, self._dtype)).float()[:, :, :height, :width]

    def prepare_context(self, tokens: Tensor | None, strength: float, form: str) -> Any:
        """Never called: transformers have no `token_width`."""
        raise NotImplementedError

    def predict_with_context(
        self,
        latents: Tensor,
        timestep: float,
        text: Rows,
        places: Sequence[WindowPlace],
        conditions: Sequence[int],
        guidance_scale: float,
        context: Any,
    ) -> tuple[Tensor, Tensor]:
        """Never called: transformers have no `token_width`."""
        raise NotImplementedError

    def decode(self, latents: Tensor) -> Tensor:
        """See `Autoencoder.decode`."""
        return self.autoencoder.decode(latents)

    def encode(self, pixels: Tensor) -> Tensor:
        """See `Autoencoder.encode`."""
        return self.autoencoder.encode(pixels)

    def encode_prompt(self, prompt: str, negative_prompt: str, guided: bool) -> Rows:
        """Text states, ready for `predict`; computed once per image."""
        raise NotImplementedError

    def _predict(
        self, latents: Tensor, times: Tensor, text: Rows, conditions: Sequence[int], guidance_scale: float
    ) -> Tensor:
        """The network's predictions for whole patches, in the sign of `prediction_type`."""
        return self._forward(latents, times, take_rows(text, conditions), guidance_scale)

    def _forward(self, latents: Tensor, times: Tensor, rows: Rows, guidance_scale: float) -> Tensor:
        """One call of the network with one row of the text for each of [B, C, h, w] latents."""
        raise NotImplementedError

    def _timestep_options(self, steps: int, tokens: int) -> Mapping[str, Any]:
        """What the pipeline gives its scheduler's `set_timesteps` for an image of so many tokens."""
        return {}


def filled_up(planes: Tensor, multiple: int) -> Tensor:
    """[B, C, h, w], with the last row and column repeated until both sides are multiples."""
    height, width = planes.shape[2:]
    down, right = -height % multiple, -width % multiple
    if down or right:
        planes = functional.pad(planes, (0, right, 0, down), mode="replicate")
    return planes


def take_rows(text: Rows, conditions: Sequence[int]) -> Rows:
    """One row of each value for each evaluation."""
    return {name: None if value is None else value[list(conditions)] for name, value in text.items()}


def stack_rows(guided: bool, **pairs: tuple[Tensor | None, Tensor]) -> Rows:
    """(unconditional, conditional) pairs -> rows."""
    return {
        name: torch.cat([unconditional, conditional]) if guided and unconditional is not None else conditional
        for name, (unconditional, conditional) in pairs.items()
    }


def pack(latents: Tensor) -> Tensor:
    """[B, C, h, w] -> [B, h/2 * w/2, 4 C]: a token for each patch of 2x2 latents, as Flux numbers them."""
    return functional.pixel_unshuffle(latents, 2).flatten(2).transpose(1, 2)


def unpack(tokens: Tensor, height: int, width: int) -> Tensor:
    """The reverse of `pack`, for latents of this height and width."""
    patches = tokens.transpose(1, 2).reshape(len(tokens), -1, height // 2, width // 2)
    return functional.pixel_shuffle(patches, 2)


def shifted_sigmas(
    scheduler_config: Mapping[str, Any], steps: int, tokens: int, longest: int = 4096, most: float = 1.15
) -> Mapping[str, Any]:
    """`sigmas` and `mu` as Flux's pipeline and its descendants give them: evenly spaced, and a shift that is
    linear in the number of tokens (`calculate_shift`)."""
    base, end = (
        scheduler_config.get("base_image_seq_len", 256),
        scheduler_config.get("max_image_seq_len", longest),
    )
    low, high = scheduler_config.get("base_shift", 0.5), scheduler_config.get("max_shift", most)
    slope = (high - low) / (end - base)
    shift = {"mu": tokens * slope + (low - slope * base)}
    if scheduler_config.get("use_flow_sigmas"):
        # A solver that was written for betas makes its own sigmas.
        return shift if scheduler_config.get("use_dynamic_shifting") else {}
    return {"sigmas": evenly_spaced(steps)} | shift


def evenly_spaced(steps: int) -> list[float]:
    """From 1 to 1 / steps."""
    return torch.linspace(1.0, 1.0 / steps, steps, dtype=torch.float64).tolist()
