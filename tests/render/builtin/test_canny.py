"""The example's ControlNet: the product is drawn where the edges of the control picture are."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from render import ParallelizedDiffusionPipeline
from render.builtin.studio import Scene, mask, photo
from render.builtin.train_controlnet import edges

FOLDER = Path(__file__).parents[3] / "examples" / "canny"
SIDE, LEAST_SATURATION = 256, 0.35
SCENES = (
    Scene(product="bowl", colour="red", material="ceramic", backdrop="studio", seed=3),
    Scene(product="vase", colour="blue", material="ceramic", backdrop="studio", seed=5),
    Scene(product="bottle", colour="yellow", material="ceramic", backdrop="studio", seed=8),
)


@pytest.fixture(scope="module")
def pipeline() -> Iterator[ParallelizedDiffusionPipeline]:
    with ParallelizedDiffusionPipeline("builtin", num_modules=1) as found:
        yield found


def overlap(image: Image.Image, product: NDArray[np.bool_]) -> float:
    """Intersection over union of what is colored in an image and a product: its backdrop is gray."""
    pixels = np.asarray(image).astype(float)
    high, low = pixels.max(axis=2), pixels.min(axis=2)
    colored = (high - low) / np.maximum(high, 1) > LEAST_SATURATION
    return float((colored & product).sum() / (colored | product).sum())


def test_what_is_drawn_follows_the_edges(pipeline: ParallelizedDiffusionPipeline, tmp_path: Path) -> None:
    found = []
    for number, scene in enumerate(SCENES):
        drawn = edges(photo(scene, SIDE, SIDE))
        Image.fromarray((drawn * 255).astype(np.uint8)).save(tmp_path / f"{number}.png")
        prompt = f"a {scene.colour} {scene.product} on a studio background"
        size = {"width": SIDE, "height": SIDE, "num_inference_steps": 15, "seed": 4}
        steered = {"controlnet": [str(FOLDER)], "control": [f"canny={tmp_path / f'{number}.png'}"]}
        product = mask(scene, SIDE, SIDE)
        pair = [overlap(pipeline(prompt, **size, **more).images[0], product) for more in ({}, steered)]
        found.append(pair)
    plain, followed = np.mean(found, axis=0)
    assert followed > 0.85 > plain
