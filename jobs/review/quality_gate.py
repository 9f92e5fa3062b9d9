"""The quality gate: what is probably wrong with a finished image, found without looking at it.

It marks images for the people who review them and rejects none. An image with NaN or without any contrast
fails when it is rendered, and kept pixels that changed fail it too; so does a tile that cannot be stored.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from render.output.manifest import Manifest

DARKEST, BRIGHTEST = 40, 215
"""An image that has no value above the one, or none below the other, shows nothing."""
MOST_OFFSET = 1.5
"""Gray levels of a step along a border (`SeamScore.offset`).

The score's own limits are for large images: at 384 pixels an outline on one of few borders breaks them. Of 13
good images of that size they flagged 9, this flags 2 (in one a table's edge lies on a border). Of added steps
of 3 gray levels they find 25 in 26, this 24, of 4 levels both all (built-in model, CPU, 2026-11-30).
"""
LEAST_CONTRAST = 3.0
"""Standard deviation of the gray levels of a thumbnail; below it an image is one even area."""


def find_flaws(manifest: Manifest, thumbnail: NDArray[np.uint8]) -> list[dict[str, str]]:
    """The flaws of an image, as [{"check", "text"}]; `thumbnail` is [height, width, 3] pixels of it."""
    found = [_light(manifest), _contrast(thumbnail), _seam(manifest), _kept(manifest)]
    return [{"check": name, "text": text} for name, text in filter(None, found)]


def _light(manifest: Manifest) -> tuple[str, str] | None:
    low, high = manifest.range
    if high < DARKEST:
        return "black", f"almost black: its brightest value is {high} of 255"
    if low > BRIGHTEST:
        return "white", f"almost white: its darkest value is {low} of 255"
    return None


def _contrast(thumbnail: NDArray[Any]) -> tuple[str, str] | None:
    deviation = float(thumbnail.astype(np.float64).mean(axis=2).std())
    if deviation >= LEAST_CONTRAST:
        return None
    return "flat", f"almost one even color: its gray levels deviate by {deviation:.1f}"


def _seam(manifest: Manifest) -> tuple[str, str] | None:
    seams = manifest.seams
    if seams.offset <= MOST_OFFSET:
        return None
    figures = f"offset {seams.offset:.1f} gray levels, ratio {seams.ratio:.2f}, worst {seams.worst:.2f}"
    return "seam", f"a border between windows may be visible ({figures})"


def _kept(manifest: Manifest) -> tuple[str, str] | None:
    mask = manifest.spec.get("mask")
    if mask in (None, "none") or manifest.kept is not None:
        return None
    return "kept", "the manifest does not say that the kept pixels were checked"
