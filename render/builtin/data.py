"""Draws the training set: photographs, product masks, captions and where each crop lies.

    python -m render.builtin.data --out DIR --parts 16 --count 1200 --seed 2026
    python -m render.builtin.data --out DIR --parts 8 --count 1600 --seed 2027 --windows 8

With `--windows` the rows of a part are windows of one picture, so many after each other.
A part is one .npz file per bucket; parts are independent of each other, so several processes can draw.
"""

from __future__ import annotations

import json
from pathlib import Path

import click
import numpy as np

from render.builtin.captions import caption
from render.builtin.studio import BACKDROPS, COLOURS, MATERIALS, PRODUCTS, Scene, mask, photo

NATIVE = 128
"""Side of the model's window in pixels."""
ZOOMS = 32.0
"""The largest zoom that is trained: a picture thirty-two times the native size."""
WHOLE = {(128, 128): 30, (128, 192): 9, (192, 128): 9, (96, 96): 4, (168, 168): 6,
         (96, 168): 5, (168, 96): 5, (104, 152): 6, (152, 104): 6}  # fmt: skip
"""Buckets of whole pictures (height, width) and their weights; the rest of 100 are crops."""
CROPS = 240
"""With these weights three photographs in four are crops."""
MARGIN = 24
"""Pixels drawn around a crop as far as the picture goes: an encoder pads at the edge of what it gets, which
shows in the outermost latents, and a window inside a larger canvas has no such edge."""
DRAWN = NATIVE + 2 * MARGIN
"""Side of what is drawn for a crop."""
TOGETHER_ZOOMS = 8.0
"""The largest zoom of pictures of which several windows are drawn: of a larger one, few show the product."""
Size = tuple[int, int]
"""Height and width of a picture in pixels."""
Crop = tuple[int, int, int, int]
"""A window in it: y, x, height and width."""


def random_scene(draw: np.random.Generator) -> Scene:
    """A scene with every attribute drawn evenly."""
    return Scene(
        product=str(draw.choice(PRODUCTS)),
        colour=str(draw.choice(list(COLOURS))),
        material=str(draw.choice(MATERIALS)),
        backdrop=str(draw.choice(BACKDROPS)),
        seed=int(draw.integers(2**31)),
    )


def _place(draw: np.random.Generator) -> tuple[Size, Crop]:
    """A picture and a window in it."""
    kinds = [*WHOLE, None]
    weights = np.array([*WHOLE.values(), CROPS], float)
    kind = kinds[int(draw.choice(len(kinds), p=weights / weights.sum()))]
    if kind is not None:
        return kind, (0, 0, *kind)
    size = _enlarged(draw, ZOOMS)
    return size, _crop(draw, size)


def _enlarged(draw: np.random.Generator, most: float) -> Size:
    """A picture larger than the native size."""
    base = list(WHOLE)[int(draw.integers(len(WHOLE)))]
    zoom = 2.0 ** draw.uniform(0.6, np.log2(most))
    height, width = (max(DRAWN, round(side * zoom / 8) * 8) for side in base)
    return height, width


def _crop(draw: np.random.Generator, size: Size) -> Crop:
    """A window of the native size, rather in the middle."""
    centre = draw.normal(0.5, 0.14, 2) if draw.random() < 0.7 else draw.random(2)
    y, x = (
        int(np.clip(at * side - NATIVE / 2, 0, side - NATIVE)) // 8 * 8
        for at, side in zip(centre, size, strict=True)
    )
    return y, x, NATIVE, NATIVE


def _with_margin(size: Size, crop: Crop) -> Crop:
    """What is drawn for a crop: always of one size, at the edge of the picture where the crop is near it."""
    if crop[2:] == size:
        return crop
    y, x = (min(max(at - MARGIN, 0), length - DRAWN) for at, length in zip(crop[:2], size, strict=True))
    return y, x, DRAWN, DRAWN


def _windows(draw: np.random.Generator, together: int | None) -> tuple[Size, list[Crop]]:
    """A picture, and one window in it or so many."""
    if together is None:
        size, crop = _place(draw)
        return size, [crop]
    size = _enlarged(draw, TOGETHER_ZOOMS)
    return size, [_crop(draw, size) for _ in range(together)]


def draw_part(out: Path, part: int, count: int, seed: int, together: int | None = None) -> None:
    """Draw `count` photographs and write them, grouped by the window's size; `together` of each picture."""
    draw = np.random.default_rng([seed, part])
    groups: dict[Size, dict[str, list[object]]] = {}
    for _ in range(count // (together or 1)):
        scene = random_scene(draw)
        (height, width), crops = _windows(draw, together)
        text = json.dumps([caption(scene, draw), scene.product, scene.colour, scene.backdrop])
        for crop in crops:
            drawn = _with_margin((height, width), crop)
            empty: dict[str, list[object]] = {
                name: [] for name in ("pixels", "mask", "place", "corner", "caption")
            }
            group = groups.setdefault(drawn[2:], empty)
            group["pixels"].append(photo(scene, height, width, drawn))
            group["mask"].append(mask(scene, height, width, drawn))
            group["corner"].append(drawn[:2])
            group["place"].append((height, width, *crop))
            group["caption"].append(text)
    for (height, width), group in groups.items():
        arrays = {name: np.array(values) for name, values in group.items()}
        target = out / f"part{part:03d}_{height}x{width}.npz"
        with target.with_suffix(".tmp").open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]
        target.with_suffix(".tmp").rename(target)


@click.command()
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for the parts.")
@click.option("--parts", default=16, show_default=True)
@click.option("--first", default=0, show_default=True, help="Number of the first part.")
@click.option("--step", default=1, show_default=True, help="Draw every STEP-th part, to share the work.")
@click.option("--count", default=1200, show_default=True, help="Photographs per part.")
@click.option("--seed", default=2026, show_default=True)
@click.option("--windows", type=int, help="Draw so many windows of each picture, for the listener.")
def main(out: Path, parts: int, first: int, step: int, count: int, seed: int, windows: int | None) -> None:
    """Draw the training photographs."""
    out.mkdir(parents=True, exist_ok=True)
    for part in range(first, parts, step):
        draw_part(out, part, count, seed, windows)
        click.echo(f"part {part} of {parts}")


if __name__ == "__main__":
    main()
