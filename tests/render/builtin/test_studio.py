"""The studio: the same scene at any crop, captions that say what is there."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from render.builtin.captions import caption
from render.builtin.studio import (
    BACKDROPS,
    COLOURS,
    MATERIALS,
    MOST_PRODUCTS,
    PRODUCTS,
    Scene,
    mask,
    photo,
)

SCENES = st.builds(
    Scene,
    product=st.sampled_from(PRODUCTS),
    colour=st.sampled_from(list(COLOURS)),
    material=st.sampled_from(MATERIALS),
    backdrop=st.sampled_from(BACKDROPS),
    seed=st.integers(0, 2**31 - 1),
)


@settings(max_examples=25)
@given(SCENES, st.integers(0, 60), st.integers(0, 100), st.sampled_from([(96, 160), (160, 96), (128, 128)]))
def test_a_crop_is_the_crop_of_the_whole(scene: Scene, y: int, x: int, size: tuple[int, int]) -> None:
    height, width = size
    y, x = min(y, height - 32), min(x, width - 32)
    whole = photo(scene, height, width)
    part = photo(scene, height, width, (y, x, 32, 32))
    # Vectorised sines round their last bit differently at other lengths; a grey level is one of 255.
    assert np.abs(whole[y : y + 32, x : x + 32].astype(int) - part).max() <= 1


@settings(max_examples=25)
@given(SCENES)
def test_the_product_stands_inside_the_picture(scene: Scene) -> None:
    seen = mask(scene, 128, 128)
    assert 0.03 < seen.mean() < 0.5
    assert not (seen[0].any() or seen[-1].any() or seen[:, 0].any() or seen[:, -1].any())


@settings(max_examples=10)
@given(SCENES)
def test_a_larger_picture_shows_the_same_scene(scene: Scene) -> None:
    small, large = photo(scene, 96, 96).astype(int), photo(scene, 384, 384).astype(int)
    reduced = large.reshape(96, 4, 96, 4, 3).mean((1, 3))
    assert np.abs(small - reduced).mean() < 6


@pytest.mark.parametrize("material", MATERIALS)
def test_zooming_in_shows_new_detail(material: str) -> None:
    scene = Scene(product="ball", colour="green", material=material, backdrop="studio", seed=3)
    part = photo(scene, 2048, 2048, (1100, 960, 128, 128)).astype(float)
    assert part.std(axis=(0, 1)).max() > 2


@settings(max_examples=50)
@given(SCENES, st.integers(0, 1000))
def test_captions_tell_the_truth(scene: Scene, seed: int) -> None:
    words = caption(scene, np.random.default_rng(seed)).split()
    assert scene.colour in words
    assert scene.product in words
    assert not (set(words) & (set(PRODUCTS) - {scene.product}))


@settings(max_examples=30)
@given(SCENES, st.integers(2, MOST_PRODUCTS), st.sampled_from([(128, 128), (96, 160), (160, 96)]))
def test_several_products_stand_apart_inside_the_picture(
    scene: Scene, count: int, size: tuple[int, int]
) -> None:
    seen = mask(replace(scene, count=count), *size)
    assert not (seen[0].any() or seen[-1].any() or seen[:, 0].any() or seen[:, -1].any())
    columns = np.pad(seen.any(0).astype(int), 1)
    assert (np.diff(columns) == 1).sum() == count


@pytest.mark.parametrize(("backdrop", "bright"), [("white", True), ("black", False)])
def test_plain_backdrops_are_plain(backdrop: str, bright: bool) -> None:
    scene = Scene(product="ball", colour="red", material="ceramic", backdrop=backdrop, seed=4)
    top = photo(scene, 128, 128)[:20].astype(float)
    assert top.std() < 6
    assert (top.mean() > 225) if bright else (top.mean() < 30)
