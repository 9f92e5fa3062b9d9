"""What an image file may be: checked from its header, before a pixel is decoded.

A header costs nothing to read, and it decides how much memory decoding needs. So whatever cannot be shown
truly (floating point without a meaning, CMYK without a profile, one page of several), or would fill the
memory, is refused here with one sentence.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from render.errors import BadInput
from render.spec.image_kinds import png_problem, tiff_problem
from render.spec.image_pixels import profile_problem, profile_space

LARGEST_SIDE = 131_072
LARGEST_AREA = 2**32
"""Pixels; above it an image is more likely a mistake, or a decompression bomb, than a photograph."""
KINDS = "png, jpeg, webp, tiff or avif"
_LOADERS = ("pngload", "jpegload", "uhdrload", "webpload", "tiffload", "heifload")
_FRAMES = ("webpload",)
_SUSPICIOUS_AREA = 2**26
_MOST_PIXELS_PER_BYTE = 200
"""A larger image of more pixels per byte of its file than any photograph has is a decompression bomb."""
_WHOLE_AREA = 2**26
"""Pixels of an image that its decoder has to hold whole (interlaced, progressive, WebP, HEIF)."""
_LAB = ("lab", "labs", "labq")
_DEPTHS = ("uchar", "ushort")


def check_header(field: str, path: Path, image: Any) -> None:
    """Raise `BadInput` of a field unless the opened image (nothing is decoded yet) can be read truly."""
    problem = (
        _kind_problem(image)
        or _pages_problem(path, image)
        or _colors_problem(image)
        or _size_problem(image, path.stat().st_size)
        or png_problem(path)
        or tiff_problem(path)
        or profile_problem(image)
    )
    if problem:
        raise BadInput(field, str(path), problem)


def loader_of(image: Any) -> str:
    """libvips's name of the loader that has opened an image, e.g. `pngload`."""
    return str(image.get("vips-loader")).removesuffix("_source").removesuffix("_buffer")


def _kind_problem(image: Any) -> str:
    return "" if loader_of(image) in _LOADERS else f"is not a {KINDS}; convert it to one of them"


def _pages_problem(path: Path, image: Any) -> str:
    pages = image.get("n-pages") if image.get_typeof("n-pages") else 1
    loader = loader_of(image)
    if pages == 1 or (loader == "tiffload" and _is_reduced(path, image)):
        return ""
    if loader in _FRAMES:
        return "is animated; save one of its frames as a png"
    return f"has {pages} pages; save the one you mean as a file of its own"


def _is_reduced(path: Path, image: Any) -> bool:
    """Whether the second page of a TIFF is the first one made smaller: a pyramid, or a thumbnail."""
    import pyvips

    second = pyvips.Image.tiffload(str(path), page=1)
    ratio = float(image.width / second.width)
    return bool(ratio > 1.4 and abs(second.height * ratio - image.height) <= 2 * ratio)


def _colors_problem(image: Any) -> str:
    if image.interpretation in _LAB:
        return "" if image.bands == 3 else f"has {image.bands} channels; save it in sRGB"
    if image.format not in _DEPTHS:
        return f"holds numbers of type {image.format}, whose white is not known; save it with 8 or 16 bits"
    if image.interpretation == "cmyk":
        known = profile_space(image) == b"CMYK" and image.bands == 4
        return "" if known else "is in CMYK without a profile; convert it to sRGB first"
    if image.bands > 4:
        return f"has {image.bands} channels; save it as gray or RGB, with transparency at most"
    return ""


def _size_problem(image: Any, file_bytes: int) -> str:
    size, area = f"{image.width}x{image.height}", image.width * image.height
    if max(image.width, image.height) > LARGEST_SIDE:
        return f"is {size} pixels; use at most {LARGEST_SIDE} a side"
    if area > LARGEST_AREA:
        return f"is {size} pixels; use at most {LARGEST_AREA // 10**6} megapixels"
    if area > _SUSPICIOUS_AREA and area > _MOST_PIXELS_PER_BYTE * file_bytes:
        return f"unpacks {file_bytes} bytes to {size} pixels, as no photograph does; save it again"
    whole = loader_of(image) in ("webpload", "heifload") or image.get_typeof("interlaced")
    if whole and area > _WHOLE_AREA:
        return f"is {size} pixels and can only be decoded whole; save it as a png or tiff without interlacing"
    return ""
