"""Region prompts: "a red vase on the left, a blue bottle on the right".

The spec's field is `boxes`, the flag `--box`.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar

from pydantic import Field
from pydantic.dataclasses import dataclass

from render.errors import BadInput
from render.spec.prompt_text import FilledPrompt
from render.spec.validation import CONFIG, Checked

SMALLEST = 0.05
"""Share of the image's width or height below which a region is taken for a mistake."""
EXAMPLE = "0,0,0.5,1: a red vase"
_LEFT = Field(ge=0.0, le=1.0, description="Left side, as a share of the image's width.", examples=[0.0])
_TOP = Field(ge=0.0, le=1.0, description="Top side, as a share of the image's height.", examples=[0.0])
_WIDTH = Field(ge=SMALLEST, le=1.0, description="Width, as a share of the image's width.", examples=[0.5])
_HEIGHT = Field(ge=SMALLEST, le=1.0, description="Height, as a share of the image's height.", examples=[1.0])
_WEIGHT = Field(
    gt=0.0, le=1.0, description="How much this prompt counts inside the region; the image's own has the rest."
)
_FEATHER = Field(
    ge=0.0,
    le=0.5,
    description="Share of the region's shorter side over which it fades out.",
)


@dataclass(frozen=True, kw_only=True, config=CONFIG)
class RegionPrompt(Checked):
    """A part of the image with a prompt of its own; lengths are shares of the image's width and height.

    Raises `BadInput` on construction for a region that is empty, leaves the image or has no prompt.
    """

    part_of: ClassVar[str] = "boxes"

    prompt: Annotated[FilledPrompt, Field(description="What to render there.", examples=["a red vase"])]
    x: Annotated[float, _LEFT]
    y: Annotated[float, _TOP]
    width: Annotated[float, _WIDTH]
    height: Annotated[float, _HEIGHT]
    weight: Annotated[float, _WEIGHT] = 1.0
    feather: Annotated[float, _FEATHER] = 0.15

    def __post_init__(self) -> None:
        for side, start, length in (("width", self.x, self.width), ("height", self.y, self.height)):
            if start + length > 1 + 1e-9:
                most = f"{1 - start:g}"
                raise BadInput(f"boxes.{side}", length, f"goes beyond the image; use at most {most}")

    @classmethod
    def from_any(cls, value: Any) -> RegionPrompt:
        """From names and values, or from text as `0,0,0.5,1: a red vase` (x, y, width, height)."""
        if isinstance(value, RegionPrompt):
            return value
        if isinstance(value, str):
            return _parsed(value)
        return cls.from_values(value, f"is not a region; write e.g. {EXAMPLE}")


def _parsed(text: str) -> RegionPrompt:
    place, colon, prompt = text.partition(":")
    try:
        numbers = [float(part) for part in place.split(",")]
    except ValueError:
        numbers = []
    if not colon or len(numbers) != 4 or not all(map(math.isfinite, numbers)):
        raise BadInput("boxes", text, f"is not x,y,width,height: prompt; write e.g. {EXAMPLE}")
    x, y, width, height = numbers
    return RegionPrompt(prompt=prompt.strip(), x=x, y=y, width=width, height=height)
