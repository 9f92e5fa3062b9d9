"""Fusion of overlapping windows into one prediction, exact whatever the order of the sum.

Floating-point sums depend on their order, and the order would depend on the ranks. So every evaluation's
weighted prediction is rounded once to a 32-bit fixed-point number, and integers are added. The weights of
a latent sum to one over the windows (MultiDiffusion, Bar-Tal et al. 2023, with cosine weights).

Classifier-free guidance (Ho and Salimans 2022) is a weighted sum too, of the predictions without and with
the prompt, weights 1 - g and g; so its two halves may come from different ranks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_LIMIT = 31.5
"""Predictions are held within this: noise and velocity are of unit variance, and a working model's latents
stay far below it. 31.5 * 2^26 leaves room below 2^31 for the terms' rounding."""
_BITS = 26


def pass_weights(passes: int, guidance_scale: float) -> tuple[float, ...]:
    """What each pass of a window counts."""
    return (1.0,) if passes == 1 else (1.0 - guidance_scale, guidance_scale)


@dataclass(frozen=True)
class FixedPoint:
    """Numbers of 32 bits, `fraction_bits` of them behind the point.

    26 without guidance: finer than float32 for predictions above a quarter. Each doubling of what the
    passes' weights can add up to costs one bit, 3 of them at a guidance scale of 4.
    """

    fraction_bits: int

    @classmethod
    def for_weights(cls, weights: Sequence[float]) -> FixedPoint:
        return cls(_BITS - math.ceil(math.log2(sum(abs(weight) for weight in weights))))

    def encode(self, prediction: Tensor, weight: Tensor) -> Tensor:
        """float32 prediction [C, h, w] times weight [h, w] as int32.

        Integers cannot carry a NaN; the loop's own check finds it before (see `loop`).
        """
        scale = float(2**self.fraction_bits)
        term: Tensor = (prediction.clamp(-_LIMIT, _LIMIT) * weight * scale).round().to(torch.int32)
        return term

    def decode(self, total: Tensor) -> Tensor:
        """Sums -> float32 prediction."""
        return total.to(torch.float32) * 2.0**-self.fraction_bits
