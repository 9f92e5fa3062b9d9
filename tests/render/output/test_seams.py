"""The seam score detects a seam of two gray levels, and none where there is none."""

import numpy as np
import pytest

from render.output.seams import score_image

BORDERS = [96, 192, 288, 384]


def photograph(seed: int) -> np.ndarray:
    """Smooth shapes with grain, 512 x 512."""
    draw = np.random.default_rng(seed)
    y, x = np.mgrid[0:512, 0:512] / 512
    waves = sum(
        np.sin(draw.uniform(2, 20) * x + draw.uniform(2, 20) * y + draw.uniform(0, 6)) for _ in range(6)
    )
    return np.clip(128 + 15 * waves[..., None] + draw.normal(0, 2, (512, 512, 3)), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("seed", range(5))
def test_an_image_without_seams_passes(seed: int) -> None:
    assert score_image(photograph(seed), BORDERS, BORDERS, 128).passes


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("levels", [2, -2])
def test_an_added_seam_fails(seed: int, levels: int) -> None:
    image = photograph(seed).astype(int)
    image[:, 192:] += levels
    score = score_image(np.clip(image, 0, 255).astype(np.uint8), BORDERS, BORDERS, 128)
    assert not score.passes


@pytest.mark.parametrize("levels", [2, -2])
def test_an_added_seam_in_a_coarse_texture_fails_by_its_sign(levels: int) -> None:
    draw = np.random.default_rng(3)
    image = 128 + draw.normal(0, 5, (512, 512, 3))
    assert score_image(image.astype(np.uint8), BORDERS, BORDERS, 128).passes
    image[192:] += levels
    score = score_image(image.astype(np.uint8), BORDERS, BORDERS, 128)
    assert score.ratio < 1.05 and score.worst < 1.1, "the texture hides the mean absolute difference"
    assert not score.passes


def test_an_image_of_one_window_has_no_seams() -> None:
    score = score_image(photograph(0), [0, 512], [0, 512], 512)
    assert score.borders == 0
    assert score.passes
