"""Which model predicts in which stage: the spec's model, and in the last stage perhaps its refiner.

SDXL's base decides the composition and its refiner finishes the texture: an ensemble of expert denoisers
(eDiff-I, arXiv 2211.01324), in diffusers `denoising_end` and `denoising_start`. In a cascade the refiner
takes over in the last stage only: the stages below are noised and denoised again, which would undo its work.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from render.errors import BadInput
from render.models.adapter import Adapter, TextSource
from render.models.references import EncodesPrompts, seeing
from render.models.refined import RefinedAdapter, RefinedTexts
from render.plan.stages import Stage
from render.sampling.schedule import NoiseSchedule
from render.spec import Spec
from render.spec.reference import ReferencePicture


@dataclass(frozen=True, kw_only=True)
class StageModel:
    """What predicts in a stage: a network, the steps that it takes, and the prompts as it encodes them."""

    adapter: Adapter
    schedule: NoiseSchedule
    texts: tuple[Any, ...]


def prompts_of(spec: Spec) -> tuple[str, ...]:
    """The prompts that a spec's models encode: that of the image, and those of its boxes."""
    return (spec.prompt, *(box.prompt for box in spec.boxes))


def assign_models(
    spec: Spec, stages: Sequence[Stage], adapter: Adapter, refiner: Adapter | None
) -> tuple[StageModel, ...]:
    """The model of each stage. Raises `BadInput` when model or refiner would have no step."""
    if (spec.refiner is None) != (refiner is None):
        raise ValueError("a refiner must be loaded if, and only if, the spec names one")
    prompts, guided = prompts_of(spec), stages[0].passes == 2

    def encode_with(network: EncodesPrompts, pictures: Sequence[ReferencePicture] = ()) -> tuple[Any, ...]:
        source: TextSource | None = getattr(network, "texts", None)
        if source is None:
            return tuple(network.encode_prompt(prompt, spec.negative_prompt, guided) for prompt in prompts)
        return tuple(source(prompt, spec.negative_prompt, guided, pictures) for prompt in prompts)

    texts = encode_with(seeing(adapter, spec.reference), spec.reference)

    def model_of(stage: Stage) -> StageModel:
        window = stage.grid.rows.window, stage.grid.cols.window
        schedule = adapter.schedule(spec.sampler, spec.steps, window)
        return StageModel(adapter=adapter, schedule=schedule, texts=texts)

    models = tuple(map(model_of, stages))
    if refiner is None:
        return models
    alone = models[-1]
    step = refiner_step(alone.schedule, spec.refiner_start)
    first = stages[-1].first_step if len(stages) == 1 else 0
    if not first < step < spec.steps:
        whom = "the refiner" if step >= spec.steps else "the model"
        raise BadInput(
            "refiner_start", spec.refiner_start, f"leaves {whom} none of {spec.steps} steps; use more steps"
        )
    pairs = tuple(RefinedTexts(*both) for both in zip(texts, encode_with(refiner), strict=True))
    both = RefinedAdapter(
        model=adapter, refiner=refiner, last_model_timestep=alone.schedule.timesteps[step - 1]
    )
    last = StageModel(adapter=both, schedule=replace(alone.schedule, restart=step), texts=pairs)
    return (*models[:-1], last)


def refiner_step(schedule: NoiseSchedule, start: float) -> int:
    """The refiner's first step: as in diffusers, the first whose noise level is below a share of those that
    the models were trained on."""
    level = round(schedule.trained_steps - start * schedule.trained_steps)
    return sum(timestep >= level for timestep in schedule.timesteps)
