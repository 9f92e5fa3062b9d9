"""Is global context worth its cost? Dilated views and cross-window attention, compared with neither.

The same prompts and seeds at four times the native size. Products are counted by their own pixels: a
Gaussian of their colour and one of the backdrop's, both fitted to studio photographs, part the pixels, and
connected areas are counted. The rate of studio photographs that are counted right stands beside the renders.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from bench.table import Row
from render.builtin.data import random_scene
from render.builtin.judge import is_correct, load_judge, prompt_of
from render.builtin.studio import PRODUCTS, Scene, mask, photo
from render.distributed import SingleRankGroup
from render.engine import render_latents
from render.guidance.color_correction import decode_region
from render.models import Adapter, load_adapter, read_model_info, resolve_model
from render.output.seams import score_image
from render.plan.plan import make_plan
from render.spec import Spec

SIDE, STEPS, PROMPTS = 512, 8, 8
KINDS: dict[str, dict[str, Any]] = {
    "neither": {},
    "dilated": {"dilated": 0.7},
    "cross attention": {"cross_attention": 1.0},
    "cross attention, learned": {"cross_attention": 1.0, "cross_attention_form": "learned"},
}
_SMALL = 64
"""Pictures are counted at this side in pixels."""
_LEAST_AREA = 0.008
"""A smaller share of the picture is no product."""
_NATIVE = 128
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Counter:
    """Counts products of one colour on one backdrop."""

    means: NDArray[np.float64]
    """[2, 3]: of the backdrop's pixels, and of the product's."""
    inverses: NDArray[np.float64]
    determinants: NDArray[np.float64]

    @classmethod
    def for_scene(cls, scene: Scene, photographs: int = 24) -> Counter:
        """Fitted to studio photographs of this colour on this backdrop, of all products."""
        parts: tuple[list[Any], list[Any]] = ([], [])
        for number in range(photographs):
            drawn = replace(scene, product=PRODUCTS[number % len(PRODUCTS)], seed=900_000 + number)
            inside = mask(drawn, _SMALL, _SMALL)
            colours = _colours(photo(drawn, _SMALL, _SMALL))
            parts[0].append(colours[~inside])
            parts[1].append(colours[inside])
        pixels = [np.concatenate(part) for part in parts]
        spreads = [np.cov(each.T) + np.eye(3) * 1e-4 for each in pixels]
        return cls(
            np.stack([each.mean(0) for each in pixels]),
            np.stack([np.linalg.inv(spread) for spread in spreads]),
            np.array([np.linalg.slogdet(spread)[1] for spread in spreads]),
        )

    def count(self, picture: Pixels) -> int:
        """Products in [h, w, 3]."""
        small = np.asarray(Image.fromarray(picture).resize((_SMALL, _SMALL), Image.Resampling.BOX))
        away = _colours(small)[:, :, None] - self.means
        costs = np.einsum("hwki,kij,hwkj->hwk", away, self.inverses, away) + self.determinants
        return _areas(costs[..., 1] < costs[..., 0])


def rows() -> list[Row]:
    """Per kind: one product, the right one, the seam score, and what it costs; at the usual strength."""
    return _rows(0.45)


def repainting_rows() -> list[Row]:
    """The same where each stage repaints most of the one below, and windows drift apart."""
    return _rows(0.8)


def _rows(strength: float) -> list[Row]:
    torch.set_num_threads(1)
    draw = np.random.default_rng(8)
    scenes = [scene for scene in (random_scene(draw) for _ in range(200)) if _is_countable(scene)][:PROMPTS]
    counters = [Counter.for_scene(scene) for scene in scenes]
    counted = [
        counter.count(photo(replace(scene, seed=seed), SIDE // 2, SIDE // 2))
        for scene, counter in zip(scenes, counters, strict=True)
        for seed in range(4)
    ]
    table = [Row("studio photographs: share with one product counted", _share(counted), "")]
    folder = resolve_model("builtin")
    adapter = load_adapter(folder, torch.device("cpu"), "float32", read_model_info(folder))
    base = Spec(prompt="x", width=SIDE, height=SIDE, steps=STEPS, strength=strength)
    for kind, changes in KINDS.items():
        specs = [
            base.with_changes(prompt=prompt_of(scene), seed=seed, **changes)
            for seed, scene in enumerate(scenes)
        ]
        table += _figures(kind, f"{strength} {kind}", specs, scenes, counters, adapter)
    return table


def _figures(
    name: str,
    sheet: str,
    specs: list[Spec],
    scenes: list[Scene],
    counters: list[Counter],
    adapter: Adapter,
) -> list[Row]:
    started = time.process_time()
    pictures = [_rendered(spec, adapter) for spec in specs]
    seconds = (time.process_time() - started) / len(specs)
    _write_sheet(pictures, Path("out/coherence") / f"{sheet.replace(' ', '_')}.webp")
    counts = [counter.count(picture) for counter, picture in zip(counters, pictures, strict=True)]
    small = [Image.fromarray(each).resize((_NATIVE, _NATIVE), Image.Resampling.BOX) for each in pictures]
    verdicts = is_correct(load_judge(), np.stack([np.asarray(each) for each in small]), scenes)
    borders = [
        each * adapter.info.scale_factor
        for each in make_plan(specs[0], adapter.info, 1).stages[-1].stage.grid.cols.starts()
    ]
    seams = [score_image(picture, borders, borders, _NATIVE) for picture in pictures]
    return [
        Row(f"{name}: share with one product", _share(counts), ""),
        Row(f"{name}: products, mean", float(np.mean(counts)), ""),
        Row(f"{name}: product, color and backdrop correct", float(np.mean(list(verdicts.values()))), ""),
        Row(f"{name}: seams, ratio of means, mean", float(np.mean([seam.ratio for seam in seams])), ""),
        Row(f"{name}: model calls", make_plan(specs[0], adapter.info, 1).model_calls, ""),
        Row(f"{name}: CPU seconds a picture", seconds, ""),
    ]


def _rendered(spec: Spec, adapter: Adapter) -> Pixels:
    denoised = render_latents(spec, adapter, SingleRankGroup(), device=torch.device("cpu"))
    piece = denoised.gather(denoised.state.tiling.grid.whole)
    pixels = decode_region(piece, piece.area, adapter, torch.device("cpu"))[0]
    return np.asarray((pixels * 255).round().byte().permute(1, 2, 0).numpy())


def _is_countable(scene: Scene) -> bool:
    """Whether the product's colour is not the backdrop's own."""
    return scene.colour not in ("white", "black") and not (
        scene.backdrop == "wood" and scene.colour in ("orange", "yellow")
    )


def _colours(pixels: Pixels) -> NDArray[np.float64]:
    """Colour with little of its brightness, since products have a lit side and a shaded one."""
    values = pixels.astype(float) + 8
    light = values.mean(-1, keepdims=True)
    return np.concatenate([values[..., :2] / light, 0.3 * np.log(light)], axis=-1)


def _areas(inside: NDArray[np.bool_]) -> int:
    """Connected areas that are large enough, after single pixels are smoothed away."""
    padded = np.pad(inside.astype(int), 1)
    height, width = inside.shape
    near = sum(padded[y : y + height, x : x + width] for y in range(3) for x in range(3))
    left = {(int(y), int(x)) for y, x in np.argwhere(np.asarray(near) >= 5)}
    count = 0
    while left:
        size, edge = 0, [left.pop()]
        while edge:
            y, x = edge.pop()
            size += 1
            for beside in ((y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)):
                if beside in left:
                    left.remove(beside)
                    edge.append(beside)
        count += size >= _LEAST_AREA * inside.size
    return count


def _share(counts: list[int]) -> float:
    return float(np.mean([count == 1 for count in counts]))


def _write_sheet(pictures: list[Pixels], target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    half = [
        Image.fromarray(each).resize((SIDE // 2, SIDE // 2), Image.Resampling.LANCZOS) for each in pictures
    ]
    across = -(-len(half) // 2)
    sheet = [np.concatenate([np.asarray(p) for p in half[at : at + across]], 1) for at in (0, across)]
    Image.fromarray(np.concatenate(sheet)).save(target, quality=90)
