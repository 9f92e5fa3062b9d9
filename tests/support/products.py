"""Product pictures for tests: a studio photograph, its exact mask, and the product cut out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from render.builtin.studio import Scene, _render

VASE = Scene(product="vase", colour="red", material="ceramic", backdrop="studio", seed=100)


def save_product(folder: Path, height: int, width: int, scene: Scene = VASE) -> tuple[Path, Path, Path]:
    """(photograph, mask, cut-out): PNG files. The mask is white around the product."""
    colors, cover = _render(scene, height, width, None)
    photo, alpha = ((np.clip(each, 0, 1) * 255 + 0.5).astype(np.uint8) for each in (colors, cover))
    paths = tuple(folder / f"{name}.png" for name in ("photo", "mask", "cut"))
    for path, pixels in zip(paths, (photo, 255 - alpha, np.dstack([photo, alpha])), strict=True):
        Image.fromarray(pixels).save(path)
    return paths[0], paths[1], paths[2]
