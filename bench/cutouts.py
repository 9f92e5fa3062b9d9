"""Cut-outs against the studio's exact masks, with a sheet of the worst and the best.

    python -m bench.cutouts --each 2 --sheet out/cutouts.png

For each kind of product and material, photographs of the studio are cut out. Overlap is the area that both
masks cover at least half over the area that one of them does; edge is the mean difference of the masks where
either is neither 0 nor 1. What such networks are bad at is drawn beside: a ring, a cord, a wire basket,
glass, white on white. Needs the extra `cutout` and the network.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from render.builtin.data import random_scene
from render.builtin.studio import MATERIALS, PRODUCTS, Scene, _render
from render.spec.cutout import NETWORKS, find_product

Look = tuple[float, tuple[float, float, float]]
"""How opaque a drawing is, and its color."""
GROUND = np.array([230, 30, 200])
"""A color that no studio has: what is cut out wrongly shows on it."""


@click.command()
@click.option("--each", default=2, show_default=True, help="Photographs of each product and material.")
@click.option("--side", default=512, show_default=True, help="Their side in pixels.")
@click.option("--network", default=NETWORKS[0], show_default=True)
@click.option("--seed", default=1, show_default=True)
@click.option("--sheet", type=click.Path(path_type=Path), help="Write the 6 worst and the 3 best.")
def main(each: int, side: int, network: str, seed: int, sheet: Path | None) -> None:
    """Print one line of JSON for each product, each material, and all."""
    draw = np.random.default_rng(seed)
    found = [
        _photographed(replace(random_scene(draw), product=product, material=material), side, network)
        for product in PRODUCTS
        for material in MATERIALS
        for _ in range(each)
    ]
    for name in (*PRODUCTS, *MATERIALS, "all"):
        some = [one for one in found if name in (one["product"], one["material"], "all")]
        click.echo(json.dumps({"what": name} | _summary(some)))
    drawn = [_drawn(name, side, network) for name in DRAWINGS]
    for one in drawn:
        click.echo(json.dumps({"what": one["product"]} | _summary([one])))
    if sheet is not None:
        order = sorted(found, key=lambda one: float(one["overlap"]))
        rows = [one["row"] for one in drawn + order[:3] + order[-2:]]
        sheet.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.concatenate(rows)).save(sheet)


def _photographed(scene: Scene, side: int, network: str) -> dict[str, Any]:
    colors, exact = _render(scene, side, side, None)
    photo = (np.clip(colors, 0, 1) * 255 + 0.5).astype(np.uint8)
    return {"product": scene.product, "material": scene.material} | _measured(photo, exact, network)


def _drawn(name: str, side: int, network: str) -> dict[str, Any]:
    """A drawing of what is hard, on a gray table before a light wall."""
    large = Image.new("L", (4 * side, 4 * side))
    opacity, color = DRAWINGS[name](ImageDraw.Draw(large), 4 * side)
    cover = np.asarray(large.resize((side, side), Image.Resampling.BOX)) / 255.0
    rows = np.linspace(0.92, 0.80, side)[:, None, None] - 0.1 * (np.arange(side) > 0.6 * side)[:, None, None]
    ground = np.broadcast_to(rows * np.array([1.0, 0.98, 0.95]), (side, side, 3))
    shading = 0.75 + 0.35 * np.linspace(1, 0, side)[None, :, None]
    weight = cover[..., None] * opacity
    colors = ground * (1 - weight) + np.array(color) * shading * weight
    noise = np.random.default_rng(1).normal(0, 0.008, (side, side, 1))
    photo = (np.clip(colors + noise, 0, 1) * 255 + 0.5).astype(np.uint8)
    return {"product": name, "material": ""} | _measured(photo, cover, network)


def _ring(draw: ImageDraw.ImageDraw, side: int) -> Look:
    draw.ellipse([0.28 * side, 0.28 * side, 0.72 * side, 0.72 * side], outline=255, width=side // 11)
    return 1.0, (0.75, 0.55, 0.15)


def _cord(draw: ImageDraw.ImageDraw, side: int) -> Look:
    draw.rectangle([0.32 * side, 0.48 * side, 0.68 * side, 0.78 * side], fill=255)
    draw.arc([0.38 * side, 0.18 * side, 0.62 * side, 0.78 * side], 180, 360, fill=255, width=side // 128)
    return 1.0, (0.15, 0.3, 0.5)


def _basket(draw: ImageDraw.ImageDraw, side: int) -> Look:
    for step in range(9):
        place = (0.3 + 0.05 * step) * side
        draw.line([place, 0.45 * side, place, 0.75 * side], fill=255, width=side // 128)
    for step in range(7):
        place = (0.45 + 0.05 * step) * side
        draw.line([0.3 * side, place, 0.7 * side, place], fill=255, width=side // 128)
    return 1.0, (0.1, 0.1, 0.1)


def _glass(draw: ImageDraw.ImageDraw, side: int) -> Look:
    draw.rounded_rectangle([0.36 * side, 0.3 * side, 0.64 * side, 0.78 * side], side // 24, fill=255)
    return 0.25, (0.55, 0.75, 0.8)


def _white(draw: ImageDraw.ImageDraw, side: int) -> Look:
    draw.ellipse([0.3 * side, 0.35 * side, 0.7 * side, 0.78 * side], fill=255)
    return 1.0, (0.9, 0.9, 0.9)


DRAWINGS = {"ring": _ring, "cord": _cord, "wire basket": _basket, "glass": _glass, "white on white": _white}


def _measured(photo: NDArray[np.uint8], exact: NDArray[np.float64], network: str) -> dict[str, Any]:
    mask = find_product(photo, network)
    both, either = (mask >= 0.5) & (exact >= 0.5), (mask >= 0.5) | (exact >= 0.5)
    soft = ((mask > 0) & (mask < 1)) | ((exact > 0) & (exact < 1))
    return {
        "overlap": both.sum() / either.sum(),
        "edge": np.abs(mask - exact)[soft].mean(),
        "row": np.concatenate([photo, _shown(photo, mask), _shown(photo, exact)], axis=1),
    }


def _shown(photo: NDArray[np.uint8], mask: NDArray[np.float64]) -> NDArray[np.uint8]:
    weight = mask[..., None]
    return (photo * weight + GROUND * (1 - weight) + 0.5).astype(np.uint8)


def _summary(found: list[dict[str, Any]]) -> dict[str, Any]:
    overlap = [float(one["overlap"]) for one in found]
    return {
        "photographs": len(found),
        "overlap": round(float(np.mean(overlap)), 4),
        "worst": round(min(overlap), 4),
        "below_0.95": sum(each < 0.95 for each in overlap),
        "edge": round(float(np.mean([one["edge"] for one in found])), 4),
    }


if __name__ == "__main__":
    main()
