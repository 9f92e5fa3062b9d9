"""Region prompts on a canvas: the area of each, and its weight at every latent.

A region prompt has windows of its own, whose coordinates are relative to its region, so that its prompt is
composed inside the region (regional prompting as in MultiDiffusion, Bar-Tal et al. 2023). Where regions and
the image's own prompt overlap, their predictions are mixed by weights that fade smoothly and sum to one at
every latent.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from render.plan.geometry import Rect
from render.plan.topology import Topology
from render.spec.region_prompt import RegionPrompt

Weights = NDArray[np.float32]


def region_area(box: RegionPrompt, height: int, width: int) -> Rect:
    """The region of a prompt on a canvas of `height` x `width` latents."""
    top, left = round(box.y * height), round(box.x * width)
    bottom, right = round((box.y + box.height) * height), round((box.x + box.width) * width)
    return Rect(y=top, x=left, height=max(1, bottom - top), width=max(1, right - left))


def prompt_weights(boxes: Sequence[tuple[RegionPrompt, Rect]], canvas: Topology) -> Weights:
    """[1 + regions, h, w] weights of the image's own prompt and of each region prompt; they sum to one."""
    weights = np.zeros((1 + len(boxes), canvas.height, canvas.width), np.float32)
    for number, (box, area) in enumerate(boxes, start=1):
        soft = max(1.0, box.feather * min(area.height, area.width))
        rows = _fade(area.y, area.height, canvas.height, soft, canvas.wrap_y)
        cols = _fade(area.x, area.width, canvas.width, soft, canvas.wrap_x)
        weights[number][area.slices] = box.weight * rows[:, None] * cols[None, :]
    total = weights.sum(axis=0)
    weights[0] = np.maximum(0.0, 1.0 - total)
    weights /= np.maximum(1.0, total)
    return weights


def _fade(start: int, length: int, canvas: int, soft: float, wraps: bool) -> Weights:
    """[length] a raised cosine towards both ends of a region's side.

    It does not fade towards an edge of the canvas, unless the canvas wraps and the region does not span it.
    """
    inside = np.arange(length) + 0.5
    around = wraps and length < canvas
    before = inside if around or start > 0 else np.full(length, np.inf)
    behind = inside[::-1] if around or start + length < canvas else np.full(length, np.inf)
    near = np.minimum(1.0, np.minimum(before, behind) / soft)
    faded: Weights = (np.sin(np.pi / 2 * near) ** 2).astype(np.float32)
    return faded
