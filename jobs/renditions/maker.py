"""Makes one file from an image: resized in linear light, padded or cropped, and encoded within its bytes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jobs.renditions.channel import Rendition
from render.errors import BadInput
from render.output.encode import srgb_profile, xmp
from render.spec import TRAINED

_WORST_QUALITY = 30
"""Below this, block artifacts are worse than what any channel accepts."""
_WHITE = (255, 255, 255)
_INCH_MM = 25.4
_SIGNED_TRIES = 4
"""A signature takes nearly the same number of bytes each time, so the second try fits."""
Sign = Callable[[bytes], bytes]


def make_rendition(
    image: Any,
    wanted: Rendition,
    source_type: str = TRAINED,
    *,
    parameters: str | None = None,
    sign: Sign | None = None,
) -> bytes:
    """Encode a `pyvips.Image` of 3 or 4 sRGB bands as a rendition.

    The file is marked as sRGB and as made by a trained model (or, with the spec's source type, by one from a
    picture). It holds the prompt only where `parameters` (see `render.output.encode.xmp`) has it. `sign`
    makes the signed file of an encoded one; what it adds counts as bytes of the file. Raises `BadInput` when
    the file cannot be made small enough, and what `sign` raises.
    """
    import pyvips

    fitted = _fitted(image, wanted)
    if wanted.format == "jpeg" or wanted.background is not None:
        fitted = fitted.flatten(background=list(wanted.background or _WHITE)) if fitted.hasalpha() else fitted
    dots_per_mm = wanted.dpi / _INCH_MM
    # One decode, however many qualities are tried.
    marked = fitted.copy(xres=dots_per_mm, yres=dots_per_mm).copy_memory()
    marked.set_type(pyvips.GValue.blob_type, "icc-profile-data", srgb_profile())
    marked.set_type(pyvips.GValue.blob_type, "xmp-data", xmp(parameters, source_type))
    return _encoded(marked, wanted) if sign is None else _signed(marked, wanted, sign)


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


def _signed(image: Any, wanted: Rendition, sign: Sign) -> bytes:
    """A signed file within its bytes: what the signature takes is known once one was made."""
    most, limited = wanted.max_bytes, wanted
    signed, added = b"", 0
    for _ in range(_SIGNED_TRIES):
        try:
            data = _encoded(image, limited)
        except BadInput as exc:
            raise (_too_large(wanted, len(signed)) if signed else exc) from exc.__cause__
        signed = sign(data)
        if most is None or len(signed) <= most:
            return signed
        # It differs by some bytes from one signature to the next.
        added = max(added + 1, len(signed) - len(data))
        if added >= most:
            break
        limited = wanted.model_copy(update={"max_bytes": most - added})
    raise _too_large(wanted, len(signed))


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
        raise _too_large(wanted, len(data))
    return data


def _too_large(wanted: Rendition, needed: int) -> BadInput:
    fix = "use a smaller size" if wanted.format in ("jpeg", "webp") else "use jpeg or webp"
    problem = f"is less than the {needed} bytes that {wanted.format} needs at this size; {fix}"
    return BadInput("max_bytes", wanted.max_bytes, problem)


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
