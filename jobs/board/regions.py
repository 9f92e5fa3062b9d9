"""The borders between the ranks' regions, drawn over an image. Computed from the plan alone."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

import numpy as np

from infra.errors import StoreError
from render.errors import BadInput
from render.model_info import ModelInfo
from render.models.folder import read_model_info, resolve_model
from render.plan.geometry import Axis
from render.plan.stages import make_stages
from render.spec import Spec


@dataclass(frozen=True, kw_only=True)
class Regions:
    """For an SVG of `width` x `height` latents: the path of all borders and the label of each rank."""

    width: int
    height: int
    path: str
    labels: tuple[tuple[int, float, float], ...]
    """(rank, x, y)"""


def regions_of(spec: dict[str, object], ranks: int, stage: int | None) -> Regions | None:
    """The regions at a stage, by default the last one; None when this machine does not have the model."""
    try:
        made = Spec.from_mapping(spec)
        info = read_model_info(resolve_model(made.model))
    except (BadInput, StoreError, OSError):
        return None
    return _regions(made.with_changes(prompt="x", negative_prompt="", seed=0), info, ranks, stage)


@lru_cache(maxsize=128)
def _regions(spec: Spec, info: ModelInfo, ranks: int, number: int | None) -> Regions:
    stages = make_stages(spec, info)
    stage = stages[-1 if number is None else min(number, len(stages) - 1)]
    grid = stage.grid
    owners = stage.tiling(ranks).owners
    rows, cols = _bounds(grid.rows), _bounds(grid.cols)
    lines = []
    for top, bottom in pairwise(rows):
        lines += [f"M{x} {top}V{bottom}" for x in cols[1:-1] if owners[top, x - 1] != owners[top, x]]
    for left, right in pairwise(cols):
        lines += [f"M{left} {y}H{right}" for y in rows[1:-1] if owners[y - 1, left] != owners[y, left]]
    labels = []
    for rank in range(ranks):
        ys, xs = np.nonzero(owners == rank)
        if len(ys):
            labels.append((rank, round(float(xs.mean()), 1), round(float(ys.mean()), 1)))
    return Regions(width=grid.width, height=grid.height, path="".join(lines), labels=tuple(labels))


def _bounds(axis: Axis) -> list[int]:
    """Cell bounds from 0 to the axis length; the first cell of a periodic axis may have two parts."""
    return sorted({0, axis.length, *(cut % axis.length for cut in axis.cell_bounds)})
