"""The init image of image-to-image, and its mask: checked once, then read by areas (`image_pixels`)."""

from __future__ import annotations

import logging
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, NamedTuple, Self

from pydantic import AfterValidator, Field
from pydantic.dataclasses import dataclass

from render.errors import BadInput, RenderFailed
from render.rect import Rect
from render.spec.fields import Text, problem
from render.spec.image_checks import KINDS, LARGEST_SIDE, check_header, loader_of
from render.spec.image_kinds import is_pointer, other_kind
from render.spec.image_pixels import file_digest, full_scale, reason, scaled_image, vips
from render.spec.validation import CONFIG, Checked

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

logger = logging.getLogger(__name__)
SHAPE_TOLERANCE = 0.02
"""An init image's aspect ratio may differ this much from the image's; it is stretched to fit."""
_ENDINGS = {
    "pngload": (".png",),
    "jpegload": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "uhdrload": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "webpload": (".webp",),
    "tiffload": (".tif", ".tiff"),
    "heifload": (".avif", ".heic", ".heif"),
}


def check_digest(text: str) -> str:
    """The text; a problem of the field if it is no SHA-256."""
    if len(text) != 64 or set(text) - set("0123456789abcdef"):
        raise problem("is not a SHA-256 in hexadecimal; name the file instead")
    return text


_Side = Annotated[int, Field(ge=1, le=LARGEST_SIDE)]


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class InitImage(Checked):
    """An image file, identified by its bytes: where it lies on this machine does not matter to a spec."""

    part_of: ClassVar[str] = "init"

    path: Annotated[Text, Field(description="Where the file is on this machine.")]
    digest: Annotated[str, AfterValidator(check_digest), Field(description="SHA-256 of the file.")]
    width: Annotated[_Side, Field(description="Width in pixels, orientation applied.")]
    height: Annotated[_Side, Field(description="Height in pixels, orientation applied.")]

    @classmethod
    def from_any(cls, value: Any) -> Self:
        """From a path, which is read then, or from names and values. Raises `BadInput`."""
        if isinstance(value, cls):
            return value
        if isinstance(value, str):
            return cls.open(Path(value))
        return cls.from_values(value, f"is not a path; name a {KINDS}")

    @classmethod
    def open(cls, path: Path) -> Self:
        """Decode an image once from its first byte to its last, and describe it.

        Raises `BadInput` for a file that is broken, enormous, animated, of several pages, in CMYK without a
        profile, of floating-point numbers, or not an image.
        """
        return cls(**cls.described(path))

    @classmethod
    def described(cls, path: Path) -> dict[str, Any]:
        """`path`, `digest`, `width` and `height` of a file. Raises `BadInput` as `open`."""
        found = _opened(cls.part_of, path, *_state(cls.part_of, path))
        return {"path": str(path), "digest": found.digest, "width": found.width, "height": found.height}

    @classmethod
    def is_transparent(cls, path: Path) -> bool:
        """Whether any pixel of the image is transparent, in part or fully. Raises `BadInput` as `open`."""
        return _opened(cls.part_of, path, *_state(cls.part_of, path)).transparent

    @property
    def canvas_size(self) -> dict[str, int]:
        """`width` and `height` of an image for which nothing but this one gives a size: multiples of 8."""
        return {"width": max(8, round(self.width / 8) * 8), "height": max(8, round(self.height / 8) * 8)}

    @property
    def own_size(self) -> dict[str, int]:
        """The largest `width` and `height`, multiples of 8, that fit into the image at its own scale."""
        return {"width": max(8, self.width // 8 * 8), "height": max(8, self.height // 8 * 8)}

    def check_shape(self, width: int, height: int) -> None:
        """Raise `BadInput` unless it fits an image of `width` x `height` without visible distortion."""
        fitting = max(8, round(width * self.height / self.width / 8) * 8)
        # The size is a multiple of 8, so a small image's aspect ratio may not be matched more closely.
        if abs(height - fitting) > max(8, SHAPE_TOLERANCE * fitting):
            shape = f"{self.width}x{self.height}, another shape than {width}x{height}"
            fix = f"use --size {width}x{fitting}, or --fit crop, pad or outpaint"
            raise BadInput("init", self.path, f"is {shape}; {fix}")

    def pixels(
        self, area: Rect, width: int, height: int, *, wrap_x: bool = False, wrap_y: bool = False
    ) -> NDArray[np.uint8]:
        """[area.height, area.width, 3] sRGB pixels of an area of the image scaled to width x height.

        On a wrapped axis, the resampling kernel reads across the edge from the opposite side.
        Raises `RenderFailed` when the file is gone or has changed.
        """
        import numpy as np

        try:
            scaled = scaled_image(self.path, self.digest, self.part_of, width, height, wrap_x, wrap_y)
            # Not numpy(): it would decode the whole image first.
            cut = scaled.crop(area.x, area.y, area.width, area.height).write_to_memory()
        except (vips().Error, OSError) as exc:
            raise RenderFailed(
                f"{self.part_of}: {self.path} cannot be read ({reason(exc)}); restore it"
            ) from exc
        return np.frombuffer(cut, np.uint8).reshape(area.height, area.width, 3)


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class MaskImage(InitImage):
    """A mask for the init image: white where the image is painted anew, black where it is kept."""

    part_of: ClassVar[str] = "mask"

    @classmethod
    def open(cls, path: Path) -> Self:
        """As `InitImage.open`. Raises `BadInput` for one with transparency, too."""
        found = super().open(path)
        if cls.is_transparent(path):
            fix = "has transparency of its own; save it as gray, white where the image is painted anew"
            raise BadInput("mask", str(path), fix)
        return found

    def check_fits(self, init: InitImage) -> None:
        """Raise `BadInput` unless the mask has the shape of the init image."""
        if abs(self.width * init.height - self.height * init.width) > max(init.width, init.height) * 2:
            shapes = f"{self.width}x{self.height}, the init image {init.width}x{init.height}"
            raise BadInput("mask", self.path, f"is {shapes}; make the mask for this image")


def open_image(path: Path) -> InitImage:
    """See `InitImage.open`."""
    return InitImage.open(path)


class _Opened(NamedTuple):
    digest: str
    width: int
    height: int
    """Upright."""
    transparent: bool


def _state(field: str, path: Path) -> tuple[int, int]:
    """(time of the last change in nanoseconds, bytes) of a file."""
    try:
        str(path).encode()
        found = path.stat()
    except OSError as exc:
        raise _unreadable(field, path, exc) from exc
    except ValueError as exc:
        shown = str(path).encode("utf-8", "replace").decode()
        raise BadInput(field, shown, "is not a path in UTF-8; rename the file") from exc
    if not stat.S_ISREG(found.st_mode):
        raise BadInput(field, str(path), f"is not a file; name a {KINDS}")
    if not found.st_size:
        raise BadInput(field, str(path), f"is empty; name a {KINDS}")
    return found.st_mtime_ns, found.st_size


@lru_cache(maxsize=64)
def _opened(field: str, path: Path, changed: int, size: int) -> _Opened:
    """Cached for as long as the file is unchanged: the rows of a batch often share one image."""
    try:
        digest = file_digest(path)
    except OSError as exc:
        raise _unreadable(field, path, exc) from exc
    if is_pointer(path):
        raise BadInput(field, str(path), "is only a git-lfs pointer; run git lfs pull")
    if (kind := other_kind(path)) is not None:
        raise BadInput(field, str(path), f"is {kind}, which is not read; convert it to {KINDS}")
    with _refusing(field, path):
        image = vips().Image.new_from_file(str(path), access="sequential", fail_on="error", revalidate=True)
        check_header(field, path, image)
        # Decodes the last line too: a truncated file is found now, not after hours.
        statistics = image.stats()
        lowest = statistics(0, image.bands)[0]
    _tell_misnamed(field, path, loader_of(image))
    upright = image.get("orientation") if image.get_typeof("orientation") else 1
    width, height = (image.width, image.height) if upright < 5 else (image.height, image.width)
    transparent = bool(image.hasalpha()) and lowest < full_scale(image)
    return _Opened(digest, width, height, transparent)


def _tell_misnamed(field: str, path: Path, loader: str) -> None:
    endings = _ENDINGS[loader]
    if path.suffix and path.suffix.lower() not in endings:
        kind = loader.removesuffix("load")
        logger.warning("%s: %s is a %s file by its content, and is read as one", field, path, kind)


def _unreadable(field: str, path: Path, exc: OSError) -> BadInput:
    return BadInput(field, str(path), f"cannot be read ({exc.strerror}); check the path")


@contextmanager
def _refusing(field: str, path: Path) -> Iterator[None]:
    try:
        yield
    except vips().Error as exc:
        if "is not a known file format" in str(exc):
            raise BadInput(field, str(path), f"is not a {KINDS}; convert it to one of them") from exc
        raise BadInput(field, str(path), f"is not a valid image ({reason(exc)}); save it again") from exc
