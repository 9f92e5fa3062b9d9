"""The procedural photo studio: one to three products on a backdrop, drawn at any resolution and crop."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from render.builtin.backdrops import backdrop
from render.builtin.textures import Field, fractal, speckle, value_noise, visible

PRODUCTS = ("vase", "bottle", "mug", "bowl", "ball", "box")
COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.78, 0.07, 0.06),
    "orange": (0.93, 0.42, 0.04),
    "yellow": (0.95, 0.80, 0.08),
    "green": (0.10, 0.50, 0.14),
    "teal": (0.03, 0.55, 0.56),
    "blue": (0.07, 0.20, 0.72),
    "purple": (0.42, 0.12, 0.60),
    "pink": (0.95, 0.47, 0.66),
    "white": (0.93, 0.93, 0.91),
    "black": (0.055, 0.055, 0.06),
}
MATERIALS = ("ceramic", "wood", "woven")
BACKDROPS = ("studio", "wood", "marble", "concrete")
MOST_PRODUCTS = 3

# Profiles: radius against height from top (0) to bottom (1), in units of the product's half height.
_PROFILES: dict[str, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "vase": ((0, 0.06, 0.2, 0.45, 0.7, 0.9, 1), (0.30, 0.24, 0.22, 0.46, 0.56, 0.40, 0.30)),
    "bottle": ((0, 0.05, 0.3, 0.42, 0.55, 0.97, 1), (0.135, 0.125, 0.125, 0.26, 0.345, 0.345, 0.32)),
    "mug": ((0, 0.05, 0.9, 1), (0.60, 0.59, 0.57, 0.52)),
    "bowl": ((0, 0.08, 0.3, 0.6, 0.85, 1), (1.0, 0.97, 0.88, 0.66, 0.40, 0.34)),
}
_HEIGHT = {"vase": 0.29, "bottle": 0.31, "mug": 0.21, "bowl": 0.15, "ball": 0.21, "box": 0.21}
_WIDTH = {"bowl": 1.75}
_SIZES = {1: 1.0, 2: 0.68, 3: 0.48}
"""How large each of so many products is."""
_STEPS = {2: 0.43, 3: 0.31}
"""From one of so many products to the next."""
_TILT = 0.24  # how much of a circle's depth the raised camera shows


@dataclass(frozen=True, kw_only=True)
class Scene:
    """The contents of a photograph. Lengths are in units of the image's short side."""

    product: str
    colour: str
    material: str
    backdrop: str
    seed: int
    count: int = 1
    """Products of this kind, side by side; `MOST_PRODUCTS` at most."""

    def draws(self) -> np.random.Generator:
        return np.random.default_rng(self.seed)


@dataclass
class _Layout:
    cx: float
    base: float
    scale: float
    light: float
    key: NDArray[np.floating[Any]]
    yaw: float
    side: float
    warm: float
    horizon: float
    """Where the table ends, below the image's middle. It varies: an edge on a fixed line would lie on the
    same window border in every image of a size."""


def _layout(scene: Scene) -> _Layout:
    draw = scene.draws()
    light = float(draw.choice([-1.0, 1.0]) * draw.uniform(0.35, 0.7))
    key = np.array([light, -0.62, 0.62], np.float32)
    return _Layout(
        cx=float(draw.uniform(-0.06, 0.06)),
        base=float(draw.uniform(0.25, 0.31)),
        scale=float(draw.uniform(0.92, 1.12)),
        light=light,
        key=key / np.linalg.norm(key),
        yaw=float(draw.uniform(0.3, 0.7)),
        side=float(draw.choice([-1.0, 1.0])),
        warm=float(draw.uniform(-0.02, 0.03)),
        horizon=float(draw.uniform(-0.18, -0.06)),
    )


def _layouts(scene: Scene) -> list[_Layout]:
    """One layout for each product, those further away first; all under the light of the first."""
    first = _layout(scene)
    if scene.count == 1:
        return [first]
    draw = np.random.default_rng([scene.seed, scene.count])
    size, step = _SIZES[scene.count], _STEPS[scene.count]
    layouts = [
        replace(
            first,
            cx=first.cx * 0.5 + (number - (scene.count - 1) / 2) * step + float(draw.uniform(-0.005, 0.005)),
            base=first.base - 0.02 + float(draw.uniform(-0.03, 0.03)),
            scale=size * first.scale * float(draw.uniform(0.96, 1.04)),
            yaw=float(draw.uniform(0.3, 0.7)),
            side=float(draw.choice([-1.0, 1.0])),
        )
        for number in range(scene.count)
    ]
    return sorted(layouts, key=lambda layout: layout.base)


def photo(
    scene: Scene, height: int, width: int, crop: tuple[int, int, int, int] | None = None
) -> NDArray[np.uint8]:
    """[h, w, 3] sRGB pixels of the crop (y, x, h, w) of an image of height x width pixels."""
    colour, _ = _render(scene, height, width, crop)
    return (np.clip(colour, 0, 1) * 255 + 0.5).astype(np.uint8)


def mask(
    scene: Scene, height: int, width: int, crop: tuple[int, int, int, int] | None = None
) -> NDArray[np.bool_]:
    """[h, w], true at the product's pixels."""
    _, cover = _render(scene, height, width, crop)
    return cover > 0.5


def _render(
    scene: Scene, height: int, width: int, crop: tuple[int, int, int, int] | None
) -> tuple[NDArray[np.floating[Any]], Field]:
    top, left, rows, cols = crop or (0, 0, height, width)
    short = min(height, width)
    xs = ((np.arange(cols) + left + 0.5 - width / 2) / short).astype(np.float32)
    ys = ((np.arange(rows) + top + 0.5 - height / 2) / short).astype(np.float32)
    x, y = np.meshgrid(xs, ys)
    pixel = 1.0 / short
    layouts = _layouts(scene)
    first = layouts[0]
    colour = backdrop(scene.backdrop, scene.seed, first.light, first.warm, first.horizon, x, y, pixel)
    halves = [_HEIGHT[scene.product] * lay.scale for lay in layouts]
    for lay, half in zip(layouts, halves, strict=True):
        colour = colour * _shadow(scene, lay, half, x, y)[..., None]
    covered = np.zeros_like(x)
    for lay, half in zip(layouts, halves, strict=True):
        body, cover = _product(scene, lay, half, x, y, pixel)
        colour = colour * (1 - cover[..., None]) + body * cover[..., None]
        covered = np.maximum(covered, cover)
    return colour.astype(np.float32), covered


def _shadow(scene: Scene, lay: _Layout, half: float, x: Field, y: Field) -> Field:
    """[h, w]: what a product leaves of the light on its backdrop."""
    # The contact shadow hugs the foot; the cast shadow falls away from the key light.
    foot = (half * 0.55) if scene.product != "bowl" else half * 0.9
    dx, dy = x - lay.cx, y - lay.base
    contact = np.exp(-((dx / (foot * 0.95)) ** 2 + (dy / (foot * 0.24)) ** 2))
    away = dx + np.sign(lay.light) * foot * 0.75
    cast = np.exp(-((away / (foot * 1.5)) ** 2 + ((dy + 0.005) / (foot * 0.34)) ** 2))
    return 1 - 0.62 * contact - 0.34 * cast * (1 - contact)


def _profile(product: str, t: Field) -> Field:
    at, radius = _PROFILES[product]
    # Cubic Hermite through the knots: a turned silhouette without corners.
    k = np.clip(np.searchsorted(at, t, side="right") - 1, 0, len(at) - 2)
    a, r = np.array(at), np.array(radius)
    slope = np.gradient(r, a)
    span = a[k + 1] - a[k]
    u = np.clip((t - a[k]) / span, 0, 1)
    h00, h10 = (1 + 2 * u) * (1 - u) ** 2, u * (1 - u) ** 2
    h01, h11 = u * u * (3 - 2 * u), u * u * (u - 1)
    value = h00 * r[k] + h10 * span * slope[k] + h01 * r[k + 1] + h11 * span * slope[k + 1]
    return value.astype(np.float32)


def _product(
    scene: Scene, lay: _Layout, half: float, x: Field, y: Field, pixel: float
) -> tuple[NDArray[np.floating[Any]], Field]:
    if scene.product == "box":
        return _box(scene, lay, half, x, y, pixel)
    if scene.product == "ball":
        return _ball(scene, lay, half, x, y, pixel)
    return _turned(scene, lay, half, x, y, pixel)


def _turned(
    scene: Scene, lay: _Layout, half: float, x: Field, y: Field, pixel: float
) -> tuple[NDArray[np.floating[Any]], Field]:
    """Vase, bottle, mug and bowl: solids of revolution seen from a little above."""
    tall = 2 * half
    dx = x - lay.cx
    wide = half * _WIDTH.get(scene.product, 1.0)
    top = lay.base - tall

    def radius(t: Field) -> Field:
        return _profile(scene.product, np.clip(t, 0, 1)) * wide

    t = (y - top) / tall
    for _ in range(3):
        r = radius(t)
        t = (y - _TILT * np.sqrt(np.maximum(r * r - dx * dx, 0)) - top) / tall
    r = radius(t)
    cover = np.clip((r - np.abs(dx)) / pixel + 0.5, 0, 1)
    cover = cover * np.clip(t * tall / pixel + 0.5, 0, 1) * np.clip((1 - t) * tall / pixel + 0.5, 0, 1)
    nx = np.clip(dx / np.maximum(r, 1e-6), -1, 1)
    slope = (radius(t + 0.01) - radius(t - 0.01)) / (0.02 * tall)
    nz = np.sqrt(np.maximum(1 - nx * nx, 0))
    norm = np.sqrt(1 + slope * slope)
    u = np.arcsin(nx) * wide * 0.45
    body = _shaded(scene, lay, nx / norm, -slope / norm, nz / norm, u, t * tall, pixel)
    # The opening: an ellipse whose far wall lies in shadow, and a rim that catches the light.
    mouth = float(_profile(scene.product, np.zeros(1, np.float32))[0]) * wide
    reach = np.sqrt((dx / mouth) ** 2 + ((y - top) / (mouth * _TILT)) ** 2)
    opening = np.clip((1 - reach) * mouth * _TILT / pixel + 0.5, 0, 1)
    inner = np.clip((0.90 - reach) * mouth * _TILT / pixel + 0.5, 0, 1)
    base = np.array(COLOURS[scene.colour], np.float32)
    depth = np.clip(
        0.30 + 0.34 * (y - top) / (mouth * _TILT) - 0.25 * np.sign(lay.light) * dx / mouth, 0.08, 0.8
    )
    hollow = base * depth[..., None] + 0.012
    rim = base * 0.92 + 0.10
    lip = rim * (1 - inner[..., None]) + hollow * inner[..., None]
    body = body * (1 - opening[..., None]) + lip * opening[..., None]
    cover = np.maximum(cover, opening)
    if scene.product == "mug":
        body, cover = _with_handle(scene, lay, half, dx, y, pixel, body, cover)
    return body, cover


def _with_handle(
    scene: Scene,
    lay: _Layout,
    half: float,
    dx: Field,
    y: Field,
    pixel: float,
    body: NDArray[np.floating[Any]],
    cover: Field,
) -> tuple[NDArray[np.floating[Any]], Field]:
    hx, hy = lay.side * half * 0.62, lay.base - half * 0.98
    ex, ey = (dx - hx) / 0.72, y - hy
    distance = np.hypot(ex, ey)
    loop, thick = half * 0.46, half * 0.105
    off = (distance - loop) / thick
    behind = np.clip((thick - np.abs(distance - loop)) / pixel + 0.5, 0, 1)
    nz = np.sqrt(np.maximum(1 - off * off, 0))
    direction = 1 / np.maximum(distance, 1e-6)
    handle = _shaded(scene, lay, off * ex * direction, off * ey * direction, nz, ex, y - lay.base, pixel)
    behind = behind * (1 - cover)
    total = np.maximum(cover + behind, 1e-6)
    return (body * cover[..., None] + handle * behind[..., None]) / total[..., None], np.minimum(total, 1) * (
        (cover + behind) > 0
    )


def _ball(
    scene: Scene, lay: _Layout, half: float, x: Field, y: Field, pixel: float
) -> tuple[NDArray[np.floating[Any]], Field]:
    dx, dy = x - lay.cx, y - (lay.base - half * 0.92)
    distance = np.hypot(dx, dy)
    cover = np.clip((half - distance) / pixel + 0.5, 0, 1)
    nx, ny = np.clip(dx / half, -1, 1), np.clip(dy / half, -1, 1)
    nz = np.sqrt(np.maximum(1 - nx * nx - ny * ny, 0.0))
    body = _shaded(scene, lay, nx, ny, nz, np.arcsin(nx) * half, np.arcsin(ny) * half, pixel)
    return body, cover


def _box(
    scene: Scene, lay: _Layout, half: float, x: Field, y: Field, pixel: float
) -> tuple[NDArray[np.floating[Any]], Field]:
    """A box turned by `yaw`: two sides and the lid, each a parallelogram."""
    wide = half * 0.95
    left, right = (
        np.array([-wide * (0.55 + 0.6 * lay.yaw), 0.0]),
        np.array([wide * (1.45 - 0.6 * lay.yaw), 0.0]),
    )
    rise_left, rise_right = 0.55 * _TILT * 2 * abs(left[0]), 0.55 * _TILT * 2 * right[0]
    corner = np.array([lay.cx - (left[0] + right[0]) / 2, lay.base + 0.02])
    tall = half * 1.5
    to_left, to_right = np.array([left[0], -rise_left]), np.array([right[0], -rise_right])
    up = np.array([0.0, -tall])
    cover, body = np.zeros_like(x), np.zeros((*x.shape, 3), np.float32)
    slant = np.sqrt(0.5)
    faces = (
        (corner, to_left, up, (-slant, -0.08, slant)),
        (corner, to_right, up, (slant, -0.08, slant)),
        (corner + up, to_left, to_right, (0.0, -0.96, 0.3)),
    )
    for origin, a, b, normal in faces:
        s, t, inside = _parallelogram(x, y, origin, a, b, pixel)
        n = [np.full_like(x, value) for value in normal]
        lengths = float(np.hypot(*a)), float(np.hypot(*b))
        paint = _shaded(scene, lay, n[0], n[1], n[2], s * lengths[0], t * lengths[1], pixel)
        bevel = np.minimum(np.minimum(s, 1 - s) * lengths[0], np.minimum(t, 1 - t) * lengths[1])
        paint = paint * (1 + 0.22 * np.exp(-((bevel / 0.006) ** 2)))[..., None]
        fresh = inside * (1 - cover)
        body += paint * fresh[..., None]
        cover = cover + fresh
    return body / np.maximum(cover, 1e-6)[..., None], np.clip(cover, 0, 1)


def _parallelogram(
    x: Field,
    y: Field,
    origin: NDArray[np.float64],
    a: NDArray[np.float64],
    b: NDArray[np.float64],
    pixel: float,
) -> tuple[Field, Field, Field]:
    area = a[0] * b[1] - a[1] * b[0]
    px, py = x - np.float32(origin[0]), y - np.float32(origin[1])
    s = ((px * b[1] - py * b[0]) / area).astype(np.float32)
    t = ((py * a[0] - px * a[1]) / area).astype(np.float32)
    across_s, across_t = abs(area) / np.hypot(*b), abs(area) / np.hypot(*a)
    inside = np.clip(np.minimum(s, 1 - s) * across_s / pixel + 0.5, 0, 1)
    inside = inside * np.clip(np.minimum(t, 1 - t) * across_t / pixel + 0.5, 0, 1)
    return s, t, inside.astype(np.float32)


def _shaded(
    scene: Scene, lay: _Layout, nx: Field, ny: Field, nz: Field, u: Field, v: Field, pixel: float
) -> NDArray[np.floating[Any]]:
    """[h, w, 3] lit surface; (u, v) are places on the surface in image units."""
    base = np.array(COLOURS[scene.colour], np.float32)
    seed = (scene.seed * 31 + 7) % 10_007
    u, v = u.astype(np.float32), v.astype(np.float32)
    tone, gloss, hard = np.ones_like(nx), 0.55, 60.0
    extra = np.zeros_like(nx)
    if scene.material == "ceramic":
        dots = speckle(u, v, seed, 46.0, 0.42, pixel) + 0.7 * speckle(u, v, seed + 5, 130.0, 0.35, pixel)
        tone = 1 - 0.42 * np.minimum(dots, 1) + 0.05 * fractal(u, v, seed + 8, 9.0, 7, pixel, 0.6)
        if scene.colour == "black":
            extra = 0.10 * np.minimum(dots, 1)
    elif scene.material == "wood":
        grain = fractal(u * 7, v * 0.9, seed, 5.0, 8, pixel * 7, 0.72)
        growth = np.sin((u * 24 + 1.6 * value_noise(u * 5, v * 3, seed + 2)) * 6.0) * visible(24.0, pixel)
        tone = 0.93 + 0.30 * grain + 0.14 * growth
        extra = 0.035 * (grain + 0.4) if scene.colour == "black" else extra
        gloss, hard = 0.16, 18.0
    else:
        thread = 58.0
        su, sv = u * thread, v * thread
        over = ((np.floor(su) + np.floor(sv)) % 2).astype(np.float32)
        bump_u, bump_v = np.abs(np.sin(np.pi * su)), np.abs(np.sin(np.pi * sv))
        weave = over * bump_u * (0.55 + 0.45 * np.cos(np.pi * (sv % 1 - 0.5))) + (1 - over) * bump_v * (
            0.55 + 0.45 * np.cos(np.pi * (su % 1 - 0.5))
        )
        fibre = fractal(u, v, seed, 180.0, 4, pixel, 0.7)
        seen = visible(thread, pixel)
        tone = 0.62 + (0.52 * weave) * seen + 0.26 * (1 - seen) + 0.10 * fibre
        extra = 0.04 * weave * seen if scene.colour == "black" else extra
        gloss, hard = 0.05, 8.0
    key = nx * lay.key[0] + ny * lay.key[1] + nz * lay.key[2]
    diffuse = 0.30 + 0.74 * np.clip(key, 0, 1) + 0.10 * np.clip(-nx * np.sign(lay.light), 0, 1)
    half_z = lay.key[2] + 1.0
    length = np.sqrt(lay.key[0] ** 2 + lay.key[1] ** 2 + half_z**2)
    shine = np.clip((nx * lay.key[0] + ny * lay.key[1] + nz * half_z) / length, 0, 1) ** hard
    rim = 0.16 * (1 - np.clip(nz, 0, 1)) ** 3
    colour = base * (diffuse * tone)[..., None]
    return colour + (gloss * shine + rim * 0.5 + extra)[..., None]
