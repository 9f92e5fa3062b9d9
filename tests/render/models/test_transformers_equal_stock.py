"""Each transformer family at native size in one window equals the stock diffusers pipeline."""

from __future__ import annotations

import json
import shutil
from functools import lru_cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from render.canvas import Canvas
from render.denoise.stage_loop import StageLoop
from render.denoise.stage_models import assign_models
from render.distributed import SingleRankGroup
from render.errors import BadInput, ModelNotUsable
from render.models import load_adapter
from render.models.folder import absent_parts, read_model_info
from render.models.qwen_image21 import TextProcessor
from render.models.transformer import pack
from render.plan.plan import StagePlan
from render.plan.stages import make_stages
from render.spec import Spec
from tests.render.models.tiny_transformers import BUILDERS, EDITORS, INPAINTERS, native_size, save

PROMPT, NEGATIVE = "a red vase", "blue"
STEPS = 3
PACKED = (
    *("flux", "flux-schnell", "flux-kontext", "chroma", "krea2"),
    *("qwen-image", "qwen-image-edit", "qwen-image-edit-plus"),
)
"""Their pipelines take and return tokens of 2x2 latents where the others have latents."""
FLAT = ("flux2", "qwen-image-2.1")
"""Theirs return latents as tokens."""
FLAT_NOISE = "qwen-image-2.1"
"""Its pipeline takes them so, too."""
UNSCALED = ("flux2-klein", "flux2-klein-distilled")
"""Theirs return latents in the scale of the autoencoder."""


class Case:
    """How the stock pipeline of a family is called for a guidance scale of ours."""

    def __init__(self, name: str, guidance: float, sampler: str = "euler", **arguments: Any) -> None:
        self.name, self.guidance, self.sampler, self.arguments = name, guidance, sampler, arguments


CASES = (
    Case("flux", 3.5, guidance_scale=3.5),
    Case("flux-schnell", 1.0),
    Case("flux-schnell", 3.0, true_cfg_scale=3.0, negative_prompt=NEGATIVE),
    Case("flux-kontext", 3.5, guidance_scale=3.5, max_area=64 * 64),
    Case("sd3", 4.0, guidance_scale=4.0, negative_prompt=NEGATIVE),
    Case("sd3", 1.0, guidance_scale=1.0),
    Case("sd3-without-t5", 4.0, guidance_scale=4.0, negative_prompt=NEGATIVE),
    Case("z-image", 3.0, guidance_scale=3.0, negative_prompt=NEGATIVE),
    Case("z-image", 0.0, guidance_scale=0.0),
    Case("qwen-image", 4.0, true_cfg_scale=4.0, negative_prompt=NEGATIVE),
    Case("qwen-image", 1.0, true_cfg_scale=1.0),
    Case("chroma", 4.0, guidance_scale=4.0, negative_prompt=NEGATIVE),
    Case("chroma", 1.0, guidance_scale=1.0),
    Case("flux2", 4.0, guidance_scale=4.0),
    Case("flux2-klein", 4.0, guidance_scale=4.0),
    Case("flux2-klein-distilled", 4.0, guidance_scale=4.0),
    Case("krea2", 3.0, guidance_scale=3.0, negative_prompt=NEGATIVE),
    Case("krea2", 0.0, guidance_scale=0.0),
    Case("lumina2", 4.0, guidance_scale=4.0, negative_prompt=NEGATIVE),
    Case("lumina2", 1.0, guidance_scale=1.0),
    Case("qwen-image-2.1", 4.0, true_cfg_scale=4.0, negative_prompt=NEGATIVE, use_kv_cache=False),
    Case("qwen-image-2.1", 1.0, true_cfg_scale=1.0),
    Case("hunyuan-image", 4.0, negative_prompt=NEGATIVE),
    Case("hunyuan-image-unguided", 1.0),
    Case("sana", 4.0, "dpmpp-2m", guidance_scale=4.0, negative_prompt=NEGATIVE, use_resolution_binning=False),
    Case("sana", 1.0, "dpmpp-2m", guidance_scale=1.0, use_resolution_binning=False),
    Case(
        "sana-sprint",
        4.5,
        "lcm",
        guidance_scale=4.5,
        intermediate_timesteps=None,
        use_resolution_binning=False,
    ),
    Case(
        "pixart-sigma",
        4.0,
        "dpmpp-2m",
        guidance_scale=4.0,
        negative_prompt=NEGATIVE,
        use_resolution_binning=False,
        clean_caption=False,
    ),
    Case(
        "pixart-sigma",
        1.0,
        "dpmpp-2m",
        guidance_scale=1.0,
        use_resolution_binning=False,
        clean_caption=False,
    ),
)


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("transformers")


@lru_cache
def folder_of(root: Path, name: str) -> Path:
    return save(name, root / name)


@lru_cache
def stock_of(folder: Path) -> Any:
    absent: dict[str, Any] = dict.fromkeys(absent_parts(folder))
    if (folder / "processor").is_dir():
        absent["processor"] = TextProcessor.from_folder(folder / "processor")
    pipeline = DiffusionPipeline.from_pretrained(
        folder, use_safetensors=True, local_files_only=True, **absent
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@lru_cache
def loaded(folder: Path) -> Any:
    return load_adapter(folder, torch.device("cpu"), "float32")


def unit_noise(adapter: Any) -> Tensor:
    side = adapter.info.native_size // adapter.info.scale_factor
    shape = (1, adapter.info.latent_channels, side, side)
    return torch.randn(shape, generator=torch.Generator().manual_seed(7))


def our_latents(adapter: Any, case: Case, **values: Any) -> Tensor:
    """The engine's own loop with one window, with the stock pipeline's noise instead of the engine's.

    `values` are further ones of the spec.
    """
    side = adapter.info.native_size
    spec = Spec(
        prompt=PROMPT,
        negative_prompt=case.arguments.get("negative_prompt", ""),
        width=side,
        height=side,
        steps=STEPS,
        guidance_scale=case.guidance,
        sampler=case.sampler,
        **values,
    )
    (stage,) = make_stages(spec, adapter.info)
    assert stage.grid.windows == 1
    (model,) = assign_models(spec, (stage,), adapter, None)
    loop = StageLoop(
        plan=StagePlan(spec=spec, info=adapter.info, stage=stage),
        schedule=model.schedule,
        adapter=adapter,
        texts=model.texts,
        device=torch.device("cpu"),
    )
    noise, generator = unit_noise(adapter), torch.Generator().manual_seed(3)
    draw = patch(
        "render.sampling.noise.normal", lambda *_: torch.randn(noise.shape, generator=generator)[0].numpy()
    )
    with draw:
        start = Canvas(step=0, planes=noise * model.schedule.initial_scale, area=stage.grid.whole)
        canvas = loop.run(start, SingleRankGroup()).gather()
    return canvas.latents[None] * model.schedule.final_scale


def stock_output(pipeline: Any, case: Case, noise: Tensor, output_type: str) -> Tensor:
    side = native_size(case.name)
    return pipeline(
        prompt=PROMPT,
        height=side,
        width=side,
        num_inference_steps=STEPS,
        latents=as_given(case, noise),
        generator=torch.Generator().manual_seed(3),
        output_type=output_type,
        **case.arguments,
    ).images


def as_given(case: Case, noise: Tensor) -> Tensor:
    """Noise in the form in which the stock pipeline takes it."""
    if case.name == FLAT_NOISE:
        return noise.flatten(2).transpose(1, 2)
    return pack(noise) if case.name in PACKED else noise.clone()


def as_returned(case: Case, adapter: Any, latents: Tensor) -> Tensor:
    """Latents of the canvas in the form in which the stock pipeline returns them."""
    if case.name in PACKED:
        return pack(latents)
    if case.name in FLAT:
        return latents.flatten(2).transpose(1, 2)
    unscaled: Tensor = adapter.autoencoder._unscaled(latents) if case.name in UNSCALED else latents
    return unscaled


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.name}-{case.guidance}")
def test_latents_and_pixels_equal_those_of_the_stock_pipeline(root: Path, case: Case) -> None:
    folder = folder_of(root, case.name)
    adapter, pipeline = loaded(folder), stock_of(folder)
    ours, noise = our_latents(adapter, case), unit_noise(adapter)
    theirs = stock_output(pipeline, case, noise, "latent")
    assert theirs.std() > 0.1 and ours.isfinite().all()
    assert (as_returned(case, adapter, ours) - theirs).abs().max() <= 1e-5 * max(1.0, float(theirs.std()))
    pixels = stock_output(pipeline, case, noise, "pt")[:, :3]  # Qwen-Image 2.1 has an alpha channel
    assert (adapter.decode(ours) - pixels).abs().max() <= 1 / 255


def test_every_family_with_a_transformer_is_tested() -> None:
    from render.models.registry import FAMILIES

    families = {family.name for family in FAMILIES.values() if family.network == "transformer"}
    # Those that need a picture are in test_references.py.
    assert families <= {*BUILDERS, *EDITORS, *INPAINTERS}
    assert {case.name for case in CASES} == set(BUILDERS)


@pytest.mark.parametrize("size", [True, "64", 0, 63])
def test_a_native_size_that_is_not_whole_tokens_is_refused(root: Path, tmp_path: Path, size: object) -> None:
    folder = Path(shutil.copytree(folder_of(root, "flux"), tmp_path / "model"))
    index = json.loads((folder / "model_index.json").read_text()) | {"_native_size": size}
    (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ModelNotUsable, match=r"_native_size .* must be a multiple of 16"):
        read_model_info(folder)


@pytest.mark.parametrize("key", ["use_meanflow", "guidance_embeds"])
def test_a_network_that_takes_other_inputs_is_refused(root: Path, tmp_path: Path, key: str) -> None:
    folder = Path(shutil.copytree(folder_of(root, "hunyuan-image"), tmp_path / "model"))
    config = json.loads((folder / "transformer/config.json").read_text()) | {key: True}
    (folder / "transformer/config.json").write_text(json.dumps(config))
    with pytest.raises(ModelNotUsable, match=f"has {key} True in transformer/config.json; use a model"):
        read_model_info(folder)


def test_sides_that_are_not_whole_latents_are_refused(root: Path) -> None:
    info = read_model_info(folder_of(root, "sana"))
    with pytest.raises(BadInput, match="width: 136 is not a multiple of 32, which m needs; use 128"):
        make_stages(Spec(prompt="x", model="m", width=136, height=128, sampler="dpmpp-2m"), info)


def test_a_window_never_exceeds_the_table_of_positions(root: Path) -> None:
    info = read_model_info(folder_of(root, "sd3"))
    (stage,) = make_stages(Spec(prompt="x", width=136, height=48), info)
    assert info.longest_window == 128 and stage.grid.cols.window <= 16
