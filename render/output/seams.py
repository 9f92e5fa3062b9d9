"""The seam score: do borders of windows, regions and decode tiles show in the picture?

Three figures, each of the borders against control lines of the same picture and direction, a third and two
thirds of a window away. The first two look at the mean absolute step between the pixels on both sides. On a
textured picture that step is mostly texture, so the third looks at what only a seam has: a difference that
keeps its sign along the line. It is the median over short segments of the signed step, so that an object's
outline, which crosses few segments, does not count.

Borders lie on the latent grid, so controls are moved to it too: a decoder has its own pattern within a
latent's pixels, which is no seam.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from render.plan.geometry import Rect

RATIO_LIMIT = 1.05
WORST_LIMIT = 1.10
OFFSET_LIMIT = 1.0
SEGMENT = 64
"""Pixels of a line that are averaged before the median; divides every block of a picture."""


@dataclass(frozen=True, kw_only=True)
class SeamScore:
    """`ratio`: mean step across borders over that across controls. `worst`: the largest border's step
    over the largest control's. `offset`: grey levels by which the largest border keeps its sign more
    than the largest control but one. 1, 1 and 0 for a picture without borders."""

    ratio: float
    worst: float
    offset: float
    borders: int

    @property
    def passes(self) -> bool:
        return self.ratio <= RATIO_LIMIT and self.worst <= WORST_LIMIT and self.offset <= OFFSET_LIMIT


@dataclass(frozen=True, kw_only=True)
class Lines:
    """The lines of one direction that are looked at; a line is the first pixel behind it."""

    across: int
    """Length of each line in pixels."""
    borders: tuple[int, ...]
    controls: tuple[int, ...]

    @cached_property
    def all(self) -> tuple[int, ...]:
        return tuple(sorted({*self.borders, *self.controls}))

    @property
    def segments(self) -> int:
        return -(-self.across // SEGMENT)


def make_lines(
    borders: Iterable[int], window: int, length: int, across: int, grid: int = 8, *, wraps: bool = False
) -> Lines:
    """The borders inside a picture of `length` pixels, and their controls; `grid` is pixels per latent.

    Where the picture wraps, line 0 is one as any other: from its last pixel to its first.
    """
    if wraps:
        inside = sorted({border % length for border in borders})
    else:
        inside = sorted({border for border in borders if 0 < border < length})
    thirds = [max(grid, round(window * part / 3 / grid) * grid) for part in (1, 2)]
    beside = {border + away for border in inside for away in thirds}
    if wraps:
        beside = {line % length for line in beside}
    controls = sorted(line for line in beside - set(inside) if line < length)
    return Lines(across=across, borders=tuple(inside), controls=tuple(controls))


class Steps:
    """What has been measured across the lines of one direction; integers, so that parts add up exactly."""

    def __init__(self, lines: Lines) -> None:
        self.lines = lines
        self.absolute = np.zeros(len(lines.all), np.int64)
        self.signed = np.zeros((len(lines.all), lines.segments, 3), np.int64)

    def add(self, line: int, start: int, before: NDArray[np.uint8], after: NDArray[np.uint8]) -> None:
        """Add the steps from `before` to `after`, [n, 3] pixels each, along a line from pixel `start` on."""
        number = self.lines.all.index(line)
        steps = after.astype(np.int64) - before
        self.absolute[number] += int(np.abs(steps).sum())
        sums = np.add.reduceat(steps, np.arange(0, len(steps), SEGMENT), axis=0)
        first = start // SEGMENT
        self.signed[number, first : first + len(sums)] += sums

    def merge(self, absolute: NDArray[np.int64], signed: NDArray[np.int64]) -> None:
        """Add what another rank has measured."""
        self.absolute += absolute
        self.signed += signed

    def of(self, lines: tuple[int, ...]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Per line: the mean absolute step, and the step that keeps its sign, in grey levels."""
        numbers = [self.lines.all.index(line) for line in lines]
        counts = np.minimum(SEGMENT, self.lines.across - np.arange(self.lines.segments) * SEGMENT)
        kept = np.median(self.signed[numbers] / counts[:, None], axis=1)
        return self.absolute[numbers] / (3 * self.lines.across), np.abs(kept).max(axis=1)


def add_block(columns: Steps, rows: Steps, block: Rect, pixels: NDArray[np.uint8]) -> None:
    """Add the steps inside a block of the picture, [block.height, block.width, 3] pixels."""
    for line in columns.lines.all:
        x = line - block.x
        if 0 < x < block.width:
            columns.add(line, block.y, pixels[:, x - 1], pixels[:, x])
    for line in rows.lines.all:
        y = line - block.y
        if 0 < y < block.height:
            rows.add(line, block.x, pixels[y - 1], pixels[y])


def seam_score(columns: Steps, rows: Steps) -> SeamScore:
    """Score a whole picture's borders."""
    steps: list[Any] = []
    controls: list[Any] = []
    offsets = [0.0]
    for measured in (columns, rows):
        lines = measured.lines
        if not lines.borders or not lines.controls:
            continue
        found, kept = measured.of(lines.borders)
        held, kept_by_controls = measured.of(lines.controls)
        steps += list(found)
        controls += list(held)
        # But for one: an outline that happens to run along a control must not hide a seam.
        apply_skip_residual = np.sort(kept_by_controls)[-2:].min()
        offsets.append(float(kept.max() - apply_skip_residual))
    if not steps:
        return SeamScore(ratio=1.0, worst=1.0, offset=0.0, borders=0)
    floor = 1e-9
    return SeamScore(
        ratio=float((np.mean(steps) + floor) / (np.mean(controls) + floor)),
        worst=float((max(steps) + floor) / (max(controls) + floor)),
        offset=max(offsets),
        borders=len(steps),
    )


def score_picture(
    pixels: NDArray[np.uint8], borders_x: Iterable[int], borders_y: Iterable[int], window: int
) -> SeamScore:
    """Score a picture [h, w, 3] that is in memory as a whole."""
    height, width = pixels.shape[:2]
    columns = Steps(make_lines(borders_x, window, width, height))
    rows = Steps(make_lines(borders_y, window, height, width))
    add_block(columns, rows, Rect(y=0, x=0, height=height, width=width), pixels)
    return seam_score(columns, rows)
