"""A prompt for a part of the picture: "a red vase on the left, a blue bottle on the right"."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

from render.errors import BadInput
from render.spec.validation import checked_mapping

SMALLEST = 0.05
"""Share of the picture's width or height below which a box is taken for a mistake."""


@dataclass(frozen=True, kw_only=True)
class RegionPrompt:
    """A part of the picture with a prompt of its own; lengths are shares of its width and height.

    Raises `BadInput` on construction for a box that is empty, leaves the picture or says nothing.
    """

    prompt: str
    x: float
    y: float
    width: float
    height: float
    weight: float = 1.0
    """How much the box's prompt counts inside it, the rest being the image's own, 0 < w <= 1."""
    feather: float = 0.15
    """The share of the box's shorter side over which it fades into what is around it."""

    def __post_init__(self) -> None:
        if not isinstance(self.prompt, str) or not self.prompt.strip():
            raise BadInput("boxes", self.prompt, "has no prompt; say what to render there")
        if any(0xD800 <= ord(sign) <= 0xDFFF or sign == "\0" for sign in self.prompt):
            raise BadInput(
                "boxes", ascii(self.prompt)[:80], "holds characters that are not text; leave them out"
            )
        for name in ("x", "y", "width", "height", "weight", "feather"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, float) or not 0.0 <= value <= 1.0:
                raise BadInput("boxes", value, f"as the {name} of {self.prompt!r} is not a share from 0 to 1")
        if not self.weight or self.feather > 0.5:
            raise BadInput("boxes", self.prompt, "needs a weight above 0 and a feather of at most 0.5")
        if min(self.width, self.height) < SMALLEST:
            raise BadInput("boxes", self.prompt, f"is in a box that is empty; make it {SMALLEST} or more")
        if self.x + self.width > 1 + 1e-9 or self.y + self.height > 1 + 1e-9:
            raise BadInput(
                "boxes", self.prompt, "is in a box that leaves the picture; keep x + width within 1"
            )

    @classmethod
    def from_any(cls, value: Any) -> RegionPrompt:
        """From names and values, or from text as `0,0,0.5,1: a red vase` (x, y, width, height)."""
        if isinstance(value, RegionPrompt):
            return value
        if isinstance(value, str):
            return _parsed(value)
        given = checked_mapping("boxes", cls, value, "is no box; write e.g. 0,0,0.5,1: a red vase")
        lacking = [f.name for f in fields(cls)[:5] if f.name not in given]
        if lacking:
            raise BadInput("boxes", dict(given), f"lacks {lacking[0]}")
        return cls(**{name: _real(each) for name, each in given.items()})


def _parsed(text: str) -> RegionPrompt:
    place, colon, prompt = text.partition(":")
    try:
        numbers = [float(word) for word in place.split(",")]
    except ValueError:
        numbers = []
    if not colon or len(numbers) != 4 or not all(map(math.isfinite, numbers)):
        raise BadInput("boxes", text, "is not x,y,width,height: prompt; write e.g. 0,0,0.5,1: a red vase")
    x, y, width, height = numbers
    return RegionPrompt(prompt=prompt.strip(), x=x, y=y, width=width, height=height)


def _real(value: Any) -> Any:
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value
