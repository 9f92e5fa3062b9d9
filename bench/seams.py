"""Seams in real renders, beside studio photographs with pretended borders and a planted seam."""

from __future__ import annotations

import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from bench.launch import run_case
from bench.table import Row
from render.builtin.data import random_scene
from render.builtin.judge import prompt_of
from render.builtin.studio import photo
from render.picture.seams import OFFSET_LIMIT, RATIO_LIMIT, WORST_LIMIT, score_picture
from render.plan.stages import SHIFT_SHARE

COUNTS = {1024: 20, 2048: 3}
"""Side of the pictures in pixels, and how many of each."""
STEPS = 12
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
    seamed = [_with_seam(p, borders[3]) for p in photographs]
    caught = sum(not score_picture(p, borders, borders, _WINDOW).passes for p in seamed)
    table.append(
        Row("share of photographs with a planted seam of 2 levels that fail", caught / len(seamed), ">= 1")
    )
    return table


def _rendered(prompt: str, side: int, blend: str, seed: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        spec = {"prompt": prompt, "width": side, "height": side, "blend": blend, "seed": seed, "steps": STEPS}
        result = run_case({"kind": "image", "spec": spec, "out": str(Path(folder) / "image")}, ranks=2)
    seams: dict[str, float] = result["seams"]
    return seams


def _score(pixels: Any, borders: list[int]) -> dict[str, float]:
    return asdict(score_picture(pixels, borders, borders, _WINDOW))


def _with_seam(pixels: Any, at: int) -> Any:
    # Away from the end of the scale that the picture is near: there clipping would take the seam away.
    moved = pixels.astype(int)
    moved[:, at:] += 2 if pixels.mean() < 128 else -2
    return np.clip(moved, 0, 255).astype(np.uint8)


def _figures(name: str, scores: list[dict[str, float]], promised: bool) -> list[Row]:
    ratios, worsts, offsets = ([score[name] for score in scores] for name in ("ratio", "worst", "offset"))
    return [
        Row(f"{name}: ratio of means, mean", float(np.mean(ratios)), ""),
        Row(f"{name}: ratio of means, largest", max(ratios), f"<= {RATIO_LIMIT}" if promised else ""),
        Row(f"{name}: worst border, mean", float(np.mean(worsts)), ""),
        Row(f"{name}: worst border, largest", max(worsts), f"<= {WORST_LIMIT}" if promised else ""),
        Row(f"{name}: offset in grey levels, mean", float(np.mean(offsets)), ""),
        Row(
            f"{name}: offset in grey levels, largest", max(offsets), f"<= {OFFSET_LIMIT}" if promised else ""
        ),
    ]
