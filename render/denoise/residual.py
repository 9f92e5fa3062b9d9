"""The skip residual of DemoFusion (Du et al. 2024, section 3.2): a stage is held to the one below.

Before each step its latents are drawn towards the enlarged picture that it started from, noised to the
same level with the stage's own first noise. The share falls with the steps as a raised cosine to the third
power, so what the picture is comes from below, and what it shows close up from the stage itself.
"""

from __future__ import annotations

import math

from torch import Tensor

from render.plan.stages import Stage

_POWER = 3
_LEAST = 1e-3
"""A smaller share is none: it would cost a pass over the latents for nothing."""


def residual_share(strength: float, stage: Stage, step: int) -> float:
    """The weight of the noised start before a step; `strength` at the stage's first one, then less."""
    done = (step - stage.first_step) / (stage.steps - stage.first_step)
    share = strength * ((1 + math.cos(math.pi * done)) / 2) ** _POWER
    return share if share >= _LEAST else 0.0


def held_to(x: Tensor, anchor: Tensor, noise: Tensor, sigma: float, share: float) -> Tensor:
    """[C, h, w] latents, drawn by `share` to `anchor` noised to `sigma`. Elementwise: ranks agree."""
    if share == 0.0:
        return x
    return x * (1.0 - share) + (noise * sigma + anchor) * share
