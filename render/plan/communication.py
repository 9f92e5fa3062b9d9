"""What crosses for the whole canvas at a step, beside the borders: when, and how much. Pure numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from render.model_info import ModelInfo
from render.plan.decay import decayed_strength
from render.plan.dilation import views_taken
from render.plan.tiling import Tiling
from render.plan.token_sources import max_sources_per_rank, token_sources
from render.spec import Spec

if TYPE_CHECKING:
    from render.plan.stages import Stage

_BYTES = 2
"""Of a number in half precision."""


def tokens_cross(spec: Spec, stage: Stage, tiling: Tiling, step: int) -> bool:
    """Whether windows say at a step what others hear at the next one."""
    heard = step + 1
    if heard >= stage.steps or not decayed_strength(spec.cross_attention, stage, heard):
        return False
    return any(token_sources(tiling))


def canvas_crosses(spec: Spec, stage: Stage, step: int) -> bool:
    """Whether the canvas is said at a step for the next one's views."""
    return (
        stage.dilation is not None and step + 1 < stage.steps and views_taken(spec.dilated, stage, step + 1)
    )


def token_bytes(spec: Spec, stage: Stage, tiling: Tiling, info: ModelInfo) -> int:
    """Bytes of pooled tokens that each rank says at a stage's first step; later perhaps none."""
    said = tokens_cross(spec, stage, tiling, stage.first_step)
    return max_sources_per_rank(tiling) * info.token_width * _BYTES if said else 0


def view_bytes(spec: Spec, stage: Stage, tiling: Tiling, info: ModelInfo) -> int:
    """Bytes that each rank says for dilated views at a stage's first step; later perhaps none."""
    dilation, first, world = stage.dilation, stage.first_step, tiling.world_size
    if dilation is None or not views_taken(spec.dilated, stage, first):
        return 0
    numbers = dilation.most_views(world) * dilation.height * dilation.width
    if canvas_crosses(spec, stage, first):
        numbers += tiling.longest_region
    return numbers * info.latent_channels * _BYTES
