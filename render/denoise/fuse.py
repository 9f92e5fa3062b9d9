"""Fusion of overlapping windows into one prediction, exact whatever the order of the sum.

Floating-point sums depend on their order, and the order would depend on the ranks. So every window's
weighted prediction is rounded once to a 32-bit fixed-point number, and integers are added. The weights of
a latent sum to one (MultiDiffusion, Bar-Tal et al. 2023, with cosine weights), so a sum stays in the range
of its terms: +-126 at a resolution of 2^-24, finer than float32 for predictions above one.
"""

from __future__ import annotations

import torch
from torch import Tensor

FRACTION_BITS = 24
_SCALE = float(2**FRACTION_BITS)
_LIMIT = 126.0


def to_fixed(prediction: Tensor, weight: Tensor) -> Tensor:
    """float32 prediction [C, h, w] times weight [h, w] as fixed-point int32.

    A NaN becomes the largest negative number of all, far out of any prediction's range: integers cannot
    carry it, and the loop's own check finds it before (see `loop`).
    """
    return (prediction.clamp(-_LIMIT, _LIMIT) * weight * _SCALE).round().to(torch.int32)


def from_fixed(total: Tensor) -> Tensor:
    """Fixed-point sums -> float32 prediction."""
    return total.to(torch.float32) * (1.0 / _SCALE)
