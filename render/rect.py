"""Rectangles of latents or pixels: a leaf that the spec and the plan share."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Rect:
    """A rectangle of latents (or pixels, where the name says so)."""

    y: int
    x: int
    height: int
    width: int

    @property
    def slices(self) -> tuple[slice, slice]:
        return slice(self.y, self.y + self.height), slice(self.x, self.x + self.width)

    @property
    def area(self) -> int:
        return self.height * self.width


def bounding(rects: Iterable[Rect]) -> Rect:
    """The smallest rectangle around all of them; an empty one at the corner when there is none."""
    found = [rect for rect in rects if rect.area]
    if not found:
        return Rect(y=0, x=0, height=0, width=0)
    top, left = min(rect.y for rect in found), min(rect.x for rect in found)
    bottom = max(rect.y + rect.height for rect in found)
    right = max(rect.x + rect.width for rect in found)
    return Rect(y=top, x=left, height=bottom - top, width=right - left)
