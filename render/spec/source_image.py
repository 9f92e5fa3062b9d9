"""The init image as it lies on the canvas, and which of its pixels are kept.

The engine reads it by areas at any stage's size. `pixels` is what a stage starts from; `kept` is what comes
back untouched in the result: straight colors, and the weight by which each pixel is kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from render.errors import RenderFailed
from render.rect import Rect
from render.spec.image_pixels import (
    full_scale,
    opaque,
    read_upright,
    reason,
    resized,
    to_srgb,
    vips,
    widened,
)
from render.spec.init_image import InitImage, MaskImage
from render.spec.placement import OUTPAINT, PAD

if TYPE_CHECKING:
    import numpy as np
    import pyvips
    from numpy.typing import NDArray

ALPHA = "alpha"
"""The mask is the init image's own transparency."""
_COLORS = {8: "srgb", 16: "rgb16"}
"""libvips's color space of sRGB, by depth."""
_EDGE_BLUR = 1.5
"""Standard deviation in pixels of the blur that finds the ground beside an edge."""
_SHADE_SIDE = 512
"""Pixels of the canvas's longer side at which a shadow is made."""
_FOOT, _FLATNESS, _SOFTNESS = 0.2, 0.12, 0.05
"""The share of the product's height that stands on the ground; its shadow's height and blur, as shares of the
product's width."""
_EDGE_SHARE, _NARROWEST_EDGE = 16, 16
"""Where a photograph ends inside the canvas, it fades over a share of its shorter side, or pixels."""


@dataclass(frozen=True, kw_only=True)
class SourceImage:
    """The init image on the canvas of the whole image. Its lengths are in pixels."""

    init: InitImage
    mask: MaskImage | str | None
    """White where the image is painted anew; `ALPHA`; None for no mask."""
    fit: str
    rect: Rect
    """Where the init image lies; it may leave the canvas."""
    width: int
    height: int
    """Of the canvas."""
    shadow: float = 0.0
    """How dark the shadow is that is drawn under what is kept."""
    depth: int = 8
    """Bits of the colors and weights of what is kept: 8 or 16."""

    @property
    def keeps(self) -> bool:
        """Whether any pixel comes back untouched."""
        return self.mask is not None or self.fit == OUTPAINT

    @property
    def stands_free(self) -> bool:
        """Whether a product is kept and its ground is not; else the ground goes on around a photograph."""
        return self.mask is not None

    @property
    def own_scale(self) -> bool:
        """Whether the init image lies on the canvas pixel by pixel."""
        return (self.rect.width, self.rect.height) == (self.init.width, self.init.height)

    @property
    def covers_exactly(self) -> bool:
        """Whether the init image's sides are the canvas's."""
        return self.rect == Rect(y=0, x=0, height=self.height, width=self.width)

    @property
    def enlarging(self) -> float:
        """How many times the init image is as long on the canvas as in its file."""
        return math.sqrt(self.rect.area / (self.init.width * self.init.height))

    def has_detail_for(self, width: int) -> bool:
        """Whether the init image is as fine as a stage of so many pixels across."""
        return width * self.rect.width <= self.init.width * self.width

    def pixels(
        self, area: Rect, width: int, height: int, *, wrap_x: bool = False, wrap_y: bool = False
    ) -> NDArray[np.uint8]:
        """[area.height, area.width, 3] sRGB pixels of an area of the canvas scaled to width x height.

        What is transparent, and what the init image leaves of the canvas, is white; beside a photograph that
        is to be painted on, its edges go on.
        Raises `RenderFailed` when the file is gone or has changed.
        """
        if self.covers_exactly:
            return self.init.pixels(area, width, height, wrap_x=wrap_x, wrap_y=wrap_y)
        return self._read(area, 3, lambda: _pixels(self, width, height, wrap_x, wrap_y))

    def kept(
        self, area: Rect, width: int, height: int, *, wrap_x: bool = False, wrap_y: bool = False
    ) -> NDArray[np.unsignedinteger]:
        """[area.height, area.width, 4] of `depth` bits: sRGB colors, and the weight by which they are kept:
        the largest number is fully.

        Colors are straight: an edge that is half transparent has the product's color. Raises as `pixels`.
        """
        return self._read(area, 4, lambda: _kept(self, width, height, wrap_x, wrap_y))

    def alpha(self, area: Rect) -> NDArray[np.unsignedinteger]:
        """[area.height, area.width, 1] of `depth` bits: how opaque an image is that keeps the init image's
        transparency, or that of its mask. Beside the init image nothing is. Raises as `pixels`."""
        return self._read(area, 1, lambda: _alpha(self))

    def shade(
        self, area: Rect, width: int, height: int, *, wrap_x: bool = False, wrap_y: bool = False
    ) -> NDArray[np.uint8]:
        """[area.height, area.width, 1]: how much of a soft contact shadow falls on each pixel,
        255 where it is darkest. Raises as `pixels`."""
        return self._read(area, 1, lambda: _shade(self, width, height, wrap_x, wrap_y))

    def _read(self, area: Rect, bands: int, make: Callable[[], pyvips.Image]) -> NDArray[Any]:
        import numpy as np

        try:
            cut = make().crop(area.x, area.y, area.width, area.height)
            data = cut.write_to_memory()
        except (vips().Error, OSError) as exc:
            raise RenderFailed(f"init: {self.init.path} cannot be read ({reason(exc)}); restore it") from exc
        kind = np.uint16 if cut.format == "ushort" else np.uint8
        return np.frombuffer(data, kind).reshape(area.height, area.width, bands)


@lru_cache(maxsize=4)
def _pixels(source: SourceImage, width: int, height: int, wrap_x: bool, wrap_y: bool) -> pyvips.Image:
    image = opaque(read_upright(source.init.path, source.init.digest, "init"))
    rect = source.rect
    image = resized(image, rect.width, rect.height)
    beside = "copy" if source.fit == OUTPAINT and source.mask is None else "white"
    placed = _on_canvas(source, image, beside)
    return resized(placed, width, height, wrap_x=wrap_x, wrap_y=wrap_y)


@lru_cache(maxsize=4)
def _kept(source: SourceImage, width: int, height: int, wrap_x: bool, wrap_y: bool) -> pyvips.Image:
    rgba = _kept_on_canvas(source)
    if (width, height) == (source.width, source.height):
        return rgba
    return _resized_straight(rgba, width, height, wrap_x=wrap_x, wrap_y=wrap_y)


@lru_cache(maxsize=2)
def _kept_on_canvas(source: SourceImage) -> pyvips.Image:
    return _on_canvas(source, _kept_in_place(source), "white" if source.fit == PAD else "black")


@lru_cache(maxsize=2)
def _kept_in_place(source: SourceImage) -> pyvips.Image:
    """RGBA in the size of `source.rect`; at the init image's own scale its bytes are the file's."""
    image, depth = read_upright(source.init.path, source.init.digest, "init"), source.depth
    colors, weight = to_srgb(_without_alpha(image), depth), _alpha_of(image, depth)
    if isinstance(source.mask, MaskImage):
        weight = _both(weight, _keep_of(source.mask, image.width, image.height, depth))
        colors = _unmixed(opaque(image, depth), weight)
    elif source.mask is None:
        colors = opaque(image, depth)
        weight = _constant(image.width, image.height, depth)
    rgba = colors.bandjoin(weight).copy(interpretation=_COLORS[depth])
    if not source.own_scale:
        rgba = _resized_straight(rgba, source.rect.width, source.rect.height)
    return _faded(rgba, source) if source.fit == OUTPAINT else rgba


@lru_cache(maxsize=2)
def _alpha(source: SourceImage) -> pyvips.Image:
    if source.mask is not None:
        plane = _kept_in_place(source)[3]
    else:
        plane = _alpha_of(read_upright(source.init.path, source.init.digest, "init"), source.depth)
        plane = plane if source.own_scale else resized(plane, source.rect.width, source.rect.height)
    return _on_canvas(source, plane, "black")


@lru_cache(maxsize=2)
def _shade(source: SourceImage, width: int, height: int, wrap_x: bool, wrap_y: bool) -> pyvips.Image:
    """A shadow as under light from above: the lowest part of what is kept, laid flat on its lowest line, and
    blurred. It is smooth, so it is made small."""
    scale = min(1.0, _SHADE_SIDE / max(source.width, source.height))
    small = (max(1, round(side * scale)) for side in (source.width, source.height))
    weight = resized(_kept_on_canvas(source)[3], *small).copy_memory()
    left, top, wide, high = weight.find_trim(threshold=127, background=0)
    blank = vips().Image.black(weight.width, weight.height)
    if wide and high:
        foot = max(1, round(high * _FOOT))
        flat = max(1, round(wide * _FLATNESS))
        lying = weight.crop(left, top + high - foot, wide, foot).resize(1.0, vscale=flat / foot)
        blank = blank.insert(lying, left, top + high - (lying.height + 1) // 2)
        blank = blank.gaussblur(max(0.5, wide * _SOFTNESS), precision="float")
        blank = (blank * (255.0 / max(1.0, blank.max()))).rint()
    return resized(blank.cast("uchar").copy_memory(), width, height, wrap_x=wrap_x, wrap_y=wrap_y)


def _on_canvas(source: SourceImage, image: pyvips.Image, beside: str) -> pyvips.Image:
    rect = source.rect
    return image.embed(rect.x, rect.y, source.width, source.height, extend=beside)


def _resized_straight(rgba: pyvips.Image, width: int, height: int, **wraps: bool) -> pyvips.Image:
    """Scaled with premultiplied colors, so that nothing bleeds in from where nothing is kept."""
    scaled = resized(rgba.premultiply(), width, height, **wraps)
    return scaled.unpremultiply().rint().cast(rgba.format).copy(interpretation=rgba.interpretation)


def _without_alpha(image: pyvips.Image) -> pyvips.Image:
    return image.extract_band(0, n=image.bands - 1) if image.hasalpha() else image


def _alpha_of(image: pyvips.Image, depth: int) -> pyvips.Image:
    if not image.hasalpha():
        return _constant(image.width, image.height, depth)
    alpha, wide = image[image.bands - 1], full_scale(image) == 65535
    if wide and depth == 8:
        # Rounded down: what is not fully opaque in 16 bits is not in 8 bits.
        alpha = (alpha / 257).floor()
    return _plane(alpha.cast("uchar") if depth == 8 else alpha if wide else widened(alpha), depth)


def _keep_of(mask: MaskImage, width: int, height: int, depth: int) -> pyvips.Image:
    """[height, width] of the full weight where the mask is black."""
    gray = opaque(read_upright(mask.path, mask.digest, "mask")).colourspace("b-w")[0].invert()
    gray = gray if (gray.width, gray.height) == (width, height) else resized(gray, width, height)
    return gray if depth == 8 else _plane(widened(gray), depth)


def _unmixed(colors: pyvips.Image, weight: pyvips.Image) -> pyvips.Image:
    """The product's own colors at its edge, where the photograph mixes them with the ground around it.

    A pixel is w * product + (1 - w) * ground; the ground is what lies just outside, blurred. Where there is
    none near, or nothing is mixed, the color is the photograph's.
    """
    full = full_scale(colors)
    outside = weight == 0
    near = outside.ifthenelse(1.0, 0.0).cast("float").gaussblur(_EDGE_BLUR, precision="float")
    # A black ground where the mask is not zero, and the blur divided by how much of it there is.
    ground = outside.ifthenelse(colors, 0).cast("float").gaussblur(_EDGE_BLUR, precision="float") / (
        near + 1e-3
    )
    share = weight / float(full)
    product = (colors - ground * (1.0 - share)) / (share + 1e-3)
    mixed = (weight > 0) & (weight < full) & (near > 0.02)
    whole = (product < 0).ifthenelse(0, (product > full).ifthenelse(full, product))
    return mixed.ifthenelse(whole.rint().cast(colors.format), colors)


def _both(one: pyvips.Image, other: pyvips.Image) -> pyvips.Image:
    return (one * other / full_scale(one)).rint().cast(one.format)


def _constant(width: int, height: int, depth: int) -> pyvips.Image:
    """The full weight everywhere."""
    plane = (vips().Image.black(width, height) + 255).cast("uchar")
    return _plane(plane if depth == 8 else widened(plane), depth)


def _plane(weights: pyvips.Image, depth: int) -> pyvips.Image:
    return weights.copy(interpretation="b-w" if depth == 8 else "grey16")


def _faded(rgba: pyvips.Image, source: SourceImage) -> pyvips.Image:
    """The weight falls to zero towards those sides of the init image that lie inside the canvas."""
    rect = source.rect
    soft = max(_NARROWEST_EDGE, min(rect.width, rect.height) // _EDGE_SHARE)
    places = vips().Image.xyz(rect.width, rect.height)
    ramp: Any = None
    for inside, distance in (
        (rect.x > 0, places[0]),
        (rect.x + rect.width < source.width, rect.width - 1 - places[0]),
        (rect.y > 0, places[1]),
        (rect.y + rect.height < source.height, rect.height - 1 - places[1]),
    ):
        if inside:
            share = (distance.cast("float") + 0.5) / soft
            share = (share > 1).ifthenelse(1.0, share)
            # Without a bend at either end, which one would see (a Mach band).
            share = share * share * (3.0 - share * 2.0)
            ramp = share if ramp is None else ramp * share
    if ramp is None:
        return rgba
    weight = (rgba[3] * ramp).rint().cast(rgba.format)
    return rgba.extract_band(0, n=3).bandjoin(weight).copy(interpretation=rgba.interpretation)
