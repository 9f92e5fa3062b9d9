"""At native size with one window, an adapter and the engine's loop equal the stock diffusers pipeline."""

from __future__ import annotations

import json
import shutil
from functools import lru_cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import diffusers
import pytest
import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from render.canvas import Canvas
from render.denoise.stage_loop import StageLoop
from render.distributed import SingleRankGroup
from render.errors import ModelNotUsable
from render.models import WindowPlace, load_adapter
from render.models import folder as folder_module
from render.models.references import seeing
from render.plan.plan import StagePlan
from render.plan.stages import make_stages
from render.sampling.diffusers_schedule import noise_schedule, stock_scheduler
from render.sampling.registry import SAMPLERS
from render.spec import Spec

KINDS = ("sd-epsilon", "sd-v", "sdxl", "sdxl-second-only")
PROMPT, NEGATIVE = "a red vase", "blue"
PLACE = WindowPlace(image_height=64, image_width=64, pixel_y=0, pixel_x=0, height=64, width=64)


def stock(folder: Path, sampler: str, **scheduler_config: Any) -> Any:
    pipeline = stock_loaded(folder)
    original = DiffusionPipeline.load_config(folder)["scheduler"][1]
    config = dict(getattr(diffusers, original).load_config(folder / "scheduler")) | scheduler_config
    pipeline.scheduler = stock_scheduler(config | {"_class_name": original}, sampler)
    return pipeline


@lru_cache
def stock_loaded(folder: Path) -> Any:
    pipeline = DiffusionPipeline.from_pretrained(
        folder, use_safetensors=True, local_files_only=True, low_cpu_mem_usage=False
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@lru_cache
def loaded(folder: Path) -> Any:
    return load_adapter(folder, torch.device("cpu"), "float32")


def unit_noise() -> Tensor:
    return torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(7))


def our_latents(
    adapter: Any, schedule: Any, sampler: str, guidance: float, negative: str, **values: Any
) -> Tensor:
    """The engine's own loop with one window, with the stock pipeline's noise instead of the engine's."""
    spec = Spec(
        prompt=PROMPT,
        negative_prompt=negative,
        width=64,
        height=64,
        steps=len(schedule.timesteps),
        guidance_scale=guidance,
        sampler=sampler,
        **values,
    )
    (stage,) = make_stages(spec, adapter.info)
    assert stage.grid.windows == 1
    text = seeing(adapter, spec.reference).encode_prompt(PROMPT, negative, stage.passes == 2)
    loop = StageLoop(
        plan=StagePlan(spec=spec, info=adapter.info, stage=stage),
        schedule=schedule,
        adapter=adapter,
        texts=(text,),
        device=torch.device("cpu"),
    )
    generator = torch.Generator().manual_seed(3)
    patched_noise = patch(
        "render.sampling.noise.normal",
        lambda *_: torch.randn((1, 4, 8, 8), generator=generator)[0].numpy(),
    )
    with patched_noise:
        start = Canvas(step=0, planes=unit_noise() * schedule.initial_scale, area=stage.grid.whole)
        canvas = loop.run(start, SingleRankGroup()).gather()
    assert canvas.history == SAMPLERS[sampler].history
    return canvas.latents[None] * schedule.final_scale


def stock_latents(pipeline: Any, steps: int, guidance: float, negative: str | None) -> Tensor:
    return pipeline(
        PROMPT,
        negative_prompt=negative,
        height=64,
        width=64,
        num_inference_steps=steps,
        guidance_scale=guidance,
        latents=unit_noise(),
        generator=torch.Generator().manual_seed(3),
        output_type="latent",
    ).images


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
@pytest.mark.parametrize("kind", KINDS)
def test_latents_equal_those_of_the_stock_pipeline(
    model_folders: dict[str, Path], kind: str, sampler: str
) -> None:
    adapter = loaded(model_folders[kind])
    ours = our_latents(adapter, adapter.schedule(sampler, 5), sampler, 4.0, NEGATIVE)
    theirs = stock_latents(stock(model_folders[kind], sampler), 5, 4.0, NEGATIVE)
    assert theirs.std() > 0.1
    # A random model's latents can have a larger deviation than the 1 that the bound is for.
    assert (ours - theirs).abs().max() <= 1e-5 * max(1.0, float(theirs.std()))


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
def test_at_large_sigmas_the_difference_is_rounding(model_folders: dict[str, Path], sampler: str) -> None:
    folder = model_folders["sd-epsilon-steep"]
    adapter = loaded(folder)
    ours = our_latents(adapter, adapter.schedule(sampler, 5), sampler, 4.0, NEGATIVE)
    theirs = stock_latents(stock(folder, sampler), 5, 4.0, NEGATIVE)
    assert theirs.std() > 4.0
    assert (ours - theirs).abs().max() <= 1e-5 * theirs.std()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_without_negative_prompt(model_folders: dict[str, Path], kind: str, guidance: float) -> None:
    adapter = loaded(model_folders[kind])
    ours = our_latents(adapter, adapter.schedule("euler", 3), "euler", guidance, "")
    theirs = stock_latents(stock(model_folders[kind], "euler"), 3, guidance, None)
    assert (ours - theirs).abs().max() <= 1e-5


@pytest.mark.parametrize("spacing", ["leading", "linspace", "trailing"])
@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
@pytest.mark.parametrize("steps", [1, 7, 16])
def test_every_spacing_of_timesteps(
    model_folders: dict[str, Path], sampler: str, spacing: str, steps: int
) -> None:
    # 7 and 16 do not divide 1000: there a stock DDIM does not land on its next timestep.
    adapter = loaded(model_folders["sd-v"])
    pipeline = stock(model_folders["sd-v"], sampler, timestep_spacing=spacing)
    schedule = noise_schedule(pipeline.scheduler.config, sampler, steps)
    ours = our_latents(adapter, schedule, sampler, 4.0, NEGATIVE)
    assert (ours - stock_latents(pipeline, steps, 4.0, NEGATIVE)).abs().max() <= 1e-5


@pytest.mark.parametrize("sampler", ["euler", "dpmpp-2m"])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_a_model_trained_with_edm_noise(
    model_folders: dict[str, Path], tmp_path: Path, sampler: str, kind: str
) -> None:
    folder = shutil.copytree(model_folders["sdxl"], tmp_path / "edm")
    config = {"_class_name": "EDMEulerScheduler", "sigma_max": 8.0, "prediction_type": kind}
    (folder / "scheduler/scheduler_config.json").write_text(json.dumps(config))
    index = json.loads((folder / "model_index.json").read_text()) | {
        "scheduler": ["diffusers", config["_class_name"]]
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    ours = our_latents(loaded(folder), loaded(folder).schedule(sampler, 5), sampler, 4.0, NEGATIVE)
    theirs = stock_latents(stock(folder, sampler), 5, 4.0, NEGATIVE)
    assert (ours - theirs).abs().max() <= 1e-5 * max(1.0, float(theirs.std()))


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_kolors(model_folders: dict[str, Path], guidance: float) -> None:
    pytest.importorskip("sentencepiece", reason="of the extra kolors")
    adapter, pipeline = loaded(model_folders["kolors"]), stock(model_folders["kolors"], "euler")
    ours = our_latents(adapter, adapter.schedule("euler", 5), "euler", guidance, NEGATIVE)
    theirs = stock_latents(pipeline, 5, guidance, NEGATIVE)
    assert theirs.std() > 0.1
    assert (ours - theirs).abs().max() <= 1e-5 * max(1.0, float(theirs.std()))
    pixels = pipeline.vae.decode(theirs / pipeline.vae.config.scaling_factor).sample
    assert (adapter.decode(ours) - (pixels / 2 + 0.5).clamp(0, 1)).abs().max() <= 1 / 255


def test_kolors_without_its_package_is_refused(
    model_folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("sentencepiece", reason="of the extra kolors")
    monkeypatch.setattr(folder_module, "find_spec", lambda name: None)
    folder_module._read_model_info.cache_clear()
    with pytest.raises(ModelNotUsable, match="needs a package; pip install sentencepiece"):
        folder_module.read_model_info(model_folders["kolors"])


def test_a_distilled_model_takes_the_guidance_as_an_input(model_folders: dict[str, Path]) -> None:
    folder = model_folders["sd-distilled"]
    schedule = loaded(folder).schedule("lcm", 4)
    ours = our_latents(loaded(folder), schedule, "lcm", 4.0, NEGATIVE)
    assert (ours - stock_latents(stock(folder, "lcm"), 4, 4.0, None)).abs().max() <= 1e-5
    assert (ours - our_latents(loaded(folder), schedule, "lcm", 8.0, NEGATIVE)).abs().max() > 1e-3


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("kind", ["sd-v", "sdxl", "sdxl-second-only"])
def test_half_precision_is_close_and_returns_float32(
    model_folders: dict[str, Path], kind: str, dtype: str
) -> None:
    exact, half = loaded(model_folders[kind]), load_adapter(model_folders[kind], torch.device("cpu"), dtype)
    for one, other in zip(predict_and_decode(exact), predict_and_decode(half), strict=True):
        assert other.dtype == torch.float32
        assert (one - other).abs().max() <= 0.1 * one.abs().max()
    upcast = dtype == "float16" and kind == "sdxl"
    assert half.autoencoder._network.dtype == (torch.float32 if upcast else getattr(torch, dtype))


def predict_and_decode(adapter: Any) -> tuple[Tensor, Tensor, Tensor]:
    text = adapter.encode_prompt(PROMPT, "", True)
    pixels = adapter.decode(unit_noise())
    return adapter.predict(unit_noise(), 500.0, text, [PLACE], [1], 4.0), pixels, adapter.encode(pixels)


@pytest.mark.parametrize("kind", KINDS)
def test_decode_equals_that_of_the_stock_pipeline(model_folders: dict[str, Path], kind: str) -> None:
    adapter = loaded(model_folders[kind])
    ours = adapter.decode(our_latents(adapter, adapter.schedule("ddim", 2), "ddim", 4.0, NEGATIVE))
    pipeline = stock(model_folders[kind], "ddim")
    theirs = pipeline(
        PROMPT,
        negative_prompt=NEGATIVE,
        num_inference_steps=2,
        guidance_scale=4.0,
        latents=unit_noise(),
        output_type="pt",
    ).images
    assert ours.dtype == torch.float32 and ours.shape == (1, 3, 64, 64)
    assert theirs.std() > 1e-3
    assert (ours - theirs).abs().max() <= 1e-5


@pytest.mark.parametrize("kind", ["sd-epsilon", "sdxl"])
def test_encode_equals_the_start_of_stock_image_to_image(
    model_folders: dict[str, Path], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from diffusers import AutoPipelineForImage2Image

    adapter = loaded(model_folders[kind])
    pixels = torch.rand((1, 3, 64, 64), generator=torch.Generator().manual_seed(1))
    pipeline = AutoPipelineForImage2Image.from_pipe(stock(model_folders[kind], "ddim"))
    original_encode = pipeline.vae.encode

    def mode_instead_of_a_sample(image: Tensor) -> Any:
        encoded = original_encode(image)
        encoded.latent_dist.sample = lambda generator=None: encoded.latent_dist.mode()
        return encoded

    monkeypatch.setattr(pipeline.vae, "encode", mode_instead_of_a_sample)
    timestep = torch.tensor([0])
    extra = {"add_noise": False} if kind == "sdxl" else {}
    if kind == "sd-epsilon":  # it always adds noise, of weight zero at alphas_cumprod 1
        pipeline.scheduler.alphas_cumprod[0] = 1.0
    with torch.no_grad():
        theirs = pipeline.prepare_latents(
            pixels * 2 - 1, timestep, 1, 1, torch.float32, torch.device("cpu"), None, **extra
        )
    assert (adapter.encode(pixels) - theirs).abs().max() <= 1e-5


def test_a_batch_of_windows_equals_single_windows(model_folders: dict[str, Path]) -> None:
    adapter = loaded(model_folders["sdxl"])
    text = adapter.encode_prompt(PROMPT, "", True)
    places = [
        WindowPlace(image_height=256, image_width=128, pixel_y=y, pixel_x=x, height=64, width=64)
        for y, x in ((0, 0), (64, 0), (192, 64))
    ]
    latents = torch.randn((3, 4, 8, 8), generator=torch.Generator().manual_seed(1))
    together = adapter.predict(latents, 500.0, text, places, [0, 1, 1], 4.0)
    for number, (place, condition) in enumerate(zip(places, [0, 1, 1], strict=True)):
        alone = adapter.predict(latents[number : number + 1], 500.0, text, [place], [condition], 4.0)
        assert (together[number : number + 1] - alone).abs().max() <= 1e-5
    moved = adapter.predict(latents[:1], 500.0, text, [places[2]], [0], 4.0)
    assert (together[:1] - moved).abs().max() > 1e-4  # the window's position matters
    prompted = adapter.predict(latents[:1], 500.0, text, [places[0]], [1], 4.0)
    assert (together[:1] - prompted).abs().max() > 1e-4  # and so does its condition
