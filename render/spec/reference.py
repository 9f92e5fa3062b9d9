"""Reference pictures: what an edit begins with, or what an image is to resemble."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from typing import TYPE_CHECKING, Any, ClassVar, Self

from pydantic.dataclasses import dataclass

from render.errors import BadInput
from render.rect import Rect
from render.spec.files import home_path
from render.spec.init_image import SHAPE_TOLERANCE, InitImage
from render.spec.validation import CONFIG

if TYPE_CHECKING:
    from PIL import Image

EXAMPLE = "photo.png"
STYLE, ALIGNED = "style", "aligned"
REFERENCE_MODES = (STYLE, ALIGNED)
"""Every window sees the whole reference; or its own part of it, for edits that keep the layout."""

_LARGEST_AREA = 2**25
"""Pixels; 32 megapixels take 96 MiB."""


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class ReferencePicture(InitImage):
    """A picture that the model looks at, identified by its bytes."""

    part_of: ClassVar[str] = "reference"

    @classmethod
    def from_any(cls, value: Any) -> Self:
        """From a path, which is read then, or from names and values. Raises `BadInput`."""
        return cls.open(home_path(value)) if isinstance(value, str) else super().from_any(value)

    def check_shape(self, width: int, height: int) -> None:
        """Raise `BadInput` unless it has the shape of an image of `width` x `height`."""
        fitting = width * self.height / self.width
        if abs(height - fitting) > max(8, SHAPE_TOLERANCE * fitting):
            shape = f"{self.width}x{self.height}, another shape than {width}x{height}"
            fix = "give the size its shape, or use --reference-mode style"
            raise BadInput("reference", self.path, f"is {shape}; {fix}")

    def whole(self) -> Image.Image:
        """All of it in sRGB, scaled down if it is larger than a photograph.

        Raises `RenderFailed` when the file is gone or has changed.
        """
        from PIL import Image

        shrink = min(1.0, sqrt(_LARGEST_AREA / (self.width * self.height)))
        width, height = (max(1, round(side * shrink)) for side in (self.width, self.height))
        return Image.fromarray(self.pixels(Rect(y=0, x=0, height=height, width=width), width, height))

    def scaled(self, width: int, height: int) -> Image.Image:
        """All of it at this size, resampled as diffusers does. Raises `RenderFailed` as `whole`."""
        from PIL.Image import Resampling

        whole = self.whole()
        return whole if whole.size == (width, height) else whole.resize((width, height), Resampling.LANCZOS)


def check_references(pictures: Sequence[ReferencePicture], mode: str, width: int, height: int) -> None:
    """Raise `BadInput` for a mode without a picture, and for pictures that are to lie on an image of
    `width` x `height` and have another shape."""
    if mode == STYLE:
        return
    if not pictures:
        raise BadInput("reference_mode", mode, "needs a picture; give --reference IMAGE, or leave it out")
    for picture in pictures:
        picture.check_shape(width, height)


def check_seen(pictures: Sequence[ReferencePicture], mode: str, ip_adapter: str) -> None:
    """Raise `BadInput` for an IP-Adapter without a picture, and for pictures that are to be cut for it."""
    if not pictures:
        raise BadInput("ip_adapter", ip_adapter, "needs a picture; give --reference IMAGE")
    if mode != STYLE:
        fix = "does not go with an IP-Adapter, whose encoder sees a picture whole; use style"
        raise BadInput("reference_mode", mode, fix)
