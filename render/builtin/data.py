"""Draws the training set: photographs, product masks, captions and the position of each crop.

    python -m render.builtin.data --out DIR --parts 16 --count 1200 --seed 2026
    python -m render.builtin.data --out DIR --parts 8 --count 1600 --seed 2027 --windows 8

With `--windows N` every N consecutive rows of a part are windows of one image.
A part is one .npz file per bucket. Parts are independent, so several processes can draw them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import click
import numpy as np

from render.builtin.captions import caption
from render.builtin.studio import BACKDROPS, COLOURS, MATERIALS, PRODUCTS, Scene, mask, photo

NATIVE = 128
"""Side of the model's window in pixels."""
MAX_ZOOM = 32.0
"""The largest zoom in training: an image thirty-two times the native size."""
WHOLE_SIZES = {(128, 128): 30.0, (128, 192): 9.0, (192, 128): 9.0, (96, 96): 4.0, (168, 168): 6.0,
         (96, 168): 5.0, (168, 96): 5.0, (104, 152): 6.0, (152, 104): 6.0}  # fmt: skip
"""Buckets of whole images, (height, width), and their weights."""
CROP_WEIGHT = 240
"""Weight of crops among them: three photographs in four are crops."""
MARGIN = 24
"""Pixels drawn around a crop, within the image. An encoder pads its input, which shows in the outermost
latents, and a window inside a larger canvas has no such edge."""
DRAWN = NATIVE + 2 * MARGIN
"""Side of the area that is drawn for a crop."""
MAX_ZOOM_OF_WINDOWS = 8.0
"""The largest zoom with `--windows`: in a larger image few windows show the product."""
Size = tuple[int, int]
"""Height and width of an image in pixels."""
Crop = tuple[int, int, int, int]
"""A window in the image: y, x, height and width."""


def random_scene(draw: np.random.Generator) -> Scene:
    """A scene with every attribute drawn uniformly."""
    return Scene(
        product=str(draw.choice(PRODUCTS)),
        colour=str(draw.choice(list(COLOURS))),
        material=str(draw.choice(MATERIALS)),
        backdrop=str(draw.choice(BACKDROPS)),
        seed=int(draw.integers(2**31)),
    )


def single_window(
    draw: np.random.Generator,
    whole_sizes: Mapping[Size, float] = WHOLE_SIZES,
    crop_weight: float = CROP_WEIGHT,
    max_zoom: float = MAX_ZOOM,
) -> tuple[Size, Crop]:
    """An image size and a window in it."""
    kinds = [*whole_sizes, None]
    weights = np.array([*whole_sizes.values(), crop_weight], float)
    kind = kinds[int(draw.choice(len(kinds), p=weights / weights.sum()))]
    if kind is not None:
        return kind, (0, 0, *kind)
    size = _large_size(draw, max_zoom)
    return size, _crop(draw, size)


def _large_size(draw: np.random.Generator, max_zoom: float) -> Size:
    """The size of an image that is larger than the native size."""
    base = list(WHOLE_SIZES)[int(draw.integers(len(WHOLE_SIZES)))]
    zoom = 2.0 ** draw.uniform(0.6, np.log2(max_zoom))
    height, width = (max(DRAWN, round(side * zoom / 8) * 8) for side in base)
    return height, width


def _crop(draw: np.random.Generator, size: Size) -> Crop:
    """A window of the native size, more often near the middle."""
    center = draw.normal(0.5, 0.14, 2) if draw.random() < 0.7 else draw.random(2)
    y, x = (
        int(np.clip(at * side - NATIVE / 2, 0, side - NATIVE)) // 8 * 8
        for at, side in zip(center, size, strict=True)
    )
    return y, x, NATIVE, NATIVE


def add_margin(size: Size, crop: Crop) -> Crop:
    """The area that is drawn for a crop: always of one size, shifted inwards near the edge of the image."""
    if crop[2:] == size:
        return crop
    y, x = (min(max(at - MARGIN, 0), length - DRAWN) for at, length in zip(crop[:2], size, strict=True))
    return y, x, DRAWN, DRAWN


def _random_windows(draw: np.random.Generator, windows: int | None) -> tuple[Size, list[Crop]]:
    """An image size, and `windows` windows in it, or one."""
    if windows is None:
        size, crop = single_window(draw)
        return size, [crop]
    size = _large_size(draw, MAX_ZOOM_OF_WINDOWS)
    return size, [_crop(draw, size) for _ in range(windows)]


def draw_part(out: Path, part: int, count: int, seed: int, windows: int | None = None) -> None:
    """Draw `count` photographs, `windows` of each image if given, and write them grouped by size."""
    draw = np.random.default_rng([seed, part])
    groups: dict[Size, dict[str, list[object]]] = {}
    for _ in range(count // (windows or 1)):
        scene = random_scene(draw)
        (height, width), crops = _random_windows(draw, windows)
        text = json.dumps([caption(scene, draw), scene.product, scene.colour, scene.backdrop])
        for crop in crops:
            drawn = add_margin((height, width), crop)
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
@click.option("--windows", type=int, help="Number of windows of each image, to train cross-window attention.")
def main(out: Path, parts: int, first: int, step: int, count: int, seed: int, windows: int | None) -> None:
    """Draw the training photographs."""
    out.mkdir(parents=True, exist_ok=True)
    for part in range(first, parts, step):
        draw_part(out, part, count, seed, windows)
        click.echo(f"part {part} of {parts}")


if __name__ == "__main__":
    main()
