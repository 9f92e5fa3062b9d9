"""The promise that kept pixels come back to the byte, checked on every block before it is published."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from render.errors import RenderFailed
from render.output.pixels import Pixels, full_scale
from render.rect import Rect
from render.spec.image_pixels import vips
from render.spec.source_image import SourceImage

_STRIP = 1024
"""Rows that are read at a time."""


def count_kept(source: SourceImage | None, block: Rect, pixels: Pixels) -> int:
    """The pixels of a block that are kept in full; `pixels` is [block.height, block.width, 3 or 4].

    Raises `RenderFailed` when one of them is not the source's.
    """
    if source is None:
        return 0
    found = 0
    for top in range(0, block.height, _STRIP):
        strip = Rect(y=block.y + top, x=block.x, height=min(_STRIP, block.height - top), width=block.width)
        kept = source.kept(strip, source.width, source.height)
        full = kept[..., 3] == full_scale(kept)
        wrong = full & (kept[..., :3] != pixels[top : top + strip.height, :, :3]).any(axis=2)
        if wrong.any():
            y, x = np.argwhere(wrong)[0]
            raise RenderFailed(
                f"a kept pixel of the init image (x {block.x + x}, y {strip.y + y}) came out changed; "
                "nothing was published; please report this"
            )
        found += int(full.sum())
    return found


def check_file(data: bytes, pixels: Pixels) -> None:
    """Raise `RenderFailed` unless an encoded tile decodes to its pixels again."""
    if not np.array_equal(_decoded(data, pixels), pixels):
        raise RenderFailed("a tile with kept pixels was not encoded to the byte; nothing was published")


def _decoded(data: bytes, like: Pixels) -> Pixels:
    if like.dtype == np.uint16:
        return np.frombuffer(vips().Image.new_from_buffer(data, "").write_to_memory(), np.uint16).reshape(
            like.shape
        )
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGBA" if like.shape[2] == 4 else "RGB"))
