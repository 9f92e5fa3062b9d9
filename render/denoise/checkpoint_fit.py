"""Whether a checkpoint is one of the image that is rendered: its checksum says that it is whole, not that."""

from __future__ import annotations

from render.denoise.checkpoint import Checkpoint
from render.guidance.hooks import needs_reference
from render.plan.plan import Plan
from render.sampling.registry import find_sampler


def misfit(checkpoint: Checkpoint, plan: Plan) -> str | None:
    """Why a checkpoint cannot be of this plan, in a few words; None if it can."""
    canvas = checkpoint.canvas
    if checkpoint.stage >= len(plan.stages):
        return f"it is of stage {checkpoint.stage} of {len(plan.stages)}"
    planned = plan.stages[checkpoint.stage]
    stage = planned.stage
    if not stage.first_step <= canvas.step <= stage.steps:
        return f"it is of step {canvas.step}, outside {stage.first_step} to {stage.steps}"
    if canvas.history > find_sampler(plan.spec.sampler).history:
        return f"it has {canvas.history} planes of history, which the sampler does not"
    starts_from_image = stage.index > 0 or plan.spec.init is not None
    if canvas.has_reference != (starts_from_image and needs_reference(plan.spec, stage)):
        return "it has a reference where the spec has none, or none where it has one"
    planes = 1 + canvas.history + 2 * canvas.has_reference
    shape = (planes, planned.channels, stage.grid.height, stage.grid.width)
    if tuple(canvas.planes.shape) != shape:
        return f"its canvas is {tuple(canvas.planes.shape)} instead of {shape}"
    return None
