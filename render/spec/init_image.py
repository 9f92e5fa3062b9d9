"""A picture to start from: checked once, then read by areas at any size, so that no rank has to hold it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from render.errors import BadInput, RenderFailed
from render.rect import Rect

if TYPE_CHECKING:
    import pyvips

LARGEST_SIDE = 131_072
LARGEST_AREA = 2**32
"""Pixels; above it a picture is more likely a mistake, or a bomb, than a photograph."""
_LOADERS = ("pngload", "jpegload", "webpload", "tiffload")


@dataclass(frozen=True, kw_only=True)
class InitImage:
    """A picture file by its bytes. `path` is where it lies here; its digest is what it is."""

    path: str
    digest: str
    """SHA-256 of the file."""
    width: int
    height: int
    """In pixels, turned upright."""

    def pixels(
        self, area: Rect, width: int, height: int, *, wrap_x: bool = False, wrap_y: bool = False
    ) -> NDArray[np.uint8]:
        """[area.height, area.width, 3] sRGB pixels of an area of the picture scaled to width x height.

        Where it wraps, what lies beyond an edge is the other side when it is scaled.
        Raises `RenderFailed` when the file is not there any more, or is another one.
        """
        try:
            scaled = _scaled(self, width, height, wrap_x, wrap_y)
            # Not numpy(): it would bring the whole picture in first.
            cut = scaled.crop(area.x, area.y, area.width, area.height).write_to_memory()
        except _vips().Error as exc:
            raise RenderFailed(f"init: {self.path} cannot be read ({_reason(exc)}); put it back") from exc
        return np.frombuffer(cut, np.uint8).reshape(area.height, area.width, 3)


def open_image(path: Path) -> InitImage:
    """Check a picture (png, jpeg, webp or tiff) from its first byte to its last, and say what it is.

    Raises `BadInput` for one that is broken, enormous, animated, in CMYK, or no picture at all.
    """
    try:
        stat = path.stat()
    except OSError as exc:
        raise BadInput("init", str(path), f"cannot be read ({exc.strerror}); check the path") from exc
    return _opened(path, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=64)
def _opened(path: Path, changed: int, size: int) -> InitImage:
    """Remembered for as long as the file is the same: a batch's rows often start from one picture."""
    digest = _digest(path)
    with _refusing(path):
        image = _vips().Image.new_from_file(str(path), access="sequential", fail_on="error")
        _check(path, image)
        # Down to the last line: a file that was cut short is found now, not after hours.
        image.avg()
    upright = image.get("orientation") if image.get_typeof("orientation") else 1
    sides = (image.width, image.height) if upright < 5 else (image.height, image.width)
    return InitImage(path=str(path), digest=digest, width=sides[0], height=sides[1])


def _check(path: Path, image: Any) -> None:
    loader = image.get("vips-loader").removesuffix("_source").removesuffix("_buffer")
    if loader not in _LOADERS:
        raise BadInput("init", str(path), "is no png, jpeg, webp or tiff; convert it to one of them")
    if image.get_typeof("n-pages") and image.get("n-pages") > 1 and loader != "tiffload":
        raise BadInput("init", str(path), "is animated; save one of its frames as a png")
    if image.interpretation == "cmyk":
        raise BadInput("init", str(path), "is in CMYK; convert it to sRGB first")
    if max(image.width, image.height) > LARGEST_SIDE or image.width * image.height > LARGEST_AREA:
        size = f"{image.width}x{image.height}"
        raise BadInput("init", str(path), f"is {size} pixels, above the limit of {LARGEST_SIDE} a side")


@lru_cache(maxsize=4)
def _scaled(source: InitImage, width: int, height: int, wrap_x: bool, wrap_y: bool) -> pyvips.Image:
    """The whole picture at a size, as a recipe that libvips follows for the areas that are asked for."""
    vips = _vips()
    if _digest(Path(source.path)) != source.digest:
        raise RenderFailed(f"init: {source.path} has changed since it was asked for; put it back")
    image = vips.Image.new_from_file(source.path, access="random").autorot()
    if image.hasalpha():
        image = image.flatten(background=255)
    if image.get_typeof("icc-profile-data"):
        image = image.icc_transform("srgb", embedded=True)
    image = image.colourspace("srgb").cast("uchar")
    kernel = "cubic" if width > source.width else "lanczos3"
    # The middle one of three: its neighbours are itself.
    across, down = 3 if wrap_x else 1, 3 if wrap_y else 1
    if wrap_x or wrap_y:
        image = image.replicate(across, down)
    scaled = image.resize(width / source.width, vscale=height / source.height, kernel=kernel)
    # Half a pixel of rounding in libvips' own sizes must not leave a line without a picture.
    whole = scaled.gravity("north-west", across * width, down * height, extend="copy")
    return whole.crop(across // 2 * width, down // 2 * height, width, height)


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as exc:
        raise BadInput("init", str(path), f"cannot be read ({exc.strerror}); check the path") from exc


@contextmanager
def _refusing(path: Path) -> Iterator[None]:
    try:
        yield
    except _vips().Error as exc:
        raise BadInput("init", str(path), f"is no sound picture ({_reason(exc)}); save it again") from exc


def _reason(exc: Exception) -> str:
    return str(exc).strip().splitlines()[-1].strip()


def _vips() -> Any:
    # Not at the top: every command line would pay for it.
    import pyvips

    return pyvips
