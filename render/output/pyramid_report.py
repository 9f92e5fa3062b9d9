"""What is known of a finished pyramid. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass

from render.output.seams import LineDifferences
from render.output.tile_entry import Tiles
from render.plan.decode_layout import DecodeLayout


@dataclass(frozen=True, kw_only=True)
class PyramidReport:
    """What every rank knows of the finished pyramid."""

    layout: DecodeLayout
    tiles: Tiles
    """Of all ranks, sorted by key."""
    columns: LineDifferences
    rows: LineDifferences
    """What was measured across the lines that the seam score looks at."""
    darkest: int
    brightest: int
    """The range of all values of the image, 0 to 255."""
    kept_pixels: int = 0
    """Pixels that are kept in full, each found to be the init image's on the rank that decoded it."""
    seconds: dict[str, float]
    """This rank's, by phase."""
