"""The skip residual of DemoFusion (Du et al. 2024, section 3.2): a stage stays close to the one below.

Before each step the latents are blended with the enlarged image that the stage started from, noised to the
same level with the stage's own initial noise. The strength decays over the steps (`render.plan.decay`).
"""

from __future__ import annotations

from typing import Self

from torch import Tensor

from render.guidance.hook import GuidanceHook, StageContext, Step
from render.plan.decay import decayed_strength
from render.plan.stages import Stage
from render.sampling.noise import INITIAL, stage_noise
from render.sampling.process import NoiseLevel
from render.spec import Spec


class SkipResidual(GuidanceHook):
    """Blends the latents with the noised reference before each step."""

    def __init__(self, context: StageContext, reference: Tensor) -> None:
        """`reference` is [C, area.height, area.width]."""
        self._spec, self._stage, self._reference = context.spec, context.stage, reference
        seed = context.spec.seed_of(context.stage.index)
        noise = stage_noise(context.stage, seed, INITIAL, len(reference), context.area)
        self._noise = noise.to(context.device)

    @classmethod
    def needs_reference(cls, spec: Spec, stage: Stage) -> bool:
        return spec.skip_residual > 0 and not stage.paints

    @classmethod
    def create(cls, context: StageContext) -> Self | None:
        if context.reference is None or not cls.needs_reference(context.spec, context.stage):
            return None
        return cls(context, context.reference.latents)

    def adjust_latents(self, step: Step, x: Tensor) -> Tensor:
        strength = decayed_strength(self._spec.skip_residual, self._stage, step.index)
        return apply_skip_residual(x, self._reference, self._noise, step.level, strength)


def apply_skip_residual(
    x: Tensor, reference: Tensor, noise: Tensor, level: NoiseLevel, strength: float
) -> Tensor:
    """[C, h, w] latents, blended by `strength` with `reference` noised to `level`.

    Elementwise, so that ranks get the same bits for latents that they share.
    """
    if strength == 0.0:
        return x
    kept = reference if level.alpha == 1.0 else reference * level.alpha
    return x * (1.0 - strength) + (noise * level.sigma + kept) * strength
