"""The three Python entry points, as documented in the README."""

import doctest
import importlib
import io
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import render
from render import CrossSpatialAttention, MiniParallelDiffusion, ParallelizedDiffusionPipeline
from render.errors import BadInput
from render.events import Event, ImageDone, ModelLoaded, StageStarted, StepDone, TilesWritten
from render.models import load_adapter, read_model_info, resolve_model
from render.pipeline import _spec_values
from tests.support.cli import chorale, last_json, wait_until
from tests.support.models import ToyModel


@pytest.mark.parametrize("name", ["render.guidance.cross_spatial_attention", "render.mini"])
def test_the_examples_in_docstrings_run(name: str) -> None:
    failed, tried = doctest.testmod(importlib.import_module(name))
    assert (failed, tried > 0) == (0, True)


def test_the_package_lists_its_public_names_without_loading_torch() -> None:
    program = f"import sys, render; assert 'torch' not in sys.modules; print({sorted(render.__all__)!r})"
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = render.nothing


SMALL = {"width": 128, "height": 128, "steps": 2}


@pytest.fixture(scope="module")
def pipe() -> Iterator[ParallelizedDiffusionPipeline]:
    with ParallelizedDiffusionPipeline("builtin", num_modules=2, tile_size=128) as made:
        made.set_progress_bar_config(disable=True)
        yield made


def group_pids() -> set[int]:
    """Pids of all processes of the groups that this process has started."""
    mark = f"chorale-group-{os.getpid()}-"
    lines = {int(path.parent.name): _command(path) for path in Path("/proc").glob("[0-9]*/cmdline")}
    return {pid for pid, line in lines.items() if mark in line}


def _command(path: Path) -> str:
    try:
        return path.read_bytes().replace(b"\0", b" ").decode()
    except OSError:
        return ""


def test_two_modules_render_what_one_rank_of_the_command_renders(
    pipe: ParallelizedDiffusionPipeline, tmp_path: Path
) -> None:
    events: list[Event] = []
    values = {"resolution": (256, 192), "seed": 3, "steps": 2, "out": tmp_path / "here"}
    image = pipe.generate_image("a red vase", on_event=events.append, **values)
    options = ("a red vase", "--size", "256x192", "--seed", "3", "--steps", "2", "--tile-size", "128")
    there = chorale("render", *options, "--ranks", "1", "--out", str(tmp_path / "there"), "--json")
    assert image.root == last_json(there.stdout)["root"]
    assert {type(event) for event in events} >= {StageStarted, StepDone, TilesWritten, ImageDone}
    pixels = image.pil()
    exported = image.export(tmp_path / "vase.png")
    assert pixels.size == image.size == (256, 192)
    assert Image.open(exported).tobytes() == pixels.tobytes()
    assert Image.open(io.BytesIO(image._repr_png_())).tobytes() == pixels.tobytes()
    assert image.thumbnail(100).size == (64, 48)
    again = pipe.generate_image("a red vase", on_event=pytest.fail, **values)
    assert again.root == image.root
    with pytest.raises(BadInput, match="holds another spec's image"):
        pipe.generate_image("a blue vase", resolution=(256, 192), out=tmp_path / "here")


def test_calls_share_ranks_which_end_with_the_pipeline(tmp_path: Path) -> None:
    others = group_pids()
    pipe = ParallelizedDiffusionPipeline("builtin", num_modules=1)
    pipe.set_progress_bar_config(disable=True)
    loads, seen = [], []

    def render(number: int) -> str:
        def on_event(event: Event) -> None:
            loads.extend([event] * isinstance(event, ModelLoaded))

        return pipe.generate_image("a vase", out=tmp_path / str(number), on_event=on_event, **SMALL).root

    for number in range(2):
        # Each in its own thread: the ranks must not end with the thread that started them.
        with ThreadPoolExecutor(1) as pool:
            seen.append((pool.submit(render, number).result(), group_pids() - others))
    assert len(loads) == 1 and seen[0] == seen[1] and seen[0][1]
    pipe.close()
    wait_until(lambda: group_pids() <= others)


def test_the_ranks_of_a_pipeline_that_is_dropped_end() -> None:
    others = group_pids()
    pipe = ParallelizedDiffusionPipeline("builtin", num_modules=1)
    pipe("a vase", **SMALL)
    assert group_pids() - others
    del pipe
    wait_until(lambda: group_pids() <= others)


def test_a_list_of_prompts_gives_as_many_images(
    pipe: ParallelizedDiffusionPipeline, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts, events = ["a red vase", "a blue vase", "a cup"], list[Event]()
    pipe.set_progress_bar_config()
    both = pipe(prompts, seed=[4, 5, 6], negative_prompt="text", on_event=events.append, **SMALL)
    pipe.set_progress_bar_config(disable=True)
    assert "image 3/3: 100%" in capsys.readouterr().err
    assert [image.size for image in both.images] == [(128, 128)] * 3
    for number in range(3):
        # Two ranks render three images: the first of them the first and the last, which share model calls.
        mine = [event for event in events if event.image == number and not isinstance(event, ModelLoaded)]
        assert {event.rank for event in mine if isinstance(event, StepDone)} == {number % 2}
        assert [event.step for event in mine if isinstance(event, StepDone)] == [1, 2]
        roots = [event.root for event in mine if isinstance(event, ImageDone)]
        assert roots == [both.manifests[number].root]
    generator = torch.Generator().manual_seed(5)
    alone = pipe("a blue vase", generator=generator, negative_prompt="text", output_type="np", **SMALL)
    assert alone.images.shape == (1, 128, 128, 3) and alone.images.dtype == np.float32
    assert np.array_equal(np.rint(alone.images[0] * 255), np.asarray(both.images[1], np.float32))
    assert alone.manifests[0].root == both.manifests[1].root != both.manifests[0].root


def test_an_init_image_may_be_a_pil_image_and_steps_are_reported(
    pipe: ParallelizedDiffusionPipeline, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = Image.new("RGB", (128, 128), (200, 40, 40))
    source.save(tmp_path / "red.png")
    calls: list[tuple[int, float, dict[str, Any]]] = []
    values = {"width": 128, "height": 128, "num_inference_steps": 4, "strength": 0.5}
    pipe.set_progress_bar_config()
    first = pipe(
        "a red vase",
        init=source,
        callback_on_step_end=lambda caller, step, timestep, kwargs: calls.append((step, timestep, kwargs)),
        **values,
    )
    pipe.set_progress_bar_config(disable=True)
    assert [step for step, _, _ in calls] == [0, 1]
    assert calls[0][1] > calls[1][1] > 0
    assert "2/2" in capsys.readouterr().err
    second = pipe("a red vase", init=tmp_path / "red.png", **values)
    assert first.manifests[0].root == second.manifests[0].root


def test_latents_are_what_the_stock_autoencoder_takes(pipe: ParallelizedDiffusionPipeline) -> None:
    latents = pipe("a red vase", output_type="latent", **SMALL).images
    assert latents.shape == (1, 16, 16, 16) and latents.dtype == torch.float32
    folder = resolve_model("builtin")
    adapter = load_adapter(folder, torch.device("cpu"), "float32", read_model_info(folder))
    pixels = adapter.decode(latents)[0].movedim(0, 2).numpy()
    image = pipe("a red vase", output_type="np", **SMALL).images[0]
    assert np.abs(pixels - image).max() < 0.02


def test_an_error_in_a_callback_ends_the_ranks(pipe: ParallelizedDiffusionPipeline) -> None:
    def stop(*step: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pipe("a vase", callback_on_step_end=stop, **SMALL)
    wait_until(lambda: not group_pids())


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"width": 513}, "width"),
        (
            {"num_inference_step": 5},
            "keyword: 'num_inference_step' is unknown; did you mean num_inference_steps",
        ),
        ({"steps": 4, "num_inference_steps": 4}, "num_inference_steps: 4 and steps are both given"),
        ({"seed": 1, "generator": torch.Generator()}, "generator: .* and seed are both given"),
        ({"seed": [1, 2]}, r"seed: \[1, 2\] has 2 values for 1 prompts"),
        ({"output_type": "jpg"}, "output_type: 'jpg' is unknown; use pil, np or latent"),
        ({"width": 32768, "height": 32768}, "width: 32768 makes an image of 32768x32768 px"),
    ],
)
def test_bad_values_are_refused_before_a_process_starts(options: dict[str, Any], text: str) -> None:
    pipe = ParallelizedDiffusionPipeline(num_modules=1)
    with pytest.raises(BadInput, match=text):
        pipe("a vase", **options)
    assert pipe._ranks._group is None


def test_a_bad_number_of_modules_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="num_modules: 0"):
        ParallelizedDiffusionPipeline(num_modules=0)
    with pytest.raises(BadInput, match="width"):
        ParallelizedDiffusionPipeline().generate_image("a vase", resolution=(513, 512), out=tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_the_default_size_is_1024_by_1024(tmp_path: Path) -> None:
    pipe = ParallelizedDiffusionPipeline(num_modules=1)
    spec = pipe._job("a vase", {}, tmp_path).spec
    assert (spec.width, spec.height) == (1024, 1024)


def test_attention_reduces_differences_between_tiles_and_keeps_their_detail() -> None:
    tiles = torch.randn((4, 8, 16, 16)) + torch.randn((4, 8, 1, 1)) * 0.3
    layer = CrossSpatialAttention(channels=8, cells=1, strength=0.5)
    synced = layer.sync(tiles)
    means, moved = tiles.mean((2, 3)), synced.mean((2, 3))
    assert moved.std(0).mean() < means.std(0).mean()
    assert torch.allclose(synced - moved[:, :, None, None], tiles - means[:, :, None, None], atol=1e-5)
    assert layer.sync(tiles, strength=0.0) is tiles


def test_attention_does_not_depend_on_the_order_of_the_tiles() -> None:
    tiles, order = torch.randn((6, 8, 8, 8)), torch.randperm(6)
    layer = CrossSpatialAttention(channels=8)
    assert torch.allclose(layer.sync(tiles)[order], layer.sync(tiles[order]), atol=1e-6)


@pytest.mark.parametrize(
    "values", [{"channels": 0}, {"channels": 4, "cells": 0}, {"channels": 4, "strength": 2.0}]
)
def test_invalid_attention_values_are_refused(values: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"must be|is not from"):
        CrossSpatialAttention(**values)  # type: ignore[arg-type]


def test_the_mini_version_takes_any_adapter_and_is_deterministic() -> None:
    mini = MiniParallelDiffusion(ToyModel(), num_tiles=9)
    one, two = (mini.generate("a red vase", steps=3, seed=5) for _ in range(2))
    assert one.size == (320, 320)
    assert one.tobytes() == two.tobytes() != mini.generate("a red vase", steps=3, seed=6).tobytes()
    with pytest.raises(ValueError, match="square"):
        MiniParallelDiffusion(ToyModel(), num_tiles=5)


def test_the_readmes_python_runs(tmp_path: Path) -> None:
    readme = (Path(__file__).parent.parent.parent / "README.md").read_text(encoding="utf-8")
    (program,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    small = program.replace("width=1024, height=768", "width=256, height=192, num_inference_steps=1")
    assert small != program
    subprocess.run([sys.executable, "-c", small], check=True, cwd=tmp_path, capture_output=True)
    assert {path.name for path in tmp_path.iterdir()} == {"vase.png"}


def test_references_are_pictures_or_paths(tmp_path: Path) -> None:
    picture = Image.new("RGB", (16, 8), "red")
    values = _spec_values({"prompt": "x", "reference": [picture, "photo.png"]}, tmp_path)
    stored, path = values["reference"]
    with Image.open(stored) as found:
        assert path == "photo.png" and found.tobytes() == picture.tobytes()
