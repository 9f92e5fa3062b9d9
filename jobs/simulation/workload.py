"""How long an image takes on a number of ranks, from its plan and measured or given times."""

from __future__ import annotations

from functools import cache
from typing import Protocol

from pydantic import BaseModel, ConfigDict, Field

from render.model_info import ModelInfo
from render.plan.plan import Plan, make_plan
from render.spec import Spec


class ModelTimes(BaseModel):
    """A model's shape and the seconds that it takes on one slot. No weights are read."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    native_size: int = Field(1024, ge=64, description="Side of a window in pixels.")
    scale_factor: int = Field(8, ge=1, description="Pixels per latent.")
    latent_channels: int = Field(4, ge=1)
    guidance_scale: float = Field(5.0, ge=0, description="Default; above 1 there are two passes.")
    evaluation_s: float = Field(gt=0, description="One window of the native size under one condition.")
    call_s: float = Field(0.0, ge=0, description="Fixed time of a model call, beside its evaluations.")
    decode_s: float = Field(0.0, ge=0, description="Decoding and writing one megapixel.")
    start_s: float = Field(0.0, ge=0, description="Start of a group: processes, and loading the model.")
    warm_start_s: float = Field(0.0, ge=0, description="Start of an image on a running group.")

    @property
    def info(self) -> ModelInfo:
        """What the plan needs to know of the model."""
        return ModelInfo(
            family="simulated",
            latent_channels=self.latent_channels,
            scale_factor=self.scale_factor,
            native_size=self.native_size,
            digest="",
            decode_halo=8,
            guidance_scale=self.guidance_scale,
        )


class Workload(Protocol):
    """An image as the simulation sees it."""

    model: str

    def useful_s(self) -> float:
        """Slot seconds of one rank: its evaluations, its model calls and decoding."""
        ...

    def seconds(self, ranks: int) -> float:
        """Time of the whole image on a group of so many ranks, without its start."""
        ...


class PlannedWorkload:
    """An image with a plan. Images of one geometry share it, since plans are not cheap."""

    def __init__(self, spec: Spec, model: str, times: ModelTimes) -> None:
        self.model, self._spec, self._times = model, spec, times
        self._seconds: dict[int, float] = {}

    def useful_s(self) -> float:
        stages = self._plan(1).stages
        # `work` counts the latents of all evaluations of all steps.
        evaluations = sum(_window_share(stage.work, self._times) for stage in stages)
        calls = sum(stage.model_calls for stage in stages)
        return evaluations * self._times.evaluation_s + calls * self._times.call_s + self._decode_s()

    def seconds(self, ranks: int) -> float:
        if ranks not in self._seconds:
            self._seconds[ranks] = self._calls_s(ranks) + self._decode_s() / ranks
        return self._seconds[ranks]

    def _calls_s(self, ranks: int) -> float:
        seconds = 0.0
        for stage in self._plan(ranks).stages:
            grid = stage.stage.grid
            share = _window_share(grid.rows.window * grid.cols.window, self._times)
            call = self._times.call_s + stage.stage.batch * share * self._times.evaluation_s
            seconds += stage.model_calls * call
        return seconds

    def _decode_s(self) -> float:
        return self._times.decode_s * self._spec.width * self._spec.height / 1e6

    def _plan(self, ranks: int) -> Plan:
        return _plan(self._spec, self._times.info, ranks)


class MeasuredWorkload:
    """An image of a farm: the measured slot seconds that it still needs, and the plan's balance of ranks."""

    def __init__(self, model: str, slot_seconds: float, plan_of: tuple[Spec, ModelInfo] | None) -> None:
        self.model, self._slot_seconds, self._plan_of = model, slot_seconds, plan_of

    def useful_s(self) -> float:
        return self._slot_seconds

    def seconds(self, ranks: int) -> float:
        if self._plan_of is None:
            return self._slot_seconds / ranks
        one, many = (_plan(*self._plan_of, count).model_calls for count in (1, ranks))
        return self._slot_seconds * many / one


def _window_share(latents: float, times: ModelTimes) -> float:
    """Latents in windows of the native size."""
    return latents / (times.native_size // times.scale_factor) ** 2


@cache
def _plan(spec: Spec, info: ModelInfo, ranks: int) -> Plan:
    return make_plan(spec, info, ranks)
