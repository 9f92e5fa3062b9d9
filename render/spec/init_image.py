"""The init image of image-to-image: checked once, then read by areas, so that no rank holds it whole."""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from pydantic import AfterValidator, Field
from pydantic.dataclasses import dataclass

from render.errors import BadInput, RenderFailed
from render.rect import Rect
from render.spec.fields import Text, problem
from render.spec.validation import CONFIG, Checked

if TYPE_CHECKING:
    import numpy as np
    import pyvips
    from numpy.typing import NDArray

LARGEST_SIDE = 131_072
LARGEST_AREA = 2**32
"""Pixels; above it an image is more likely a mistake, or a decompression bomb, than a photograph."""
SHAPE_TOLERANCE = 0.02
"""An init image's aspect ratio may differ this much from the image's; it is stretched to fit."""
_LOADERS = ("pngload", "jpegload", "webpload", "tiffload")


def _check_digest(text: str) -> str:
    if len(text) != 64 or set(text) - set("0123456789abcdef"):
        raise problem("is not a SHA-256 in hexadecimal; name the file instead")
    return text


_Side = Annotated[int, Field(ge=1, le=LARGEST_SIDE)]


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class InitImage(Checked):
    """An image file, identified by its bytes: where it lies on this machine does not matter to a spec."""

    part_of: ClassVar[str] = "init"

    path: Annotated[Text, Field(description="Where the file is on this machine.")]
    digest: Annotated[str, AfterValidator(_check_digest), Field(description="SHA-256 of the file.")]
    width: Annotated[_Side, Field(description="Width in pixels, orientation applied.")]
    height: Annotated[_Side, Field(description="Height in pixels, orientation applied.")]

    @classmethod
    def from_any(cls, value: Any) -> InitImage:
        """From a path, which is read then, or from names and values. Raises `BadInput`."""
        if isinstance(value, InitImage):
            return value
        if isinstance(value, str):
            return open_image(Path(value))
        return cls.from_values(value, "is not a path; name a png, jpeg, webp or tiff")

    @property
    def canvas_size(self) -> dict[str, int]:
        """`width` and `height` of an image for which nothing but this one gives a size: multiples of 8."""
        return {"width": max(8, round(self.width / 8) * 8), "height": max(8, round(self.height / 8) * 8)}

    def check_shape(self, width: int, height: int) -> None:
        """Raise `BadInput` unless it fits an image of `width` x `height` without visible distortion."""
        fitting = max(8, round(width * self.height / self.width / 8) * 8)
        # The size is a multiple of 8, so a small image's aspect ratio may not be matched more closely.
        if abs(height - fitting) > max(8, SHAPE_TOLERANCE * fitting):
            shape = f"{self.width}x{self.height}, another shape than {width}x{height}"
            raise BadInput("init", self.path, f"is {shape}; use --size {width}x{fitting}, or crop it")

    def pixels(
        self, area: Rect, width: int, height: int, *, wrap_x: bool = False, wrap_y: bool = False
    ) -> NDArray[np.uint8]:
        """[area.height, area.width, 3] sRGB pixels of an area of the image scaled to width x height.

        On a wrapped axis, the resampling kernel reads across the edge from the opposite side.
        Raises `RenderFailed` when the file is gone or has changed.
        """
        import numpy as np

        try:
            scaled = _scaled(self, width, height, wrap_x, wrap_y)
            # Not numpy(): it would decode the whole image first.
            cut = scaled.crop(area.x, area.y, area.width, area.height).write_to_memory()
        except _vips().Error as exc:
            raise RenderFailed(f"init: {self.path} cannot be read ({_reason(exc)}); restore it") from exc
        return np.frombuffer(cut, np.uint8).reshape(area.height, area.width, 3)


def open_image(path: Path) -> InitImage:
    """Decode an image (png, jpeg, webp or tiff) once from its first byte to its last, and describe it.

    Raises `BadInput` for a file that is broken, enormous, animated, in CMYK, or not an image.
    """
    try:
        found = path.stat()
    except OSError as exc:
        raise _unreadable(path, exc) from exc
    except ValueError as exc:
        raise BadInput("init", str(path), "is not a path; check its characters") from exc
    if not stat.S_ISREG(found.st_mode):
        raise BadInput("init", str(path), "is not a file; name a png, jpeg, webp or tiff")
    return _opened(path, found.st_mtime_ns, found.st_size)


@lru_cache(maxsize=64)
def _opened(path: Path, changed: int, size: int) -> InitImage:
    """Cached for as long as the file is unchanged: the rows of a batch often share one image."""
    digest = _digest(path)
    with _refusing(path):
        image = _vips().Image.new_from_file(str(path), access="sequential", fail_on="error")
        _check(path, image)
        # Decodes the last line too: a truncated file is found now, not after hours.
        image.avg()
    upright = image.get("orientation") if image.get_typeof("orientation") else 1
    sides = (image.width, image.height) if upright < 5 else (image.height, image.width)
    return InitImage(path=str(path), digest=digest, width=sides[0], height=sides[1])


def _check(path: Path, image: Any) -> None:
    loader = image.get("vips-loader").removesuffix("_source").removesuffix("_buffer")
    if loader not in _LOADERS:
        raise BadInput("init", str(path), "is not a png, jpeg, webp or tiff; convert it to one of them")
    if image.get_typeof("n-pages") and image.get("n-pages") > 1 and loader != "tiffload":
        raise BadInput("init", str(path), "is animated; save one of its frames as a png")
    if image.interpretation == "cmyk":
        raise BadInput("init", str(path), "is in CMYK; convert it to sRGB first")
    if max(image.width, image.height) > LARGEST_SIDE or image.width * image.height > LARGEST_AREA:
        size = f"{image.width}x{image.height}"
        raise BadInput("init", str(path), f"is {size} pixels; use at most {LARGEST_SIDE} a side")


@lru_cache(maxsize=4)
def _scaled(source: InitImage, width: int, height: int, wrap_x: bool, wrap_y: bool) -> pyvips.Image:
    """The whole image at a size, as a lazy pipeline that libvips evaluates for the areas that are read."""
    vips = _vips()
    if _digest(Path(source.path)) != source.digest:
        raise RenderFailed(f"init: {source.path} has changed since the job was submitted; restore it")
    image = vips.Image.new_from_file(source.path, access="random").autorot()
    if image.hasalpha():
        image = image.flatten(background=255)
    if image.get_typeof("icc-profile-data"):
        image = image.icc_transform("srgb", embedded=True)
    image = image.colourspace("srgb").cast("uchar")
    kernel = "cubic" if width > source.width else "lanczos3"
    # The middle copy of three: its neighbors are itself.
    across, down = 3 if wrap_x else 1, 3 if wrap_y else 1
    if wrap_x or wrap_y:
        image = image.replicate(across, down)
    scaled = image.resize(width / source.width, vscale=height / source.height, kernel=kernel)
    # libvips rounds its own sizes by half a pixel; no line may be left empty.
    whole = scaled.gravity("north-west", across * width, down * height, extend="copy")
    return whole.crop(across // 2 * width, down // 2 * height, width, height)


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as exc:
        raise _unreadable(path, exc) from exc


def _unreadable(path: Path, exc: OSError) -> BadInput:
    return BadInput("init", str(path), f"cannot be read ({exc.strerror}); check the path")


@contextmanager
def _refusing(path: Path) -> Iterator[None]:
    try:
        yield
    except _vips().Error as exc:
        raise BadInput("init", str(path), f"is not a valid image ({_reason(exc)}); save it again") from exc


def _reason(exc: Exception) -> str:
    return str(exc).strip().splitlines()[-1].strip()


def _vips() -> Any:
    # Not at module level: every command would pay for the import.
    import pyvips

    return pyvips
