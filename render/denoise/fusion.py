"""Fusion of overlapping windows into one prediction. The sum is exact, so its order does not matter.

Floating-point sums depend on their order, and the order would depend on the ranks. So every evaluation's
weighted prediction is rounded once to a 32-bit fixed-point number, and integers are added. The blend weights
of a latent sum to one over its windows (MultiDiffusion, Bar-Tal et al. 2023, with cosine weights). The
weights of conditions and prompts (`render.guidance.prediction_weights`) multiply them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from render.guidance.hook import StageContext
from render.models.model_call import Evaluation

_LIMIT = 31.5
"""Predictions are clamped to this range. Noise and velocity are of unit variance, and a working model's
latents stay far below it. 31.5 * 2^26 leaves room below 2^31 for the rounding of the terms."""
_BITS = 26


@dataclass(frozen=True)
class FixedPoint:
    """Numbers of 32 bits, `fraction_bits` of them after the binary point.

    There are 26 without guidance, which is finer than float32 for predictions above a quarter. Each doubling
    of the largest sum of the conditions' weights costs one bit: 3 of them at a guidance scale of 4.
    """

    fraction_bits: int

    @classmethod
    def for_weights(cls, weights: Sequence[float]) -> FixedPoint:
        """The format in which predictions with these weights can be summed without overflow."""
        return cls(_BITS - math.ceil(math.log2(sum(abs(weight) for weight in weights))))

    def encode(self, prediction: Tensor, weight: Tensor) -> Tensor:
        """float32 prediction [C, h, w] times weight [h, w] as int32.

        Integers cannot represent a NaN; the step loop checks for it before.
        """
        scale = float(2**self.fraction_bits)
        term: Tensor = (prediction.clamp(-_LIMIT, _LIMIT) * weight * scale).round().to(torch.int32)
        return term

    def decode(self, total: Tensor) -> Tensor:
        """Sums -> float32 prediction."""
        return total.to(torch.float32) * 2.0**-self.fraction_bits


def add_predictions(
    sums: Tensor,
    context: StageContext,
    fixed: FixedPoint,
    evaluations: Sequence[Evaluation],
    predictions: Tensor,
    offset: tuple[int, int],
) -> None:
    """Add the predictions [B, C, h, w] of one layer's windows to `sums`, [C, area.height, area.width]
    int32."""
    surface, area = context.tiling.surface, context.area
    layer = context.tiling.layers[evaluations[0].layer]
    (offset_y, offset_x), axes = layer.offset(offset), layer.grid
    rows = dict(zip(axes.rows.starts(offset_y), axes.rows.weights(offset_y), strict=True))
    cols = dict(zip(axes.cols.starts(offset_x), axes.cols.weights(offset_x), strict=True))
    for evaluation, prediction in zip(evaluations, predictions, strict=True):
        window = evaluation.window
        blend = torch.from_numpy(rows[window.y - layer.y][:, None] * cols[window.x - layer.x][None, :])
        weight = (blend * context.condition_weights[evaluation.condition]).to(prediction.device)
        if context.prompt_weights is not None:
            weight = weight * context.cut(context.prompt_weights, window)[evaluation.layer]
        terms = fixed.encode(prediction, weight)
        for there, here in surface.intersect(window, area):
            sums[:, *here] += terms[:, *there]
