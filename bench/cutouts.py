"""Cut-outs against the studio's exact masks, with a sheet of the worst and the best.

    python -m bench.cutouts --each 2 --sheet out/cutouts.png

For each kind of product and material, photographs of the studio are cut out. Overlap is the area that both
masks cover at least half over the area that one of them does; edge is the mean difference of the masks where
either is neither 0 nor 1. Needs the extra `cutout` and the network.
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from render.builtin.data import random_scene
from render.builtin.studio import MATERIALS, PRODUCTS, _render
from render.spec.cutout import NETWORKS, find_product

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
        _measured(replace(random_scene(draw), product=product, material=material), side, network)
        for product in PRODUCTS
        for material in MATERIALS
        for _ in range(each)
    ]
    for name in (*PRODUCTS, *MATERIALS, "all"):
        some = [one for one in found if name in (one["product"], one["material"], "all")]
        click.echo(json.dumps({"what": name} | _summary(some)))
    if sheet is not None:
        order = sorted(found, key=lambda one: float(one["overlap"]))
        rows = [one["row"] for one in order[:6] + order[-3:]]
        sheet.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.concatenate(rows)).save(sheet)


def _measured(scene: Any, side: int, network: str) -> dict[str, Any]:
    colors, exact = _render(scene, side, side, None)
    photo = (np.clip(colors, 0, 1) * 255 + 0.5).astype(np.uint8)
    mask = find_product(photo, network)
    both, either = (mask >= 0.5) & (exact >= 0.5), (mask >= 0.5) | (exact >= 0.5)
    soft = ((mask > 0) & (mask < 1)) | ((exact > 0) & (exact < 1))
    return {
        "product": scene.product,
        "material": scene.material,
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
