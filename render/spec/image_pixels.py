"""Pixels of image files, by areas: lazy libvips pipelines, so that no rank holds an image whole."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from render.errors import RenderFailed

if TYPE_CHECKING:
    import pyvips


def read_upright(path: str, digest: str, field: str) -> pyvips.Image:
    """The image, turned upright, with all its channels as the file has them; nothing is decoded yet.

    Raises `RenderFailed` when the file is gone or has changed since its digest was taken.
    """
    if file_digest(path) != digest:
        raise RenderFailed(f"{field}: {path} has changed since the job was submitted; restore it")
    # Revalidated: libvips remembers files by their path, and ranks stay warm while a file is edited.
    return vips().Image.new_from_file(path, access="random", revalidate=True).autorot()


def opaque(image: pyvips.Image) -> pyvips.Image:
    """8-bit sRGB, three channels; what is transparent becomes white."""
    if image.hasalpha():
        image = image.flatten(background=full_scale(image))
    return to_srgb(image)


def to_srgb(image: pyvips.Image) -> pyvips.Image:
    """8-bit sRGB from an image without transparency, by the profile that it carries."""
    if image.get_typeof("icc-profile-data"):
        image = image.icc_transform("srgb", embedded=True)
    return image.colourspace("srgb").cast("uchar")


def full_scale(image: pyvips.Image) -> int:
    """White, and fully opaque, in an image's own numbers."""
    return 65535 if image.format == "ushort" else 255


def resized(
    image: pyvips.Image, width: int, height: int, *, wrap_x: bool = False, wrap_y: bool = False
) -> pyvips.Image:
    """The image at width x height pixels; where it wraps, the kernel reads across the edge."""
    kernel = "cubic" if width > image.width else "lanczos3"
    horizontal, vertical = width / image.width, height / image.height
    # The middle copy of three: its neighbors are itself.
    across, down = 3 if wrap_x else 1, 3 if wrap_y else 1
    if wrap_x or wrap_y:
        image = image.replicate(across, down)
    scaled = image.resize(horizontal, vscale=vertical, kernel=kernel)
    # libvips rounds its own sizes by half a pixel; no line may be left empty.
    whole = scaled.gravity("north-west", across * width, down * height, extend="copy")
    return whole.crop(across // 2 * width, down // 2 * height, width, height)


@lru_cache(maxsize=4)
def scaled_image(
    path: str, digest: str, field: str, width: int, height: int, wrap_x: bool, wrap_y: bool
) -> pyvips.Image:
    """A whole image file at a size, as 8-bit sRGB on white, evaluated for the areas that are read."""
    image = opaque(read_upright(path, digest, field))
    return resized(image, width, height, wrap_x=wrap_x, wrap_y=wrap_y)


def file_digest(path: str | Path) -> str:
    """SHA-256 of a file, in hexadecimal. Raises `OSError`."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def reason(exc: Exception) -> str:
    """The last line of what libvips says."""
    lines = str(exc).strip().splitlines() or ["unknown reason"]
    return lines[-1].strip()


def vips() -> Any:
    """pyvips. Not at module level: every command would pay for the import."""
    import pyvips

    return pyvips
