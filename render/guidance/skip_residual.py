"""The skip residual of DemoFusion (Du et al. 2024, section 3.2): a stage is held to the one below.

Before each step its latents are drawn towards the enlarged picture that it started from, noised to the
same level with the stage's own first noise, by a share that fades over the steps (`render.plan.decay`).
"""

from __future__ import annotations

from torch import Tensor


def apply_skip_residual(x: Tensor, anchor: Tensor, noise: Tensor, sigma: float, share: float) -> Tensor:
    """[C, h, w] latents, drawn by `share` to `anchor` noised to `sigma`. Elementwise: ranks agree."""
    if share == 0.0:
        return x
    return x * (1.0 - share) + (noise * sigma + anchor) * share
