"""Measures a finished file against the rules of a channel, by another library than the one that wrote it."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from jobs.formatting import thousands
from jobs.renditions.channel import Rules
from jobs.renditions.colors import Color

_EDGE_TOLERANCE = 2
"""Of 255: what JPEG changes in an even area."""
_PRODUCT_TOLERANCE = 12
"""Pixels that differ more than this from the corners belong to the product."""
_SHAPE_TOLERANCE = 0.01
_XMP_TAG = 700
_AI = (
    b"digitalsourcetype/trainedAlgorithmicMedia",
    b"digitalsourcetype/compositeWithTrainedAlgorithmicMedia",
)


@dataclass(frozen=True, kw_only=True)
class RuleResult:
    """One rule, and what was found in the file."""

    rule: str
    passes: bool
    wanted: str
    found: str


def check_rendition(data: bytes, rules: Rules, source_size: tuple[int, int]) -> list[RuleResult]:
    """The result of each rule for an encoded file. `source_size` is the image's own, (width, height)."""
    with Image.open(io.BytesIO(data)) as image:
        return list(_results(image, data, rules, source_size))


def _results(image: Image.Image, data: bytes, rules: Rules, source: tuple[int, int]) -> Iterator[RuleResult]:
    form = str(image.format).lower()
    short, long = sorted(image.size)
    size = f"{image.width}x{image.height}"
    if rules.formats is not None:
        yield _result("format", form in rules.formats, " or ".join(rules.formats), form)
    if rules.shortest_side is not None:
        wanted = f"at least {rules.shortest_side} px"
        yield _result("shortest side", short >= rules.shortest_side, wanted, f"{short} px")
    if rules.longest_side is not None:
        low, high = rules.longest_side
        yield _result("longest side", low <= long <= high, f"{low} to {high} px", f"{long} px")
    if rules.megapixels is not None:
        found = image.width * image.height / 1e6
        wanted = f"at most {rules.megapixels:g} megapixels"
        yield _result("megapixels", found <= rules.megapixels, wanted, f"{found:.1f}")
    if rules.shape is not None:
        close = abs(image.width / image.height / rules.shape - 1) <= _SHAPE_TOLERANCE
        yield _result("shape", close, f"{rules.shape:g} wide for 1 high", size)
    if rules.max_bytes is not None:
        wanted = f"at most {thousands(rules.max_bytes)} bytes"
        yield _result("bytes", len(data) <= rules.max_bytes, wanted, thousands(len(data)))
    if rules.enlarged is False:
        fits = image.width <= source[0] or image.height <= source[1]
        yield _result("not enlarged", fits, f"no larger than the image's {source[0]}x{source[1]}", size)
    if rules.dpi is not None:
        dots = round(float(image.info.get("dpi", (0, 0))[0]))
        yield _result("resolution", dots == rules.dpi, f"{rules.dpi} dpi", f"{dots} dpi")
    if rules.marked_as_ai:
        marked = any(mark in _xmp(image) for mark in _AI)
        yield _result("marked as AI", marked, "IPTC DigitalSourceType", "marked" if marked else "not marked")
    if rules.background is not None or rules.fill is not None:
        yield from _pixel_results(np.asarray(image.convert("RGB")), rules)


def _pixel_results(pixels: NDArray[np.uint8], rules: Rules) -> Iterator[RuleResult]:
    """`pixels` is [height, width, 3]."""
    if rules.background is not None:
        worst = _edge_difference(pixels, rules.background)
        name = "#{:02x}{:02x}{:02x}".format(*rules.background)
        wanted, found = f"{name} at all edges", "as wanted" if worst == 0 else f"differs by up to {worst}"
        yield _result("background", worst <= _EDGE_TOLERANCE, wanted, found)
    if rules.fill is not None:
        low, high = rules.fill
        share = _fill(pixels)
        wanted = f"{low:.0%} to {high:.0%} of the frame"
        yield _result("product fills", low <= share <= high, wanted, f"{share:.0%}")


def _edge_difference(pixels: NDArray[np.uint8], color: Color) -> int:
    edges = np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])
    return int(np.abs(edges.astype(np.int16) - np.asarray(color, np.int16)).max())


def _fill(pixels: NDArray[np.uint8]) -> float:
    """The larger share of width and height that the bounding box of the product takes."""
    corners = pixels[[0, 0, -1, -1], [0, -1, 0, -1]].astype(np.int16)
    background = np.median(corners, axis=0)
    product = np.abs(pixels.astype(np.int16) - background).max(axis=2) > _PRODUCT_TOLERANCE
    shares = []
    for axis in (0, 1):
        found = np.flatnonzero(product.any(axis=axis))
        shares.append(0.0 if len(found) == 0 else (found[-1] - found[0] + 1) / product.shape[1 - axis])
    return max(shares)


def _xmp(image: Image.Image) -> bytes:
    found: Any = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp") or b""
    if not found and hasattr(image, "tag_v2"):
        found = image.tag_v2.get(_XMP_TAG, b"")
    return found.encode() if isinstance(found, str) else bytes(found)


def _result(rule: str, passes: bool, wanted: str, found: str) -> RuleResult:
    return RuleResult(rule=rule, passes=bool(passes), wanted=wanted, found=found)
