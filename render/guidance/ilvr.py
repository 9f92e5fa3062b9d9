"""ILVR (Choi et al. 2021): a stage keeps the colors and coarse shapes of the one below.

A window of a large image shows too little of it to tell a highlight from a hole. So at each step the low
frequencies of a window's estimate of x0 are replaced by those of the enlarged image below, which has decided
them. Higher frequencies are the window's own.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Self

import torch
from torch import Tensor

from render.guidance.hook import GuidanceHook, StageContext, Step
from render.models.model_call import ModelCall
from render.plan.stages import Stage
from render.sampling.process import NoiseLevel
from render.sampling.samplers import denoised_slope, to_denoised
from render.spec import Spec

LOW_PASS_SIGMA = 1.0
"""Standard deviation, in latents, of the Gaussian that separates low from high frequencies. A stage of twice
the size adds what is finer."""


class ILVR(GuidanceHook):
    """Replaces the low frequencies of each window's estimate of x0."""

    def __init__(self, context: StageContext, reference: Tensor) -> None:
        """`reference` is [C, area.height, area.width]."""
        self._context, self._reference = context, reference

    @classmethod
    def needs_reference(cls, spec: Spec, stage: Stage) -> bool:
        return stage.enlarges and spec.ilvr > 0

    @classmethod
    def create(cls, context: StageContext) -> Self | None:
        if context.reference is None or not cls.needs_reference(context.spec, context.stage):
            return None
        return cls(context, context.reference.latents)

    def adjust_prediction(self, step: Step, call: ModelCall, prediction: Tensor) -> Tensor:
        context = self._context
        # A region prompt that first appears in this stage has nothing in the image below.
        if context.tiling.layers[call.layer].text in context.stage.composes:
            return prediction
        reference, x = (
            torch.stack([context.cut(planes, window) for window in call.windows])
            for planes in (self._reference, step.x)
        )
        kind, strength = context.adapter.prediction_type, context.spec.ilvr
        return apply_ilvr(prediction, x, reference, step.level, kind, strength)


def apply_ilvr(
    prediction: Tensor, x: Tensor, reference: Tensor, level: NoiseLevel, prediction_type: str, strength: float
) -> Tensor:
    """The prediction [B, C, h, w] for windows with the latents `x`, changed so that the low frequencies of x0
    move by `strength` (0 to 1) to those of `reference`. Each window by itself, so that ranks agree."""
    missing = reference - to_denoised(prediction, x, level, prediction_type)
    vertical, horizontal = (low_pass_matrix(length, LOW_PASS_SIGMA).to(x.device) for length in x.shape[2:])
    low = vertical @ missing @ horizontal.T
    return prediction + low * (strength / denoised_slope(level, prediction_type))


@lru_cache(maxsize=64)
def low_pass_matrix(length: int, sigma: float) -> Tensor:
    """[length, length]: a Gaussian blur of a row of `length` values, which repeats the values at both
    ends."""
    reach = round(3 * sigma)
    taps = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma) ** 2)
    weights = torch.zeros((length, length))
    for away, tap in zip(range(-reach, reach + 1), taps / taps.sum(), strict=True):
        at = torch.arange(length)
        weights[at, (at + away).clamp(0, length - 1)] += tap
    return weights
