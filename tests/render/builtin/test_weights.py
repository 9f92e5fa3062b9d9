"""The built-in weights: small, safe, complete, and a true SDXL folder."""

from pathlib import Path

import numpy as np
import torch
from diffusers import StableDiffusionXLPipeline

from render.builtin import WEIGHTS
from render.builtin.data import random_scene
from render.builtin.judge import is_correct, load_judge, prompt_of
from render.builtin.studio import photo
from render.models.folder import read_model_info

HERE = Path(__file__).parents[3] / "render" / "builtin"


def test_the_weights_are_small_and_safe() -> None:
    files = [path for path in HERE.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    assert sum(path.stat().st_size for path in files) <= 16 * 10**6
    assert {path.suffix for path in WEIGHTS.rglob("*") if path.is_file()} <= {".json", ".safetensors"}


def test_facts() -> None:
    info = read_model_info(WEIGHTS)
    assert (info.family, info.native_size, info.scale_factor) == ("sdxl", 128, 8)
    assert info.zoom_limit == 32


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
