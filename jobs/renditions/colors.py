"""Colors as people write them."""

from __future__ import annotations

from PIL import ImageColor

from render.errors import BadInput

Color = tuple[int, int, int]
"""Red, green and blue in sRGB, 0 to 255."""


def parse_color(text: str) -> Color:
    """`white`, `#f5f5f5` or `rgb(230, 230, 230)`. Raises `BadInput`."""
    try:
        return ImageColor.getrgb(text.strip())[:3]
    except ValueError as exc:
        raise BadInput("background", text, "is not a color; use e.g. white or #f5f5f5") from exc
