"""Pixels on their way into files: 8 or 16 bits, with straight transparency where it is kept.

What is measured and shown (seams, previews, the range of values) is 8 bits without transparency, whatever the
files hold.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from render.rect import Rect
from render.spec.source_image import SourceImage

Pixels = NDArray[np.unsignedinteger[Any]]
"""[h, w, 3] sRGB or [h, w, 4] with transparency, uint8 or uint16."""


def full_scale(pixels: Pixels) -> int:
    """White, and fully opaque: 255 or 65535."""
    return int(np.iinfo(pixels.dtype).max)


def narrowed(pixels: Pixels) -> NDArray[np.uint8]:
    """In 8 bits, rounded to the nearest."""
    if pixels.dtype == np.uint8:
        return pixels.view(np.uint8)
    return ((pixels.astype(np.uint32) + 128) // 257).astype(np.uint8)


def shown(pixels: Pixels) -> NDArray[np.uint8]:
    """[h, w, 3] of 8 bits."""
    return narrowed(pixels[..., :3])


def halved(pixels: Pixels) -> Pixels:
    """One level down: 2x2 box `(a + b + c + d + 2) >> 2`, odd edges repeated, sizes rounded up.

    Colors of transparent images count by their opacity, so that none comes from what is not seen.
    """
    height, width = pixels.shape[:2]
    even = np.pad(pixels, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    means = (_summed(even.astype(np.uint16 if even.dtype == np.uint8 else np.uint32)) + 2) >> 2
    if even.shape[2] == 4:
        opacity = even[..., 3:].astype(np.uint64)
        total, colors = _summed(opacity), _summed(even[..., :3] * opacity)
        weighted = (colors + total // 2) // np.maximum(total, 1)
        means[..., :3] = np.where(total == 0, means[..., :3], weighted)
    return means.astype(pixels.dtype)


def with_alpha(source: SourceImage, block: Rect, pixels: Pixels) -> Pixels:
    """The pixels [block.height, block.width, 3] of a block with the transparency of the init image or its
    mask. What is kept in part has the product's own color, since its edge is mixed when the file is shown."""
    if source.mask is not None:
        kept = source.kept(block, source.width, source.height)
        pixels = np.where(kept[..., 3:] > 0, kept[..., :3], pixels)
    return np.concatenate([pixels, source.alpha(block)], axis=2)


def _summed(values: NDArray[Any]) -> NDArray[Any]:
    """The sums of 2x2 values, [h, w, bands] -> [h / 2, w / 2, bands]."""
    rows = values[0::2] + values[1::2]
    return np.asarray(rows[:, 0::2] + rows[:, 1::2])
