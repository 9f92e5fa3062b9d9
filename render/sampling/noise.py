"""Noise as a function of (seed, stage, step, absolute position) and of nothing else.

Philox4x32-10, the counter-based generator of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3"
(SC 2011): any rank computes any latent's noise without drawing the values before it. The noise is drawn on
the host in numpy, so that every kind of device starts from the same bits.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from render.plan.geometry import Flat, Rect
from render.plan.stages import Stage
from render.plan.topology import Topology, topology_of

INITIAL = 0xFFFF_FFFF
"""The `step` of the noise that a stage starts from. A sampler's own noise uses the index of its step."""

_CHUNK = 1 << 16
"""Values drawn at a time: the 64-bit counters of a large canvas would need more memory than the canvas."""
_MULTIPLY = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_KEY_STEP = (0x9E3779B9, 0xBB67AE85)
_LOW = np.uint64(0xFFFF_FFFF)
_SHIFT = np.uint64(32)


def stage_noise(stage: Stage, seed: int, step: int, channels: int, area: Rect) -> Tensor:
    """A stage's noise in an area of its canvas: [channels, area.height, area.width] float32, on the host.

    Latents of one class of a tile set (`render.plan.latent_classes`) have the same noise: that of the
    class's first place.
    """
    topology = topology_of(stage.grid)
    noise = normal(seed, stage.index, step, channels, area, topology)
    classes = stage.latent_classes
    if classes is not None:
        places, numbers = classes.inside(topology, area)
        shared = normal_at(seed, stage.index, step, channels, classes.firsts, topology)
        noise.reshape(channels, -1)[:, places] = shared[:, numbers]
    return torch.from_numpy(noise)


def normal(
    seed: int, stage: int, step: int, channels: int, box: Rect, canvas: Topology | None = None
) -> NDArray[np.float32]:
    """Standard normal noise for a rectangle of the canvas: [channels, box.height, box.width].

    The value at (channel, y, x) does not depend on the rectangle. On a canvas that wraps, y and x are taken
    modulo the canvas.
    """
    topology = canvas or Topology(height=0, width=0)
    noise = np.empty((channels, box.height, box.width), np.float32)
    rows = max(1, _CHUNK // max(1, box.width * channels))
    for top in range(0, box.height, rows):
        strip = Rect(y=box.y + top, x=box.x, height=min(rows, box.height - top), width=box.width)
        ys, xs = topology.ys(strip), topology.xs(strip)
        noise[:, top : top + rows] = _strip(seed, stage, step, channels, ys, xs)
    return noise


def normal_at(
    seed: int, stage: int, step: int, channels: int, places: Flat, canvas: Topology
) -> NDArray[np.float32]:
    """The same noise at flat indices of the canvas: [channels, len(places)]."""
    return _points(seed, stage, step, channels, *np.divmod(places, canvas.width))


def _strip(seed: int, stage: int, step: int, channels: int, ys: Flat, xs: Flat) -> NDArray[np.float32]:
    y, x = np.meshgrid(ys, xs, indexing="ij")
    return _points(seed, stage, step, channels, y.ravel(), x.ravel()).reshape(channels, len(ys), len(xs))


def _points(seed: int, stage: int, step: int, channels: int, y: Flat, x: Flat) -> NDArray[np.float32]:
    quads = -(-channels // 4)
    quad = np.repeat(np.arange(quads), len(x))
    counter = (np.tile(x, quads), np.tile(y, quads), quad + (stage << 16), np.full(len(quad), step))
    words = _philox([word.astype(np.uint64) for word in counter], seed)
    values = np.stack([*_box_muller(words[0], words[1]), *_box_muller(words[2], words[3])])
    # [4, quads, points] -> [quads * 4, points]
    values = values.reshape(4, quads, len(x)).swapaxes(0, 1)
    return values.reshape(quads * 4, len(x))[:channels]


def _philox(counter: list[NDArray[np.uint64]], seed: int) -> list[NDArray[np.uint64]]:
    key_low, key_high = seed & 0xFFFF_FFFF, (seed >> 32) & 0xFFFF_FFFF
    for _ in range(10):
        first, second = counter[0] * _MULTIPLY[0], counter[2] * _MULTIPLY[1]
        counter = [
            (second >> _SHIFT) ^ counter[1] ^ np.uint64(key_low),
            second & _LOW,
            (first >> _SHIFT) ^ counter[3] ^ np.uint64(key_high),
            first & _LOW,
        ]
        key_low, key_high = (key_low + _KEY_STEP[0]) & 0xFFFF_FFFF, (key_high + _KEY_STEP[1]) & 0xFFFF_FFFF
    return counter


def _box_muller(
    one: NDArray[np.uint64], two: NDArray[np.uint64]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    # In float64, so that a last-bit difference between two libraries' logarithms is rounded away.
    radius = np.sqrt(-2.0 * np.log((one.astype(np.float64) + 0.5) / 2.0**32))
    angle = two.astype(np.float64) * (2.0 * np.pi / 2.0**32)
    return (radius * np.cos(angle)).astype(np.float32), (radius * np.sin(angle)).astype(np.float32)
