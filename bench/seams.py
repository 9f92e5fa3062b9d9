"""Seams in real renders, beside studio photographs with pretended borders and a planted seam."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from bench.launch import run_case
from bench.table import Row
from render.builtin import WEIGHTS
from render.builtin.data import random_scene
from render.builtin.judge import prompt_of
from render.builtin.studio import photo
from render.models.folder import read_model_info
from render.output.export import export_image
from render.output.manifest import KEY, parse_manifest
from render.output.seams import (
    OFFSET_LIMIT,
    RATIO_LIMIT,
    WORST_LIMIT,
    LineDifferences,
    SeamScore,
    add_block,
    score_image,
    seam_score,
)
from render.plan.geometry import Rect
from render.plan.plan import make_plan
from render.plan.seam_lines import SeamLines, make_lines
from render.plan.stages import SHIFT_SHARE
from render.spec import Spec

COUNTS = {1024: 20, 2048: 3}
"""Side of the pictures in pixels, and how many of each."""
STEPS = 12
_WINDOW = 128
_LATENT = 8
"""Pixels."""


@dataclass(frozen=True)
class _Measured:
    """One picture: its score, and the mean absolute step across each border and each control line."""

    score: SeamScore
    borders: list[float]
    controls: list[float]
    standing_out: list[tuple[bool, float]]
    """Per direction: whether of all lines of the latent grid a border has the largest step, and the share of
    those lines that are borders, which is how often it would by chance."""


def rows() -> list[Row]:
    """The figures over all pictures, and the worst picture's, for both blends."""
    draw = np.random.default_rng(4)
    scenes = {side: [random_scene(draw) for _ in range(count)] for side, count in COUNTS.items()}
    table = []
    for blend in ("overlap", "shift"):
        for side, chosen in scenes.items():
            measured = [_rendered(prompt_of(scene), side, blend, seed) for seed, scene in enumerate(chosen)]
            table += _figures(f"{blend}, {len(chosen)} pictures at {side}x{side}", measured, True)
    photographs = [photo(scene, 1024, 1024) for scene in scenes[1024]]
    borders = list(range(_WINDOW, 1024, _WINDOW - _WINDOW // SHIFT_SHARE))
    lines = make_lines(borders, _WINDOW, 1024, 1024)
    table += _figures(
        "studio photographs, pretended borders", [_measured(p, lines, lines) for p in photographs], False
    )
    seamed = [_with_seam(p, borders[3]) for p in photographs]
    caught = sum(not score_image(p, borders, borders, _WINDOW).passes for p in seamed)
    table.append(
        Row("share of photographs with a planted seam of 2 levels that fail", caught / len(seamed), ">= 1")
    )
    return table


def _rendered(prompt: str, side: int, blend: str, seed: int) -> _Measured:
    values = {"prompt": prompt, "width": side, "height": side, "blend": blend, "seed": seed, "steps": STEPS}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "image"
        run_case({"kind": "image", "spec": values, "out": str(folder)}, ranks=2)
        manifest = parse_manifest((folder / KEY).read_bytes(), str(folder))
        exported = export_image(folder, manifest, Path(name) / "whole.png")
        pixels = np.asarray(Image.open(exported).convert("RGB"))
    spec, info = Spec.from_mapping(values), read_model_info(WEIGHTS)
    return _measured(pixels, *make_plan(spec, info, 1).seam_lines)


def _measured(pixels: NDArray[np.uint8], columns: SeamLines, rows: SeamLines) -> _Measured:
    height, width = pixels.shape[:2]
    steps = LineDifferences(columns), LineDifferences(rows)
    add_block(*steps, Rect(y=0, x=0, height=height, width=width), pixels)
    borders, controls = (
        [float(value) for each in steps for value in each.of(getattr(each.lines, name))[0]]
        for name in ("borders", "controls")
    )
    standing_out = [_standing_out(pixels, axis, each.lines) for axis, each in zip((1, 0), steps, strict=True)]
    return _Measured(seam_score(*steps), borders, controls, standing_out)


def _standing_out(pixels: NDArray[np.uint8], axis: int, lines: SeamLines) -> tuple[bool, float]:
    across = np.abs(np.diff(pixels.astype(np.int16), axis=axis)).mean((1 - axis, 2))
    grid = range(_LATENT, len(across), _LATENT)
    highest = max(grid, key=lambda line: float(across[line - 1]))
    return highest in lines.borders, len(set(lines.borders) & set(grid)) / len(grid)


def _with_seam(pixels: Any, at: int) -> Any:
    # Away from the end of the scale that the picture is near: there clipping would take the seam away.
    moved = pixels.astype(int)
    moved[:, at:] += 2 if pixels.mean() < 128 else -2
    return np.clip(moved, 0, 255).astype(np.uint8)


def _figures(name: str, pictures: list[_Measured], promised: bool) -> list[Row]:
    """An outline or a table's edge may run along a border of one picture; over many, borders and controls
    meet as many. One such edge is enough for the worst line of all, so how often the largest step of a
    picture lies on a border is held to how often it would by chance, and two standard deviations."""
    borders = [step for each in pictures for step in each.borders]
    controls = [step for each in pictures for step in each.controls]
    standing_out = [found for each in pictures for found in each.standing_out]
    largest, by_chance = (float(value) for value in np.mean(standing_out, axis=0))
    two_sigma = 2 * (by_chance * (1 - by_chance) / len(standing_out)) ** 0.5
    ratio, worst, offset = (
        f"<= {limit}" if promised else "" for limit in (RATIO_LIMIT, WORST_LIMIT, OFFSET_LIMIT)
    )
    scores = [each.score for each in pictures]
    return [
        Row(f"{name}: ratio of means", float(np.mean(borders) / np.mean(controls)), ratio),
        Row(f"{name}: worst border over worst control line", max(borders) / max(controls), worst),
        Row(f"{name}: one picture's ratio of means, largest", max(each.ratio for each in scores), ""),
        Row(f"{name}: one picture's worst border, largest", max(each.worst for each in scores), ""),
        Row(f"{name}: one picture's offset in grey levels, largest", max(e.offset for e in scores), offset),
        Row(
            f"{name}: share whose largest step of all lines lies on a border ({by_chance:.3f} by chance)",
            largest,
            f"<= {by_chance + two_sigma:.3f}" if promised else "",
        ),
    ]
