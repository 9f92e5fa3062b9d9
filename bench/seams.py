"""Seams in real renders, beside studio photographs with pretended borders and a planted seam."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from bench.launch import run_case
from bench.table import Row
from render.builtin.data import random_scene
from render.builtin.judge import prompt_of
from render.builtin.studio import photo
from render.picture.seams import RATIO_LIMIT, WORST_LIMIT, profiles, seam_score
from render.plan.stages import SHIFT_SHARE

COUNTS = {1024: 20, 2048: 3}
"""Side of the pictures in pixels, and how many of each."""
_WINDOW = 128


def rows() -> list[Row]:
    """The worst of each figure over all pictures, for both blends."""
    draw = np.random.default_rng(4)
    scenes = {side: [random_scene(draw) for _ in range(count)] for side, count in COUNTS.items()}
    table = []
    for blend in ("overlap", "shift"):
        for side, chosen in scenes.items():
            scores = [_rendered(prompt_of(scene), side, blend, seed) for seed, scene in enumerate(chosen)]
            table += _figures(f"{blend}, {len(chosen)} pictures at {side}x{side}", scores, True)
    photographs = [photo(scene, 1024, 1024) for scene in scenes[1024]]
    borders = list(range(_WINDOW, 1024, _WINDOW - _WINDOW // SHIFT_SHARE))
    table += _figures(
        "studio photographs, pretended borders", [_score(p, borders) for p in photographs], False
    )
    planted = [_score(_with_seam(p, borders[3]), borders) for p in photographs]
    caught = sum(score["ratio"] > RATIO_LIMIT or score["worst"] > WORST_LIMIT for score in planted)
    table.append(
        Row("share of photographs with a planted seam of 2 levels that fail", caught / len(planted), ">= 1")
    )
    return table


def _rendered(prompt: str, side: int, blend: str, seed: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        spec = {"prompt": prompt, "width": side, "height": side, "blend": blend, "seed": seed, "steps": 20}
        result = run_case({"kind": "image", "spec": spec, "out": str(Path(folder) / "image")}, ranks=2)
    seams: dict[str, float] = result["seams"]
    return seams


def _score(pixels: Any, borders: list[int]) -> dict[str, float]:
    score = seam_score(*profiles(pixels), borders, borders, _WINDOW)
    return {"ratio": score.ratio, "worst": score.worst}


def _with_seam(pixels: Any, at: int) -> Any:
    brighter = pixels.astype(int)
    brighter[:, at:] += 2
    return np.clip(brighter, 0, 255).astype(np.uint8)


def _figures(name: str, scores: list[dict[str, float]], promised: bool) -> list[Row]:
    ratios, worsts = [score["ratio"] for score in scores], [score["worst"] for score in scores]
    return [
        Row(f"{name}: ratio of means, mean", float(np.mean(ratios)), ""),
        Row(f"{name}: ratio of means, largest", max(ratios), f"<= {RATIO_LIMIT}" if promised else ""),
        Row(f"{name}: worst border, largest", max(worsts), f"<= {WORST_LIMIT}" if promised else ""),
    ]
