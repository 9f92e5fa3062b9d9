"""The layers of a stage: what of the canvas each prompt is asked for, and how much it counts there.

A box is a picture within the picture: it has windows of its own, and its model is told its size and its
windows' places in it, so that its prompt is composed inside the box. Where boxes and the image's own prompt
meet, their predictions are mixed by shares that fade smoothly and sum to one at every latent.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from render.plan.geometry import Rect
from render.plan.topology import Topology
from render.spec.region_prompt import RegionPrompt

Shares = NDArray[np.float32]


def region_area(box: RegionPrompt, height: int, width: int) -> Rect:
    """The box on a canvas, in latents."""
    top, left = round(box.y * height), round(box.x * width)
    bottom, right = round((box.y + box.height) * height), round((box.x + box.width) * width)
    return Rect(y=top, x=left, height=max(1, bottom - top), width=max(1, right - left))


def prompt_weights(boxes: Sequence[tuple[RegionPrompt, Rect]], canvas: Topology) -> Shares:
    """[1 + boxes, h, w] of the canvas: what the image's own prompt and each box count; they sum to one."""
    shares = np.zeros((1 + len(boxes), canvas.height, canvas.width), np.float32)
    for number, (box, area) in enumerate(boxes, start=1):
        soft = max(1.0, box.feather * min(area.height, area.width))
        rows = _fading(area.y, area.height, canvas.height, soft, canvas.wrap_y)
        cols = _fading(area.x, area.width, canvas.width, soft, canvas.wrap_x)
        shares[number][area.slices] = box.weight * rows[:, None] * cols[None, :]
    total = shares.sum(axis=0)
    shares[0] = np.maximum(0.0, 1.0 - total)
    shares /= np.maximum(1.0, total)
    return shares


def _fading(start: int, length: int, canvas: int, soft: float, wraps: bool) -> Shares:
    """A raised cosine to both ends of a box's side, but not to an end that is the canvas's own: there is
    nothing behind it, unless the canvas wraps and the box does not go all the way around."""
    inside = np.arange(length) + 0.5
    around = wraps and length < canvas
    before = inside if around or start > 0 else np.full(length, np.inf)
    behind = inside[::-1] if around or start + length < canvas else np.full(length, np.inf)
    near = np.minimum(1.0, np.minimum(before, behind) / soft)
    faded: Shares = (np.sin(np.pi / 2 * near) ** 2).astype(np.float32)
    return faded
