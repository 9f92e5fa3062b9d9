"""What stands behind and under the studio's products."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from render.builtin.textures import Field, fractal, speckle, value_noise, visible

PLAIN_BACKDROPS: dict[str, float] = {"white": 0.965, "black": 0.075}
"""Backdrops that the UNet was not trained on: sweeps like the studio's, and how bright they are."""


def _mix(low: tuple[float, ...], high: tuple[float, ...], amount: Field) -> NDArray[np.floating[Any]]:
    a, b = np.array(low, np.float32), np.array(high, np.float32)
    return a + (b - a) * np.clip(amount, 0, 1)[..., None]


def backdrop(
    name: str,
    seed: int,
    light: float,
    warm: float,
    horizon: float,
    x: Field,
    y: Field,
    pixel: float,
) -> NDArray[np.floating[Any]]:
    """[h, w, 3] colors of the backdrop of that name at places in units of the image's short side.

    `light` is where the key light is, `warm` its tint, and `horizon` where a table ends.
    """
    seed = seed % 10_007
    glow = np.exp(-(((x + 0.25 * light) / 0.8) ** 2) - ((y + 0.1) / 0.7) ** 2)
    if name == "studio":
        tone = 0.70 + 0.20 * glow - 0.10 * np.clip((y + 0.1) * 1.2, -0.6, 0.7)
        return np.stack([tone + warm, tone, tone - warm * 0.7], axis=-1)
    if name in PLAIN_BACKDROPS:
        tone = PLAIN_BACKDROPS[name] * (0.93 + 0.07 * glow)
        return np.stack([tone, tone, tone], axis=-1)
    edge = np.clip((y - horizon) / pixel + 0.5, 0, 1)
    depth = np.maximum(y - horizon, 0.0) + 0.22
    gx, gz = x / depth, 1.0 / depth
    near = pixel / depth * np.maximum(1.0, 1.0 / depth * 0.8)
    if name == "wood":
        wall = _mix((0.70, 0.66, 0.60), (0.86, 0.83, 0.78), glow)
        plank = np.floor(gz * 1.6)
        grain = fractal(gx * 1.1 + plank * 7.3, gz * 12.0, seed, 1.6, 9, near * 9, 0.70)
        growth = np.sin((gz * 9 + 0.9 * value_noise(gx * 0.9 + plank * 3.1, gz * 1.7, seed + 3)) * 9)
        growth = growth * visible(14.0, near)
        tone = 0.5 + 0.28 * grain + 0.16 * growth
        floor = _mix((0.36, 0.20, 0.10), (0.72, 0.48, 0.28), tone)
        gap = np.abs((gz * 1.6) % 1.0 - 0.5)
        floor = floor * (1 - 0.55 * np.clip((gap - 0.485) / (0.012 + near * 1.6), 0, 1))[..., None]
    elif name == "marble":
        wall = _mix((0.74, 0.76, 0.79), (0.90, 0.91, 0.93), glow)
        warp = fractal(gx, gz, seed, 0.9, 5, near)
        vein = np.abs(value_noise(gx * 1.3 + warp * 0.9, gz * 1.3 - warp * 0.6, seed + 9))
        fine = np.abs(value_noise(gx * 4.1 + warp * 1.7, gz * 4.1 + warp, seed + 11))
        cloud = fractal(gx, gz, seed + 20, 2.0, 9, near, 0.6)
        dark = 0.62 * np.exp(-vein * 16) + 0.30 * np.exp(-fine * 14) * visible(6.0, near)
        tone = 0.95 - dark + 0.06 * cloud
        floor = _mix((0.40, 0.42, 0.46), (0.95, 0.95, 0.95), tone)
    else:
        wall = _mix((0.32, 0.33, 0.34), (0.50, 0.50, 0.50), glow)
        wall = wall * (1 + 0.05 * fractal(x, y, seed + 40, 5.0, 8, pixel, 0.65))[..., None]
        cloud = fractal(gx, gz, seed + 30, 1.5, 9, near, 0.68)
        pits = np.maximum(
            speckle(gx, gz, seed + 33, 17.0, 0.16, near),
            0.7 * speckle(gx + gz, gz - gx, seed + 36, 41.0, 0.16, near),
        )
        tone = 0.52 + 0.16 * cloud - 0.35 * pits
        floor = _mix((0.22, 0.22, 0.23), (0.66, 0.65, 0.63), tone)
    lit = (0.86 + 0.22 * np.exp(-(((x + 0.3 * light) / 0.55) ** 2) - ((y - 0.15) / 0.4) ** 2))[..., None]
    return wall * (1 - edge[..., None]) + floor * lit * edge[..., None]
