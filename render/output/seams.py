"""The seam score: are the borders of windows, regions and decode tiles visible in the image?

Each of its three figures compares the borders with control lines of the same image and direction
(`render.plan.seam_lines`). The first two look at the mean absolute difference between the pixels on both
sides of a line. In a textured image most of that difference is texture, so the third looks at what only a
seam has: a difference that keeps its sign along the line. It is the median over short segments of the signed
difference, so that an object's outline, which crosses few segments, does not count.

Borders lie on the latent grid, so controls are moved to it too: a decoder has its own pattern within a
latent's pixels, which is no seam.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from render.plan.geometry import Rect
from render.plan.seam_lines import SEGMENT, SeamLines, make_lines

RATIO_LIMIT = 1.05
WORST_LIMIT = 1.10
OFFSET_LIMIT = 1.0


@dataclass(frozen=True, kw_only=True)
class SeamScore:
    """The three figures; 1, 1 and 0 for an image without borders."""

    ratio: float
    """Mean difference across borders over that across controls."""
    worst: float
    """The largest border's difference over the largest control's."""
    offset: float
    """Gray levels by which the largest signed difference of a border exceeds that of the controls, of which
    the largest one is left out."""
    borders: int
    """Number of borders."""

    @property
    def passes(self) -> bool:
        """Whether no seam is visible."""
        return self.ratio <= RATIO_LIMIT and self.worst <= WORST_LIMIT and self.offset <= OFFSET_LIMIT


class LineDifferences:
    """Sums of pixel differences across the lines of one direction.

    The sums are integers, so that those of several blocks or ranks add up exactly.
    """

    def __init__(self, lines: SeamLines) -> None:
        self.lines = lines
        self.absolute = np.zeros(len(lines.all), np.int64)
        """[lines] sums of absolute differences over pixels and channels."""
        self.signed = np.zeros((len(lines.all), lines.segments, 3), np.int64)
        """[lines, segments, 3] sums of signed differences over the pixels of a segment."""

    def add(self, line: int, start: int, before: NDArray[np.uint8], after: NDArray[np.uint8]) -> None:
        """Add the differences from `before` to `after`, [n, 3] pixels each, along a line from pixel `start`.

        `start` is a multiple of `SEGMENT`.
        """
        number = self.lines.all.index(line)
        differences = after.astype(np.int64) - before
        self.absolute[number] += int(np.abs(differences).sum())
        sums = np.add.reduceat(differences, np.arange(0, len(differences), SEGMENT), axis=0)
        first = start // SEGMENT
        self.signed[number, first : first + len(sums)] += sums

    def merge(self, absolute: NDArray[np.int64], signed: NDArray[np.int64]) -> None:
        """Add the sums of other blocks."""
        self.absolute += absolute
        self.signed += signed

    def of(self, lines: tuple[int, ...]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Per line, in gray levels: the mean absolute difference, and the largest channel's median of the
        signed one."""
        numbers = [self.lines.all.index(line) for line in lines]
        counts = np.minimum(SEGMENT, self.lines.length - np.arange(self.lines.segments) * SEGMENT)
        signed = np.median(self.signed[numbers] / counts[:, None], axis=1)
        return self.absolute[numbers] / (3 * self.lines.length), np.abs(signed).max(axis=1)


def add_block(
    columns: LineDifferences, rows: LineDifferences, block: Rect, pixels: NDArray[np.uint8]
) -> None:
    """Add the differences inside a block of the image, [block.height, block.width, 3] pixels."""
    for line in columns.lines.all:
        x = line - block.x
        if 0 < x < block.width:
            columns.add(line, block.y, pixels[:, x - 1], pixels[:, x])
    for line in rows.lines.all:
        y = line - block.y
        if 0 < y < block.height:
            rows.add(line, block.x, pixels[y - 1], pixels[y])


def seam_score(columns: LineDifferences, rows: LineDifferences) -> SeamScore:
    """Score the borders of a whole image."""
    at_borders: list[Any] = []
    at_controls: list[Any] = []
    offsets = [0.0]
    for measured in (columns, rows):
        lines = measured.lines
        if not lines.borders or not lines.controls:
            continue
        border, border_signed = measured.of(lines.borders)
        control, control_signed = measured.of(lines.controls)
        at_borders += list(border)
        at_controls += list(control)
        # The second largest: an outline that happens to run along a control must not hide a seam.
        second_largest = np.sort(control_signed)[-2:].min()
        offsets.append(float(border_signed.max() - second_largest))
    if not at_borders:
        return SeamScore(ratio=1.0, worst=1.0, offset=0.0, borders=0)
    floor = 1e-9
    return SeamScore(
        ratio=float((np.mean(at_borders) + floor) / (np.mean(at_controls) + floor)),
        worst=float((max(at_borders) + floor) / (max(at_controls) + floor)),
        offset=max(offsets),
        borders=len(at_borders),
    )


def score_image(
    pixels: NDArray[np.uint8], borders_x: Iterable[int], borders_y: Iterable[int], window: int
) -> SeamScore:
    """Score an image [h, w, 3] that is in memory as a whole; `window` is the side of a window in pixels."""
    height, width = pixels.shape[:2]
    columns = LineDifferences(make_lines(borders_x, window, width, height))
    rows = LineDifferences(make_lines(borders_y, window, height, width))
    add_block(columns, rows, Rect(y=0, x=0, height=height, width=width), pixels)
    return seam_score(columns, rows)
