"""Communication volume of global guidance: what each rank sends to all others at a step, beside its borders.

Pooled tokens (`render.guidance.cross_window_attention`) and dilated views (`render.guidance.dilated_views`)
send their numbers in half precision. Pure numbers, no torch.
"""

from __future__ import annotations

from render.model_info import ModelInfo
from render.plan.decay import decayed_strength
from render.plan.dilation import uses_views
from render.plan.stages import Stage
from render.plan.tiling import Tiling
from render.plan.token_sources import max_sources_per_rank, token_sources
from render.spec import Spec

_FP16_BYTES = 2


def sends_tokens(spec: Spec, stage: Stage, tiling: Tiling, step: int) -> bool:
    """Whether pooled tokens are sent at a step, for use at the next one."""
    following = step + 1
    if following >= stage.steps or not decayed_strength(spec.cross_attention, stage, following):
        return False
    return any(token_sources(tiling))


def sends_canvas(spec: Spec, stage: Stage, step: int) -> bool:
    """Whether the canvas is sent at a step, for the dilated views of the next one."""
    following = step + 1
    return (
        stage.dilation is not None and following < stage.steps and uses_views(spec.dilated, stage, following)
    )


def token_bytes(spec: Spec, stage: Stage, tiling: Tiling, info: ModelInfo, step: int | None = None) -> int:
    """Bytes of pooled tokens that each rank sends at a step; at the stage's first step if none is given."""
    if not sends_tokens(spec, stage, tiling, stage.first_step if step is None else step):
        return 0
    return max_sources_per_rank(tiling) * info.token_width * _FP16_BYTES


def view_bytes(spec: Spec, stage: Stage, tiling: Tiling, info: ModelInfo, step: int | None = None) -> int:
    """Bytes that each rank sends for dilated views at a step; at the stage's first step if none is given.

    They are the predictions of the rank's own views, and its region of the canvas for the next step's views.
    """
    dilation, at, world = stage.dilation, stage.first_step if step is None else step, tiling.world_size
    if dilation is None:
        return 0
    latents = 0
    if uses_views(spec.dilated, stage, at):
        latents += dilation.max_views_per_rank(world) * dilation.height * dilation.width
    if sends_canvas(spec, stage, at):
        latents += tiling.longest_region
    return latents * info.latent_channels * _FP16_BYTES
