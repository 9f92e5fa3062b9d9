"""Hash-based noise that is the same at any resolution and has no detail finer than a pixel."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.floating[Any]]
"""[h, w] over the pixels of a crop."""


def _hash(ix: NDArray[np.int32], iy: NDArray[np.int32], seed: int) -> Field:
    """Uniform numbers in [0, 1) for lattice points (an integer mix after Wang and Jenkins)."""
    word = ix.astype(np.uint32) * np.uint32(0x9E3779B1) ^ iy.astype(np.uint32) * np.uint32(0x85EBCA77)
    word ^= np.uint32(seed * 0x27D4EB2F & 0xFFFFFFFF)
    word = (word ^ (word >> np.uint32(15))) * np.uint32(0x2C1B3C6D)
    word = (word ^ (word >> np.uint32(12))) * np.uint32(0x297A2D39)
    return ((word >> np.uint32(8)).astype(np.float32)) * np.float32(1.0 / (1 << 24))


def value_noise(x: Field, y: Field, seed: int) -> Field:
    """Smooth noise in [-1, 1] with one cell per unit."""
    fx, fy = np.floor(x), np.floor(y)
    ix, iy = fx.astype(np.int32), fy.astype(np.int32)
    ax, ay = x - fx, y - fy
    ax, ay = ax * ax * (3 - 2 * ax), ay * ay * (3 - 2 * ay)
    low = _hash(ix, iy, seed) * (1 - ax) + _hash(ix + 1, iy, seed) * ax
    high = _hash(ix, iy + 1, seed) * (1 - ax) + _hash(ix + 1, iy + 1, seed) * ax
    return ((low * (1 - ay) + high * ay) * 2 - 1).astype(np.float32)


def visible(frequency: float, footprint: Field | float) -> Field | float:
    """How much of a pattern of `frequency` cycles per unit a pixel of `footprint` units may show.

    Falls from one at six pixels per cycle to zero at three, like a lens: a pattern drawn up to the
    sampling limit looks like noise, and an autoencoder cannot reconstruct it.
    """
    return np.clip(2.0 - 6.0 * frequency * footprint, 0.0, 1.0)


def fractal(
    x: Field, y: Field, seed: int, frequency: float, octaves: int, footprint: Field | float, gain: float = 0.5
) -> Field:
    """Sum of octaves from `frequency` up, each fading out before it would alias."""
    total, amplitude = np.zeros_like(x), 1.0
    for octave in range(octaves):
        rate = frequency * 2.0**octave
        visibility = visible(rate, footprint)
        if np.max(visibility) > 0:
            total += np.float32(amplitude) * visibility * value_noise(x * rate, y * rate, seed + octave)
        amplitude *= gain
    return total


def speckle(x: Field, y: Field, seed: int, frequency: float, share: float, footprint: Field | float) -> Field:
    """Round dots, one possible per cell, in `share` of the cells: coverage in [0, 1]."""
    visibility = visible(frequency * 0.9, footprint)
    if np.max(visibility) <= 0:
        return np.full_like(x, share * 0.2)
    sx, sy = x * frequency, y * frequency
    fx, fy = np.floor(sx), np.floor(sy)
    ix, iy = fx.astype(np.int32), fy.astype(np.int32)
    present = _hash(ix, iy, seed) < share
    size = 0.12 + 0.26 * _hash(ix, iy, seed + 1)
    cx, cy = 0.4 + 0.2 * _hash(ix, iy, seed + 2), 0.4 + 0.2 * _hash(ix, iy, seed + 3)
    distance = np.hypot(sx - fx - cx, sy - fy - cy)
    edge = np.maximum(footprint * frequency, 0.06)
    dots = present * np.clip((size - distance) / edge + 0.5, 0, 1)
    return (dots * visibility + (1 - visibility) * share * 0.2).astype(np.float32)
