"""Pixels of image files, by areas: lazy libvips pipelines, so that no rank holds an image whole."""

from __future__ import annotations

import hashlib
import io
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from render.errors import RenderFailed

if TYPE_CHECKING:
    import pyvips

_PROFILE = "icc-profile-data"
_CHANNELS = {b"GRAY": 1, b"RGB ": 3, b"Lab ": 3, b"CMYK": 4}
"""Of an image that a profile is for. A profile of another kind is passed over, as browsers do."""


def read_upright(path: str, digest: str, field: str) -> pyvips.Image:
    """The image, turned upright, with all its channels as the file has them; nothing is decoded yet.

    Raises `RenderFailed` when the file is gone or has changed since its digest was taken.
    """
    if file_digest(path) != digest:
        raise RenderFailed(f"{field}: {path} has changed since the job was submitted; restore it")
    # Revalidated: libvips remembers files by their path, and ranks stay warm while a file is edited.
    return vips().Image.new_from_file(path, access="random", revalidate=True).autorot()


def opaque(image: pyvips.Image, depth: int = 8) -> pyvips.Image:
    """sRGB of `depth` bits, three channels; what is transparent becomes white."""
    if image.hasalpha():
        image = image.flatten(background=full_scale(image))
    return to_srgb(image, depth)


def to_srgb(image: pyvips.Image, depth: int = 8) -> pyvips.Image:
    """sRGB of `depth` bits from an image without transparency, by the profile that it carries.

    In 16 bits, what is in sRGB already keeps its numbers: a transform would move the last ones.
    """
    space = profile_space(image)
    if space == b"RGB " and image.bands == 1:
        # Gray in the numbers of a profile for colors, as programs save it: three equal channels.
        name = "rgb16" if image.format == "ushort" else "srgb"
        image = image.bandjoin([image, image]).copy(interpretation=name)
    fits = space and image.bands == _CHANNELS.get(space)
    if fits and not (depth == 16 and _is_srgb(bytes(image.get(_PROFILE)))):
        image = image.icc_transform("srgb", embedded=True, depth=depth)
    if depth == 8:
        return image.colourspace("srgb").cast("uchar")
    if image.format == "uchar":
        return widened(image.colourspace("srgb")).copy(interpretation="rgb16")
    return image.colourspace("rgb16").cast("ushort")


def profile_space(image: pyvips.Image) -> bytes:
    """What the profile of an image is for, e.g. `RGB `; empty if it has none."""
    return bytes(image.get(_PROFILE)[16:20]) if image.get_typeof(_PROFILE) else b""


def profile_problem(image: pyvips.Image) -> str | None:
    """Why the colors of an image cannot be read by its profile; None if they can, or if it has none."""
    if not image.get_typeof(_PROFILE):
        return None
    bands = image.bands - 1 if image.hasalpha() else image.bands
    pixel = vips().Image.black(1, 1, bands=bands).cast(image.format).copy(interpretation=image.interpretation)
    pixel.set_type(vips().GValue.blob_type, _PROFILE, image.get(_PROFILE))
    try:
        to_srgb(pixel).write_to_memory()
    except vips().Error as exc:
        return f"has a color profile that cannot be used ({reason(exc)}); save it in sRGB"
    return None


def widened(image: pyvips.Image) -> pyvips.Image:
    """8-bit numbers in 16 bits: 255 becomes 65535."""
    return (image.cast("ushort") * 257).cast("ushort")


@lru_cache(maxsize=4)
def _is_srgb(profile: bytes) -> bool:
    from PIL import ImageCms

    try:
        return "sRGB" in ImageCms.getProfileDescription(ImageCms.ImageCmsProfile(io.BytesIO(profile)))
    except (ImageCms.PyCMSError, OSError):
        return False


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
    """The last line of what libvips says that has words."""
    lines = [line.strip() for line in str(exc).splitlines() if sum(map(str.isalpha, line)) > 2]
    return lines[-1] if lines else "unknown reason"


def vips() -> Any:
    """pyvips. Not at module level: every command would pay for the import."""
    import pyvips

    return pyvips
