"""The hand-over from a model to its refiner, at a step of the last stage and on the same canvas.

SDXL's base decides what is there and its refiner finishes the texture: an ensemble of expert denoisers
(eDiff-I, arXiv 2211.01324), in diffusers `denoising_end` and `denoising_start`. In a cascade it takes over in
the last stage alone: a stage below is noised again and repainted, and nothing would be left of its finish.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from render.errors import BadInput
from render.model_info import ModelInfo
from render.models.adapter import Adapter, WindowPlace
from render.plan.stages import Stage
from render.sampling.schedule import NoiseSchedule
from render.spec import Spec


@dataclass(frozen=True, kw_only=True)
class StageModel:
    """Who predicts in a stage: a network, the steps that it takes, and the prompts as it reads them."""

    adapter: Adapter
    schedule: NoiseSchedule
    texts: tuple[Any, ...]


def assign_models(
    spec: Spec, stages: Sequence[Stage], adapter: Adapter, refiner: Adapter | None
) -> tuple[StageModel, ...]:
    """The cast of each stage. Raises `BadInput` when the hand-over leaves no step to one of the two."""
    if (spec.refiner is None) != (refiner is None):
        raise ValueError("a refiner is loaded where the spec names one, and only there")
    prompts, guided = (spec.prompt, *(box.prompt for box in spec.boxes)), stages[0].passes == 2

    def read_by(network: Adapter) -> tuple[Any, ...]:
        return tuple(network.encode_prompt(prompt, spec.negative_prompt, guided) for prompt in prompts)

    alone = StageModel(
        adapter=adapter, schedule=adapter.schedule(spec.sampler, spec.steps), texts=read_by(adapter)
    )
    if refiner is None:
        return (alone,) * len(stages)
    step = hand_over_step(alone.schedule, spec.refiner_start)
    first = stages[-1].first_step if len(stages) == 1 else 0
    if not first < step < spec.steps:
        whom = "the refiner" if step >= spec.steps else "the model"
        raise BadInput(
            "refiner_start", spec.refiner_start, f"leaves {whom} none of {spec.steps} steps; use more steps"
        )
    pairs = tuple(_Texts(*texts) for texts in zip(alone.texts, read_by(refiner), strict=True))
    both = RefinedAdapter(model=adapter, refiner=refiner, last_of_model=alone.schedule.timesteps[step - 1])
    last = StageModel(adapter=both, schedule=replace(alone.schedule, restart=step), texts=pairs)
    return (*(alone,) * (len(stages) - 1), last)


def hand_over_step(schedule: NoiseSchedule, start: float) -> int:
    """The refiner's first step: as in diffusers, the first whose noise level lies below a share of those
    that the models were trained on."""
    level = round(schedule.trained_steps - start * schedule.trained_steps)
    return sum(timestep >= level for timestep in schedule.timesteps)


@dataclass(frozen=True)
class _Texts:
    """One prompt as each network reads it."""

    model: Any
    refiner: Any


@dataclass(kw_only=True)
class RefinedAdapter:
    """The `Adapter` of a stage in which a refiner takes over; but for its predictions it is the model's."""

    model: Adapter
    refiner: Adapter
    last_of_model: float
    """The timestep of the last step that is the model's."""

    info: ModelInfo = field(init=False)
    prediction_type: str = field(init=False)
    """`render.models.model_paths` sees to it that both have the same."""

    def __post_init__(self) -> None:
        self.info, self.prediction_type = self.model.info, self.model.prediction_type

    def schedule(self, sampler: str, steps: int) -> NoiseSchedule:
        return self.model.schedule(sampler, steps)

    def encode_prompt(self, prompt: str, negative_prompt: str, guided: bool) -> _Texts:
        networks = self.model, self.refiner
        return _Texts(*(network.encode_prompt(prompt, negative_prompt, guided) for network in networks))

    def predict(
        self,
        latents: Tensor,
        timestep: float,
        text: _Texts,
        places: Sequence[WindowPlace],
        passes: Sequence[int],
        guidance_scale: float,
    ) -> Tensor:
        if self._begins(timestep):
            return self.model.predict(latents, timestep, text.model, places, passes, guidance_scale)
        return self.refiner.predict(latents, timestep, text.refiner, places, passes, guidance_scale)

    def hear(self, tokens: Tensor | None, share: float, form: str) -> Any:
        return self.model.hear(tokens, share, form)

    def predict_with_context(
        self,
        latents: Tensor,
        timestep: float,
        text: _Texts,
        places: Sequence[WindowPlace],
        passes: Sequence[int],
        guidance_scale: float,
        heard: Any,
    ) -> tuple[Tensor, Tensor]:
        if self._begins(timestep):
            return self.model.predict_with_context(
                latents, timestep, text.model, places, passes, guidance_scale, heard
            )
        # Tokens are of the network that has said them: the refiner neither hears the model's nor speaks.
        prediction = self.predict(latents, timestep, text, places, passes, guidance_scale)
        return prediction, prediction.new_zeros((len(latents), self.info.token_width))

    def _begins(self, timestep: float) -> bool:
        """Whether a step is the model's."""
        return timestep >= self.last_of_model

    def decode(self, latents: Tensor) -> Tensor:
        return self.model.decode(latents)

    def encode(self, pixels: Tensor) -> Tensor:
        return self.model.encode(pixels)
