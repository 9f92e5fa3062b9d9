"""The weights of predictions in the fused sum: classifier-free guidance and regional prompts.

Both are weighted sums, so the predictions of one window may come from different ranks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from render.canvas import cut_out
from render.plan.region_prompts import prompt_weights
from render.plan.stages import Stage
from render.plan.topology import topology_of
from render.rect import Rect
from render.spec import Spec


def condition_weights(conditions: int, guidance_scale: float) -> tuple[float, ...]:
    """The weight of each condition's prediction: 1 - g without the prompt and g with it.

    Classifier-free guidance (Ho and Salimans 2022). One condition has the weight 1.
    """
    return (1.0,) if conditions == 1 else (1.0 - guidance_scale, guidance_scale)


def stage_prompt_weights(spec: Spec, stage: Stage, area: Rect) -> Tensor | None:
    """[layers, area.height, area.width]: the weight of each prompt's prediction, on the host.

    The first layer is the image's own prompt; then come the region prompts that the stage shows. None where
    there are none.
    """
    if not stage.patches:
        return None
    topology = topology_of(stage.grid)
    regions = [(spec.boxes[patch.text - 1], patch.area) for patch in stage.patches]
    weights = torch.from_numpy(prompt_weights(regions, topology))
    return cut_out(weights, topology.whole, area, topology).clone()
