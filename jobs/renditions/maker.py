"""Makes one file from an image: resized in linear light, padded or cropped, and encoded within its bytes."""

from __future__ import annotations

from typing import Any

from jobs.renditions.channel import Rendition
from render.errors import BadInput
from render.output.encode import srgb_profile, xmp
from render.spec import TRAINED

_WORST_QUALITY = 30
"""Below this, block artifacts are worse than what any channel accepts."""
_WHITE = (255, 255, 255)
_INCH_MM = 25.4


def make_rendition(image: Any, wanted: Rendition, source_type: str = TRAINED) -> bytes:
    """Encode a `pyvips.Image` of 3 or 4 sRGB bands as a rendition.

    The file is marked as sRGB and as made by a trained model (or, with the spec's source type, by one from a
    picture), and it does not hold the prompt. Raises
    `BadInput` when it cannot be made small enough.
    """
    import pyvips

    fitted = _fitted(image, wanted)
    if wanted.format == "jpeg" or wanted.background is not None:
        fitted = fitted.flatten(background=list(wanted.background or _WHITE)) if fitted.hasalpha() else fitted
    dots_per_mm = wanted.dpi / _INCH_MM
    # One decode, however many qualities are tried.
    marked = fitted.copy(xres=dots_per_mm, yres=dots_per_mm).copy_memory()
    marked.set_type(pyvips.GValue.blob_type, "icc-profile-data", srgb_profile())
    marked.set_type(pyvips.GValue.blob_type, "xmp-data", xmp(None, source_type))
    return _encoded(marked, wanted)


def _fitted(image: Any, wanted: Rendition) -> Any:
    width, height = wanted.width or image.width, wanted.height or image.height
    if (width, height) == (image.width, image.height):
        return image
    # `inside` is the only fit that may end smaller than the frame, so only the others enlarge.
    size, crop = (
        ("down" if wanted.fit == "inside" else "both"),
        ("centre" if wanted.fit == "crop" else "none"),
    )
    resized = image.thumbnail_image(width, height=height, size=size, crop=crop, linear=True)
    if wanted.fit != "pad" or (resized.width, resized.height) == (width, height):
        return resized
    background: list[int] = list(wanted.background or _WHITE)
    if resized.hasalpha():
        background.append(255 if wanted.background is not None or wanted.format == "jpeg" else 0)
    return resized.gravity("centre", width, height, extend="background", background=background)


def _encoded(image: Any, wanted: Rendition) -> bytes:
    if wanted.format in ("png", "tiff"):
        return _within(_buffer(image, wanted, wanted.quality), wanted)
    best = _buffer(image, wanted, wanted.quality)
    if wanted.max_bytes is None or len(best) <= wanted.max_bytes:
        return best
    low, high, found = _WORST_QUALITY, wanted.quality - 1, None
    while low <= high:
        quality = (low + high) // 2
        data = _buffer(image, wanted, quality)
        if len(data) <= wanted.max_bytes:
            found, low = data, quality + 1
        else:
            best, high = data, quality - 1
    return _within(best if found is None else found, wanted)


def _within(data: bytes, wanted: Rendition) -> bytes:
    if wanted.max_bytes is not None and len(data) > wanted.max_bytes:
        fix = "use a smaller size" if wanted.format in ("jpeg", "webp") else "use jpeg or webp"
        problem = f"is less than the {len(data)} bytes that {wanted.format} needs at this size; {fix}"
        raise BadInput("max_bytes", wanted.max_bytes, problem)
    return data


def _buffer(image: Any, wanted: Rendition, quality: int) -> bytes:
    if wanted.format == "jpeg":
        subsampling = "off" if quality >= 90 else "on"
        data = image.jpegsave_buffer(Q=quality, optimize_coding=True, subsample_mode=subsampling)
    elif wanted.format == "webp":
        data = image.webpsave_buffer(Q=quality, effort=4)
    elif wanted.format == "png":
        data = image.pngsave_buffer(compression=6)
    else:
        data = image.tiffsave_buffer(compression="lzw", predictor="horizontal", resunit="inch")
    return bytes(data)
