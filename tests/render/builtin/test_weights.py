"""The built-in weights: small, safe, complete, and true folders of SDXL and of Z-Image."""

import json
from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionXLPipeline

from render.builtin import WEIGHTS, dit_data, dit_judge
from render.builtin.data import random_scene
from render.builtin.dit_folder import GUIDANCE_SCALE
from render.builtin.judge import is_correct, load_judge, prompt_of
from render.builtin.studio import photo
from render.builtin.wording import wording
from render.distributed import Group, SingleRankGroup
from render.engine import render_image
from render.models import load_adapter
from render.models.folder import read_model_info, resolve_model
from render.models.packaged import packaged_models
from render.spec import Spec
from tests.support.groups import run_ranks
from tests.support.sinks import MemorySink

HERE = Path(__file__).parents[3] / "render" / "builtin"


def test_the_weights_are_small_and_safe() -> None:
    files = [path for path in HERE.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert sum(path.stat().st_size for path in files) <= 32 * 10**6
    assert {path.suffix for path in WEIGHTS.rglob("*") if path.is_file()} <= {".json", ".safetensors"}
    flow = {path.suffix for path in resolve_model("builtin-dit").rglob("*") if path.is_file()}
    assert flow <= {".json", ".safetensors", ".jinja"}


def test_the_configurations_name_no_folder_of_the_machine_that_wrote_them() -> None:
    for model in packaged_models():
        for config in resolve_model(model).rglob("*.json"):
            assert "_name_or_path" not in json.loads(config.read_text()), config


def test_facts() -> None:
    info, flow = read_model_info(WEIGHTS), read_model_info(resolve_model("builtin-dit"))
    assert (info.family, info.native_size, info.scale_factor) == ("sdxl", 128, 8)
    assert info.zoom_limit == 32
    assert (flow.family, flow.native_size, flow.scale_factor) == ("z-image", 128, 8)


def test_the_judge_knows_studio_photographs() -> None:
    draw = np.random.default_rng(12_345)
    scenes = [random_scene(draw) for _ in range(100)]
    correct = is_correct(load_judge(), np.stack([photo(scene, 128, 128) for scene in scenes]), scenes)
    assert all(rate.mean() >= 0.97 for rate in correct.values())


def test_stock_diffusers_loads_and_renders() -> None:
    torch.set_num_threads(1)
    pipeline = StableDiffusionXLPipeline.from_pretrained(WEIGHTS, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    draw = np.random.default_rng(5)
    scenes = [random_scene(draw) for _ in range(8)]
    answer = pipeline(
        [prompt_of(scene) for scene in scenes],
        width=128,
        height=128,
        num_inference_steps=12,
        guidance_scale=2.0,
        generator=torch.Generator().manual_seed(0),
        output_type="np",
    )
    correct = is_correct(load_judge(), (answer.images * 255).round().astype(np.uint8), scenes)
    # Guessing would be right in a sixth of the cases.
    assert np.mean([rate.mean() for rate in correct.values()]) >= 0.6, "prompts are followed"


def test_the_flow_transformer_follows_natural_wording() -> None:
    torch.set_num_threads(1)
    draw = np.random.default_rng(6)
    scenes = [dit_data.random_scene(draw) for _ in range(12)]
    captions = [wording(scene, draw, complete=True) for scene in scenes]
    pixels = dit_judge.rendered(resolve_model("builtin-dit"), captions, 12, GUIDANCE_SCALE, 1, len(captions))
    correct = dit_judge.is_correct(dit_judge.load_judge(), pixels, scenes)
    assert all(rate.mean() >= 0.6 for rate in correct.values()), "prompts are followed"


def test_a_picture_of_the_flow_transformer_has_one_root_on_any_number_of_ranks() -> None:
    folder, cpu = resolve_model("builtin-dit"), torch.device("cpu")
    spec = Spec(prompt="two green bottles on wood", model="builtin-dit", width=256, height=192, steps=2)

    # Loaded one after another: diffusers' loading is not made for threads.
    adapters = [load_adapter(folder, cpu, "float32", read_model_info(folder)) for _ in range(3)]

    def root(group: Group) -> str:
        return render_image(spec, adapters[group.rank], group, MemorySink(), device=cpu).root

    assert set(run_ranks(3, root)) == {root(SingleRankGroup())}
