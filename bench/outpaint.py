"""Photographs brought to other shapes by `--fit outpaint`: no seam where they end, and kept to the byte.

    python -m bench.outpaint --photographs 30 --ranks 1,3
    python -m bench.outpaint --photographs 4 --sheet out/outpaint.png

Each photograph is one of the studio's, portrait or landscape, and goes to 1:1, 4:5 and 16:9 at its own
scale. The rival is the photograph pasted onto a render of the same prompt: the score finds its seams.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from bench.keep import numbers_of, photographed_with_mask, rendered, warm_pipeline
from render import ParallelizedDiffusionPipeline
from render.builtin.data import random_scene
from render.builtin.judge import prompt_of
from render.builtin.studio import Scene
from render.output.seams import OFFSET_LIMIT, LineDifferences, add_block, seam_score
from render.plan.seam_lines import SeamLines
from render.rect import Rect
from render.spec.placement import OUTPAINT, place

Pixels = NDArray[np.uint8]
SIDES = (384, 512)
"""Of a photograph, in pixels."""
SHAPES = {"1:1": (1, 1), "4:5": (4, 5), "16:9": (16, 9)}
GRID = 16
"""Pixels of which a canvas's sides are multiples, so that a centered photograph begins on a latent."""
LATENT = 8
"""Pixels."""
INVISIBLE = 0.25
"""Gray levels by which the difference across an edge may exceed that across other lines: of smooth grounds
both are about 0.1, so their ratio says nothing."""
FADE_SHARE = 16
"""Shorter sides of a photograph to the width in which it fades where it is painted on (docs/PRODUCT.md)."""


@click.command()
@click.option("--photographs", default=30, show_default=True, help="How many.")
@click.option("--ranks", default="1,3", show_default=True, help="Numbers of ranks, with commas.")
@click.option("--steps", default=25, show_default=True)
@click.option("--seed", default=1, show_default=True)
@click.option("--sheet", type=click.Path(path_type=Path), help="Write a sheet of the pictures.")
def main(photographs: int, ranks: str, steps: int, seed: int, sheet: Path | None) -> None:
    """Print one line of JSON for each shape."""
    draw = np.random.default_rng(seed)
    scenes = [random_scene(draw) for _ in range(photographs)]
    found: dict[str, list[dict[str, Any]]] = {shape: [] for shape in SHAPES}
    rows = []
    with ExitStack() as stack:
        pipelines = [stack.enter_context(warm_pipeline(count)) for count in numbers_of(ranks)]
        for number, scene in enumerate(scenes):
            size = SIDES if number % 2 else SIDES[::-1]
            pictures = []
            for shape in SHAPES:
                each = _measured(scene, size, shape, pipelines, steps)
                pictures += each.pop("pictures")
                found[shape].append(each)
            rows.append(pictures)
    for shape, each in found.items():
        click.echo(json.dumps({"shape": shape, "photographs": photographs, "steps": steps} | _summary(each)))
    if sheet is not None:
        _write_sheet(rows, sheet)


def canvas_of(photo: tuple[int, int], shape: tuple[int, int]) -> tuple[int, int]:
    """The smallest (width, height) of about this shape that holds the photograph at its own scale, with an
    even number of latents beside it."""
    (wide, high), (across, down) = photo, shape
    width = max(wide, high * across / down)
    height = max(high, wide * down / across)
    return (
        wide + round((width - wide) / GRID) * GRID,
        high + round((height - high) / GRID) * GRID,
    )


def _measured(
    scene: Scene,
    size: tuple[int, int],
    shape: str,
    pipelines: Sequence[ParallelizedDiffusionPipeline],
    steps: int,
) -> dict[str, Any]:
    photo, alpha = photographed_with_mask(scene, size[1], size[0])
    canvas, prompt = canvas_of(size, SHAPES[shape]), prompt_of(scene)
    lies = place(size, canvas, OUTPAINT, "center", None)
    here = slice(lies.y, lies.y + lies.height), slice(lies.x, lies.x + lies.width)
    fade = min(size) // FADE_SHARE
    # (first, last) of each axis that is fully kept; a side that is the canvas's does not fade.
    kept_rows, kept_columns = (
        slice(fade if before > 0 else 0, length - (fade if before + length < whole else 0))
        for before, length, whole in (
            (lies.y, lies.height, canvas[1]),
            (lies.x, lies.width, canvas[0]),
        )
    )
    with tempfile.TemporaryDirectory() as folder:
        init = str(Path(folder) / "init.png")
        Image.fromarray(photo).save(init)
        results = [
            rendered(pipeline, prompt, canvas, steps, scene.seed, init=init, fit=OUTPAINT)
            for pipeline in pipelines
        ]
    picture = results[0][0]
    pasted = rendered(pipelines[0], prompt, canvas, steps, scene.seed)[0].copy()
    pasted[here] = photo
    inside = np.zeros(alpha.shape, bool)
    inside[kept_rows, kept_columns] = True
    equal = (picture[here] == photo).all(2)
    columns = [lies.x, lies.x + lies.width]
    rows = [lies.y, lies.y + lies.height]
    both = {"outpainted": picture, "pasted": pasted}
    return {
        "pictures": list(both.values()),
        "ranks_agree": len({root for _, root in results}) == 1,
        "kept_byte_equal": bool(equal[inside].all()),
        "product_whole": bool(inside[alpha > 0].all()),
        "product_byte_equal": bool(equal[alpha > 0].all()),
        "seam": {name: _seams(each, columns, rows) for name, each in both.items()},
        "step": {name: _steps(each, columns, rows, fade) for name, each in both.items()},
    }


def _seams(picture: Pixels, columns: list[int], rows: list[int]) -> dict[str, Any]:
    """The photograph's edges beside lines of what is painted: a photograph's own grain is another."""
    height, width = picture.shape[:2]
    measured = []
    for (first, last), extent, length in ((columns, width, height), (rows, height, width)):
        edges = tuple(edge for edge in (first, last) if 0 < edge < extent)
        painted = [*range(LATENT, first, LATENT), *range(last + LATENT, extent, LATENT)]
        measured.append(LineDifferences(SeamLines(length=length, borders=edges, controls=tuple(painted))))
    add_block(*measured, Rect(y=0, x=0, height=height, width=width), picture)
    score = seam_score(*measured)
    at_edges, at_controls = (
        [float(value) for each in measured for value in each.of(getattr(each.lines, name))[0]]
        for name in ("borders", "controls")
    )
    excess = max(at_edges) - float(np.mean(at_controls))
    return {
        "passes": score.offset <= OFFSET_LIMIT and (score.passes or excess <= INVISIBLE),
        "edge": max(at_edges),
        "painted": float(np.mean(at_controls)),
        "offset": score.offset,
    }


def _steps(
    picture: Pixels, columns: list[int], rows: list[int], fade: int
) -> tuple[list[float], list[float]]:
    """How far the color jumps beyond its own slope over the width in which a photograph fades, in gray
    levels: (at its edges, at lines elsewhere). A score of lines does not see a step that is spread over some
    pixels."""
    at_edges, elsewhere = [], []
    for edges, turned in ((columns, picture), (rows, picture.transpose(1, 0, 2))):
        extent = turned.shape[1]
        inner = [edge for edge in edges if 0 < edge < extent]
        # The fade lies within the photograph.
        middles = [edge + (fade if edge == edges[0] else -fade) // 2 for edge in inner]
        lines = range(3 * fade, extent - 3 * fade + 1, fade // 2)
        at_edges += [_step(turned, line, fade) for line in middles if 3 * fade <= line <= extent - 3 * fade]
        elsewhere += [
            _step(turned, line, fade)
            for line in lines
            if inner and min(abs(line - middle) for middle in middles) > 3 * fade
        ]
    return at_edges, elsewhere


def _step(turned: Pixels, line: int, fade: int) -> float:
    """The median over rows of the change from one side of a line to the other, less what the slopes of both
    sides make of it."""
    half = fade // 2
    starts = (line - half - 2 * fade, line - half - fade, line + half, line + half + fade)
    far, near, beyond, farther = (turned[:, start : start + fade].mean(1) for start in starts)
    jump = (beyond - near) - ((near - far) + (farther - beyond))
    return float(np.abs(np.median(jump, axis=0)).max())


def _summary(found: list[dict[str, Any]]) -> dict[str, Any]:
    flags = Counter(
        name
        for each in found
        for name in ("ranks_agree", "kept_byte_equal", "product_whole", "product_byte_equal")
        if each[name]
    )
    summary: dict[str, Any] = dict(flags)
    for name in ("outpainted", "pasted"):
        scores = [each["seam"][name] for each in found]
        steps = [each["step"][name] for each in found]
        summary[name] = {
            "without_seam": sum(score["passes"] for score in scores),
            "edge": _mean([score["edge"] for score in scores]),
            "painted": _mean([score["painted"] for score in scores]),
            "offset": _mean([score["offset"] for score in scores]),
            "worst_offset": round(max(score["offset"] for score in scores), 2),
            "step_at_edges": _mean([step for edges, _ in steps for step in edges]),
            "step_elsewhere": _mean([step for _, others in steps for step in others]),
        }
    return summary


def _mean(values: list[float]) -> float | None:
    """None where a shape leaves too little around a photograph to measure."""
    return round(float(np.mean(values)), 2) if values else None


def _write_sheet(rows: list[list[Pixels]], sheet: Path) -> None:
    """Every picture, a row for each photograph: outpainted and pasted, shape by shape."""
    cell = (300, 260)
    page = Image.new("RGB", (cell[0] * len(rows[0]), cell[1] * len(rows)), "white")
    for down, pictures in enumerate(rows):
        for across, picture in enumerate(pictures):
            small = ImageOps.contain(Image.fromarray(picture), (cell[0] - 8, cell[1] - 8))
            page.paste(small, (across * cell[0], down * cell[1]))
    sheet.parent.mkdir(parents=True, exist_ok=True)
    page.save(sheet)


if __name__ == "__main__":
    main()
