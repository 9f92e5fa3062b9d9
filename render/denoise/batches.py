"""The model calls of one rank at one step: its evaluations in batches of a fixed size, in the order of need.

The batch size belongs to the stage, and a batch is filled up with copies, never shortened: kernels round
differently at other batch shapes, and a rank's last batch depends on the number of ranks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from render.guidance.hook import StageContext, Step
from render.models.adapter import WindowPlace
from render.models.model_call import Evaluation, ModelCall
from render.plan.geometry import Layer
from render.plan.tiling import Tiling
from render.rect import Rect

Batch = list[Evaluation]


@dataclass(frozen=True, kw_only=True)
class Batches:
    """A rank's batches at one step. Each is of one layer, whose windows have one shape and one prompt."""

    first: list[Batch]
    """Those whose results other ranks need; they run before the all-gather starts."""
    rest: list[Batch]
    """The others; they run while the all-gather is in flight."""


def make_batches(
    tiling: Tiling,
    rank: int,
    offset: tuple[int, int],
    size: int,
    must_run_first: Callable[[Evaluation], bool],
) -> Batches:
    """The evaluations of a rank at one offset of the grid, in batches of up to `size`.

    `must_run_first` says which evaluations other ranks need beside those of border windows.
    """
    windows = tiling.windows_of(rank)
    is_border = dict(zip(windows, tiling.border_windows(rank, offset), strict=True))
    batches = Batches(first=[], rest=[])
    evaluations = tiling.evaluations_of(rank)
    for layer in range(len(tiling.layers)):
        needed: Batch = []
        inner: Batch = []
        for window, condition in evaluations:
            if window[0] == layer:
                evaluation = Evaluation((window, condition), tiling.window(window, offset))
                first = is_border[window] or must_run_first(evaluation)
                (needed if first else inner).append(evaluation)
        ordered = needed + inner
        chunks = [ordered[start : start + size] for start in range(0, len(ordered), size)]
        split = -(-len(needed) // size)
        batches.first.extend(chunks[:split])
        batches.rest.extend(chunks[split:])
    return batches


def make_call(context: StageContext, batch: Batch, step: Step) -> ModelCall:
    """The model call of a batch, filled up to the stage's batch size."""
    filled = batch + [batch[-1]] * (context.stage.batch - len(batch))
    layer = context.tiling.layers[batch[0].layer]
    windows = [evaluation.window for evaluation in filled]
    x = torch.stack([context.cut(step.x, window) for window in windows])
    return ModelCall(
        latents=x * step.level.input_scale,
        timestep=step.timestep,
        text=context.texts[layer.text],
        places=[_place(window, layer, context.adapter.info.scale_factor) for window in windows],
        conditions=[evaluation.condition for evaluation in filled],
        guidance_scale=context.guidance_scale,
        evaluations=batch,
    )


def _place(window: Rect, layer: Layer, pixel: int) -> WindowPlace:
    """Where a window lies in its layer's image. To the model, a region prompt is an image of its own."""
    return WindowPlace(
        image_height=layer.grid.height * pixel,
        image_width=layer.grid.width * pixel,
        pixel_y=layer.grid.rows.conditioning_start(window.y - layer.y) * pixel,
        pixel_x=layer.grid.cols.conditioning_start(window.x - layer.x) * pixel,
        height=window.height * pixel,
        width=window.width * pixel,
    )
