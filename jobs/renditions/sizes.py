"""Sizes as people write them: `2000x2000` and `2MB`."""

from __future__ import annotations

import re

from render.errors import BadInput

_BYTES = re.compile(r"(\d+(?:\.\d+)?)\s*(B|KB|MB|KIB|MIB)?", re.IGNORECASE)
_UNITS = {"": 1, "B": 1, "KB": 1000, "MB": 1000**2, "KIB": 1024, "MIB": 1024**2}


def parse_bytes(text: str) -> int:
    """`500kB` (1,000 bytes each), `2MB`, `2MiB` or a number of bytes. Raises `BadInput`."""
    match = _BYTES.fullmatch(text.strip())
    count = 0 if match is None else int(float(match[1]) * _UNITS[(match[2] or "").upper()])
    if count < 1:
        raise BadInput("max_bytes", text, "is not a size; use e.g. 500kB or 2MB")
    return count


def parse_pixels(text: str) -> tuple[int, int]:
    """`2000x2000` or `2000` for a square: (width, height). Raises `BadInput`."""
    match = re.fullmatch(r"(\d{1,5})(?:\s*[xX×]\s*(\d{1,5}))?", text.strip())
    width, height = (0, 0) if match is None else (int(match[1]), int(match[2] or match[1]))
    if not (1 <= width <= 65_500 and 1 <= height <= 65_500):
        raise BadInput("size", text, "is not WIDTHxHEIGHT in pixels, up to 65500; use e.g. 2000x2000")
    return width, height
