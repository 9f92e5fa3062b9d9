"""Where the init image lies on the canvas: its fit, its anchor, or a placement of one's own."""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass

from render.errors import BadInput
from render.rect import Rect
from render.spec.validation import CONFIG, Checked

EXACT, CROP, PAD, OUTPAINT = FITS = ("exact", "crop", "pad", "outpaint")
ANCHORS = (
    "center",
    "top",
    "bottom",
    "left",
    "right",
    "top-left",
    "top-right",
    "bottom-left",
    "bottom-right",
)
EXAMPLE = "0.25,0.3,0.5"
OWN_SCALE = 8
"""Pixels by which an image may miss the canvas and still lie on it at its own scale: the canvas's sides are
multiples of 8, a photograph's are not, and a scale of 1.003 would resample every pixel for nothing."""
_FURTHEST = 8.0
_Corner = Annotated[float, Field(ge=-_FURTHEST, le=_FURTHEST)]


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class Placement(Checked):
    """The init image's left side, top side and width, as shares of the image's width, height and width.

    What leaves the image is cut off. The height follows from the init image's shape.
    """

    part_of: ClassVar[str] = "placement"

    x: Annotated[_Corner, Field(description="Left side, as a share of the image's width.", examples=[0.25])]
    y: Annotated[_Corner, Field(description="Top side, as a share of the image's height.", examples=[0.3])]
    width: Annotated[
        float,
        Field(gt=0.0, le=_FURTHEST, description="Width, as a share of the image's width.", examples=[0.5]),
    ]

    @classmethod
    def from_any(cls, value: Any) -> Placement:
        """From names and values, or from text as `0.25,0.3,0.5` (x, y, width). Raises `BadInput`."""
        if isinstance(value, Placement):
            return value
        if not isinstance(value, str):
            return cls.from_values(value, f"is not x,y,width in shares of the image; write e.g. {EXAMPLE}")
        try:
            numbers = [float(part) for part in value.split(",")]
        except ValueError:
            numbers = []
        if len(numbers) != 3 or not all(map(math.isfinite, numbers)):
            raise BadInput(
                "placement", value, f"is not x,y,width in shares of the image; write e.g. {EXAMPLE}"
            )
        x, y, width = numbers
        return cls(x=x, y=y, width=width)


def place(
    init: tuple[int, int], canvas: tuple[int, int], fit: str, anchor: str, placement: Placement | None
) -> Rect:
    """The rectangle of the canvas, in whole pixels, that the init image is scaled to; it may leave it.

    `init` and `canvas` are (width, height) in pixels. Raises `BadInput` where nothing of it is on the canvas.
    """
    (own_width, own_height), (width, height) = init, canvas
    if placement is not None:
        wide = max(1, round(placement.width * width))
        rect = Rect(
            y=round(placement.y * height),
            x=round(placement.x * width),
            height=max(1, round(wide * own_height / own_width)),
            width=wide,
        )
        if rect.x >= width or rect.y >= height or rect.x + wide <= 0 or rect.y + rect.height <= 0:
            shares = f"{placement.x:g},{placement.y:g},{placement.width:g}"
            raise BadInput("placement", shares, "leaves nothing of the init image on the image; move it")
        return rect
    if fit == EXACT:
        return Rect(y=0, x=0, height=height, width=width)
    scale = _scale(init, canvas, fit)
    wide, high = max(1, round(own_width * scale)), max(1, round(own_height * scale))
    across, down = _anchor_shares(anchor)
    return Rect(
        y=math.floor((height - high) * down), x=math.floor((width - wide) * across), height=high, width=wide
    )


def _scale(init: tuple[int, int], canvas: tuple[int, int], fit: str) -> float:
    ratios = [side / own for side, own in zip(canvas, init, strict=True)]
    missing = [abs(side - own) for side, own in zip(canvas, init, strict=True)]
    scale = max(ratios) if fit == CROP else min(ratios)
    shrinks = fit == CROP and scale <= 1.0
    grows = fit != CROP and scale >= 1.0
    return 1.0 if min(missing) < OWN_SCALE and (shrinks or grows) else scale


def _anchor_shares(anchor: str) -> tuple[float, float]:
    """(across, down): 0 for left or top, 1 for right or bottom."""
    across = 0.0 if "left" in anchor else 1.0 if "right" in anchor else 0.5
    return across, 0.0 if "top" in anchor else 1.0 if "bottom" in anchor else 0.5
