"""The seam score: do borders of windows, regions and decode tiles show in the picture?

The mean absolute step between the pixels on both sides of a border is held against control lines of the
same picture, in the same direction, a third and two thirds of a window away. Borders lie on the latent
grid, so controls are moved to it too: a decoder has its own pattern within a latent's pixels, which is
no seam.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Profile = NDArray[np.int64]
"""[n] sums of |p[i] - p[i-1]| over a whole line of the picture and its channels; entry 0 is 0."""

RATIO_LIMIT = 1.05
WORST_LIMIT = 1.10


@dataclass(frozen=True, kw_only=True)
class SeamScore:
    """`ratio`: mean step across borders over that across controls. `worst`: the largest border's step
    over the largest control's. Both 1 for a picture without borders."""

    ratio: float
    worst: float
    borders: int

    @property
    def passes(self) -> bool:
        return self.ratio <= RATIO_LIMIT and self.worst <= WORST_LIMIT


def profiles(pixels: NDArray[np.uint8]) -> tuple[Profile, Profile]:
    """Step sums (along x, along y) of [h, w, 3] pixels."""
    wide = pixels.astype(np.int16)
    along_x, along_y = np.zeros(wide.shape[1], np.int64), np.zeros(wide.shape[0], np.int64)
    along_x[1:] = np.abs(np.diff(wide, axis=1)).sum(axis=(0, 2), dtype=np.int64)
    along_y[1:] = np.abs(np.diff(wide, axis=0)).sum(axis=(1, 2), dtype=np.int64)
    return along_x, along_y


def seam_score(
    profile_x: Profile,
    profile_y: Profile,
    borders_x: Iterable[int],
    borders_y: Iterable[int],
    window: int,
    grid: int = 8,
) -> SeamScore:
    """Score the borders (pixel columns and rows that begin a new side) of a picture.

    `window` is the window's side in pixels, `grid` the pixels per latent.
    """
    # A column's sum runs over the height and a row's over the width: compare means per pixel.
    per_x, per_y = profile_x / max(1, len(profile_y)), profile_y / max(1, len(profile_x))
    steps, controls = [], []
    for profile, borders in ((per_x, set(borders_x)), (per_y, set(borders_y))):
        found, held = _lines(profile, borders, window, grid)
        steps += found
        controls += held
    if not steps or not controls:
        return SeamScore(ratio=1.0, worst=1.0, borders=len(steps))
    floor = 1e-9
    return SeamScore(
        ratio=float((np.mean(steps) + floor) / (np.mean(controls) + floor)),
        worst=float((max(steps) + floor) / (max(controls) + floor)),
        borders=len(steps),
    )


def _lines(
    profile: NDArray[np.float64], borders: set[int], window: int, grid: int
) -> tuple[list[float], list[float]]:
    steps, controls = [], []
    thirds = [max(grid, round(window * part / 3 / grid) * grid) for part in (1, 2)]
    for border in sorted(borders):
        if not 0 < border < len(profile):
            continue
        steps.append(float(profile[border]))
        controls += [
            float(profile[border + away])
            for away in thirds
            if border + away < len(profile) and border + away not in borders
        ]
    return steps, controls
