"""The quality bench's own measures, on pictures whose answer is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bench.quality import object_counter
from bench.quality.measures import band_energies, shift_between, small
from bench.quality.pictures import Cache, cost
from bench.quality.rows import PLAIN, Way, known_ways, prompts
from bench.quality.tables import Eyes, size_lines
from render.builtin.data import NATIVE
from render.builtin.studio import photo
from render.errors import BadInput
from render.models import load_adapter
from render.models.folder import read_model_info, resolve_model


def test_a_patch_is_what_hangs_together() -> None:
    drawn = np.zeros((12, 12), bool)
    drawn[0, :3] = drawn[2, 4] = drawn[10:, 10:] = True
    assert sorted(map(len, object_counter.patches(drawn))) == [4, 4]
    assert object_counter.patches(np.zeros((4, 4), bool)) == []


def test_the_counter_counts_photographs_with_one_product_and_with_two() -> None:
    found = object_counter.shares(object_counter.load_object_counter(), 60, 123)
    assert found["one"] >= 0.95 and found["two"] >= 0.9 and found["grown together"] >= 0.85


def test_an_enlargement_has_no_detail_and_a_photograph_has_that_of_its_kind() -> None:
    scene = prompts(1)[0].scene
    large = photo(scene, 4 * NATIVE, 4 * NATIVE)
    soft = Image.fromarray(small(large, NATIVE)).resize((4 * NATIVE,) * 2, Image.Resampling.BICUBIC)
    energies, none = band_energies(large, NATIVE), band_energies(np.asarray(soft), NATIVE)
    assert len(energies) == 2
    # A bicubic kernel is no ideal filter: what it leaves lies next to the limit, and nothing an octave above.
    assert sum(none) < 0.2 * sum(energies)
    assert none[1] < 0.01 * energies[1]
    assert sum(band_energies(large // 2, NATIVE)) == pytest.approx(sum(energies) / 4, rel=0.1)


@pytest.mark.parametrize("cycles", [80, 150])
def test_a_wave_is_in_its_octave(cycles: int) -> None:
    wave = 127.5 + 100 * np.sin(2 * np.pi * cycles * (np.arange(512) + 0.5) / 512)
    pixels = np.repeat(np.broadcast_to(wave, (512, 512))[..., None], 3, axis=2).astype(np.uint8)
    bands = band_energies(pixels, NATIVE)
    assert bands[int(cycles > 128)] == pytest.approx(5000, rel=0.02)
    assert bands[int(cycles < 128)] < 5


def test_a_shift_is_the_largest_of_one_channel() -> None:
    assert shift_between(np.array([[1.0, 2, 3], [1, 2, 3.5], [0, 2, 3.5]])) == 1.0
    assert shift_between(np.array([[1.0, 2, 3]])) == 0.0


def test_rows_are_this_versions_and_ones_own() -> None:
    ways = known_ways(["mine: strength=0.2, sampler=ddim"])
    assert ways["mine"].changes == {"strength": 0.2, "sampler": "ddim"}
    assert not ways[PLAIN].cascade
    with pytest.raises(BadInput, match="add: 'mine'"):
        known_ways(["mine"])
    assert [each.text for each in prompts(3)] == [each.text for each in prompts(9)[:3]]


def test_a_picture_is_measured_once_and_comes_into_the_table(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    folder = resolve_model("builtin")
    adapter = load_adapter(folder, torch.device("cpu"), "float32", read_model_info(folder))
    cache, (prompt,) = Cache(folder=tmp_path, adapter=adapter, steps=1), prompts(1)
    ways = [known_ways()[name] for name in ("cascade, overlap", PLAIN)]
    native = Way(name="native size")
    for way, times in ((native, 1), (ways[0], 2), (ways[1], 2)):
        assert cache.known(prompt, way, times) is None
        cache.measure(prompt, way, times)
    kept = cache.known(prompt, ways[0], 2)
    assert kept is not None and kept.native.shape == (NATIVE, NATIVE, 3)
    assert len(kept.figures["means"]) == 2 and kept.figures["seams"]["borders"] > 0
    lines = size_lines(cache, ways, native, [prompt], 2, Eyes.open())
    assert [line.split("|")[1].strip() for line in lines[2:]] == [
        "studio photographs, through the autoencoder",
        "native size",
        "the same, enlarged bicubically",
        "cascade, overlap",
        PLAIN,
    ]
    assert len({line.count("|") for line in lines}) == 1
    # Nine windows of a quarter's overlap cover 2.25 times the canvas, at every step.
    assert cost(prompt.spec(ways[1], 2, 25), ways[1], adapter) == 2.25
