"""A model and its refiner behind one adapter: the refiner predicts the last steps on the same canvas."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from render.model_info import ModelInfo
from render.models.adapter import Adapter, TextSource, WindowPlace
from render.models.autoencoders import Autoencoder
from render.models.controlnet import ControlInput, following
from render.sampling.schedule import NoiseSchedule


@dataclass(frozen=True)
class RefinedTexts:
    """One prompt as each network encodes it."""

    model: Any
    refiner: Any


@dataclass(kw_only=True)
class RefinedAdapter:
    """The `Adapter` of a stage in which a refiner takes over.

    It is the model's adapter in everything but the predictions of the last steps.
    """

    model: Adapter
    refiner: Adapter
    last_model_timestep: float
    """The timestep of the last step that the model predicts."""

    info: ModelInfo = field(init=False)
    texts: TextSource | None = field(init=False, default=None)
    pipeline: Any = field(init=False)
    autoencoder: Autoencoder | None = field(init=False)
    prediction_type: str = field(init=False)
    """The same for both; `render.models.model_paths` checks it."""

    def __post_init__(self) -> None:
        self.pipeline = self.model.pipeline
        self.info, self.prediction_type = self.model.info, self.model.prediction_type
        self.autoencoder = self.model.autoencoder

    def schedule(self, sampler: str, steps: int, window: tuple[int, int] | None = None) -> NoiseSchedule:
        return self.model.schedule(sampler, steps, window)

    def encode_prompt(self, prompt: str, negative_prompt: str, guided: bool) -> RefinedTexts:
        both = self.model, self.refiner
        return RefinedTexts(*(each.encode_prompt(prompt, negative_prompt, guided) for each in both))

    def predict(
        self,
        latents: Tensor,
        timestep: float,
        text: RefinedTexts,
        places: Sequence[WindowPlace],
        conditions: Sequence[int],
        guidance_scale: float,
    ) -> Tensor:
        if self._is_models_step(timestep):
            return self.model.predict(latents, timestep, text.model, places, conditions, guidance_scale)
        # It knows no mask.
        latents = latents[:, : self.info.latent_channels]
        return self.refiner.predict(latents, timestep, text.refiner, places, conditions, guidance_scale)

    def prepare_context(self, tokens: Tensor | None, strength: float, form: str) -> Any:
        return self.model.prepare_context(tokens, strength, form)

    def predict_with_context(
        self,
        latents: Tensor,
        timestep: float,
        text: RefinedTexts,
        places: Sequence[WindowPlace],
        conditions: Sequence[int],
        guidance_scale: float,
        context: Any,
    ) -> tuple[Tensor, Tensor]:
        if self._is_models_step(timestep):
            return self.model.predict_with_context(
                latents, timestep, text.model, places, conditions, guidance_scale, context
            )
        # Tokens belong to the network that made them: the refiner neither uses the model's nor makes any.
        prediction = self.predict(latents, timestep, text, places, conditions, guidance_scale)
        return prediction, prediction.new_zeros((len(latents), self.info.token_width))

    def following(self, controls: Sequence[ControlInput]) -> RefinedAdapter:
        """See `FollowsControls`. The refiner, another network, does not follow them."""
        return replace(self, model=following(self.model, controls))

    def _is_models_step(self, timestep: float) -> bool:
        """Whether the model, not the refiner, predicts at a timestep."""
        return timestep >= self.last_model_timestep

    def decode(self, latents: Tensor) -> Tensor:
        return self.model.decode(latents)

    def encode(self, pixels: Tensor) -> Tensor:
        return self.model.encode(pixels)
