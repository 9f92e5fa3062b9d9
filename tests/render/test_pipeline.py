"""The three Python faces, as the README documents them."""

import doctest
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import render
from render import CrossSpatialAttention, MiniParallelDiffusion, ParallelizedDiffusionPipeline
from render.errors import BadInput
from tests.support.cli import chorale, last_json
from tests.support.models import ToyModel


@pytest.mark.parametrize("name", ["render.guidance.cross_spatial_attention", "render.mini"])
def test_the_examples_in_docstrings_run(name: str) -> None:
    failed, tried = doctest.testmod(importlib.import_module(name))
    assert (failed, tried > 0) == (0, True)


def test_the_package_names_its_faces_without_loading_torch() -> None:
    program = f"import sys, render; assert 'torch' not in sys.modules; print({sorted(render.__all__)!r})"
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = render.nothing


def test_two_modules_render_what_one_rank_of_the_command_renders(tmp_path: Path) -> None:
    pipeline = ParallelizedDiffusionPipeline("builtin", num_modules=2, tile_size=128)
    kinds: list[str] = []
    image = pipeline.generate_image(
        "a red vase",
        resolution=(256, 192),
        seed=3,
        steps=2,
        out=tmp_path / "here",
        on_event=lambda event: kinds.append(event.kind),
    )
    words = ("a red vase", "--size", "256x192", "--seed", "3", "--steps", "2", "--tile-size", "128")
    there = chorale("render", *words, "--ranks", "1", "--out", str(tmp_path / "there"), "--json")
    assert image.root == last_json(there.stdout)["root"]
    assert set(kinds) >= {"stage_started", "step_done", "image_done"}
    picture = image.pil()
    exported = image.export(tmp_path / "vase.png")
    from PIL import Image

    assert picture.size == image.size == (256, 192)
    assert Image.open(exported).tobytes() == picture.tobytes()
    again = pipeline.generate_image(
        "a red vase", resolution=(256, 192), seed=3, steps=2, out=tmp_path / "here", on_event=pytest.fail
    )
    assert again.root == image.root
    with pytest.raises(BadInput, match="holds another spec's image"):
        pipeline.generate_image("a blue vase", resolution=(256, 192), out=tmp_path / "here")


def test_bad_values_are_refused_before_a_process_starts(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="num_modules: 0"):
        ParallelizedDiffusionPipeline(num_modules=0)
    with pytest.raises(BadInput, match="width: 513"):
        ParallelizedDiffusionPipeline().generate_image("a vase", resolution=(513, 512), out=tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_tiles_that_listen_draw_together_and_keep_their_detail() -> None:
    tiles = torch.randn((4, 8, 16, 16)) + torch.randn((4, 8, 1, 1)) * 0.3
    layer = CrossSpatialAttention(channels=8, cells=1, strength=0.5)
    heard = layer.sync(tiles)
    means, moved = tiles.mean((2, 3)), heard.mean((2, 3))
    assert moved.std(0).mean() < means.std(0).mean()
    assert torch.allclose(heard - moved[:, :, None, None], tiles - means[:, :, None, None], atol=1e-5)
    assert layer.sync(tiles, strength=0.0) is tiles


def test_listening_does_not_depend_on_the_order_of_the_tiles() -> None:
    tiles, order = torch.randn((6, 8, 8, 8)), torch.randperm(6)
    layer = CrossSpatialAttention(channels=8)
    assert torch.allclose(layer.sync(tiles)[order], layer.sync(tiles[order]), atol=1e-6)


@pytest.mark.parametrize(
    "values", [{"channels": 0}, {"channels": 4, "cells": 0}, {"channels": 4, "strength": 2.0}]
)
def test_attention_that_cannot_be_is_refused(values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"must be|is not from"):
        CrossSpatialAttention(**values)  # type: ignore[arg-type]


def test_the_mini_version_takes_any_adapter_and_repeats_itself() -> None:
    mini = MiniParallelDiffusion(ToyModel(), num_tiles=9)
    one, two = (mini.generate("a red vase", steps=3, seed=5) for _ in range(2))
    assert one.size == (320, 320)
    assert one.tobytes() == two.tobytes() != mini.generate("a red vase", steps=3, seed=6).tobytes()
    with pytest.raises(ValueError, match="square"):
        MiniParallelDiffusion(ToyModel(), num_tiles=5)


def test_the_readmes_python_runs(tmp_path: Path) -> None:
    readme = (Path(__file__).parent.parent.parent / "README.md").read_text(encoding="utf-8")
    (program,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    small = program.replace("(1024, 768), seed=7", "(256, 192), steps=1").replace("steps=20", "steps=2")
    assert small != program
    subprocess.run([sys.executable, "-c", small], check=True, cwd=tmp_path, capture_output=True)
    assert {path.name for path in tmp_path.iterdir()} == {"out", "vase.png", "mini.png"}
