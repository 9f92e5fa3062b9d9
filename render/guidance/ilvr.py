"""A stage keeps the colours and coarse shapes of the one below: ILVR (Choi et al. 2021) on what it enlarges.

A window of a large picture sees too little of it to know a highlight from a hole. So at each step the low
frequencies of what it makes of its latents (of x0) are replaced by those of the enlarged picture below, which
has decided them; what is finer is the window's own.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from render.sampling.samplers import denoised_slope, to_denoised

LOW_PASS = 1.0
"""Spread of the Gaussian that parts low from high, in latents; a stage twice as large adds what is finer."""


def apply_ilvr(
    prediction: Tensor, x: Tensor, anchor: Tensor, sigma: float, prediction_type: str, share: float
) -> Tensor:
    """The prediction [B, C, h, w] for windows whose latents are `x`, with the low frequencies of x0 drawn by
    `share` (0 to 1) to those of `anchor`. Each window by itself, so ranks agree."""
    missing = anchor - to_denoised(prediction, x, sigma, prediction_type)
    down, along = (low_pass(length, LOW_PASS).to(x.device) for length in x.shape[2:])
    low = down @ missing @ along.T
    return prediction + low * (share / denoised_slope(sigma, prediction_type))


@lru_cache(maxsize=64)
def low_pass(length: int, spread: float) -> Tensor:
    """[length, length] weights of a Gaussian that repeats the values at both ends."""
    reach = round(3 * spread)
    taps = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / spread) ** 2)
    weights = torch.zeros((length, length))
    for away, tap in zip(range(-reach, reach + 1), taps / taps.sum(), strict=True):
        at = torch.arange(length)
        weights[at, (at + away).clamp(0, length - 1)] += tap
    return weights
