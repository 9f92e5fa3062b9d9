"""A model and its refiner: equal to the stock pipelines, with any number of ranks, from any checkpoint."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from diffusers import StableDiffusionXLImg2ImgPipeline
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from render.denoise.checkpoint import CheckpointManager
from render.denoise.stage_models import refiner_step
from render.distributed import Group, SingleRankGroup
from render.engine import render_image, render_latents
from render.errors import BadInput, ModelNotUsable, Stopped
from render.events import StepDone
from render.models import (
    Adapter,
    ModelPaths,
    NoiseSchedule,
    find_model_paths,
    load_models,
    model_info,
    read_model_info,
)
from render.sampling.diffusers_schedule import stock_scheduler
from render.sampling.noise import INITIAL
from render.sampling.registry import SAMPLERS
from render.spec import Spec
from tests.render.models.test_equals_stock import NEGATIVE, PROMPT, stock, unit_noise
from tests.support.cli import chorale, last_json
from tests.support.groups import run_ranks
from tests.support.sinks import MemorySink

CPU = torch.device("cpu")


@pytest.fixture(scope="session")
def folders(model_folders: dict[str, Path], refiner_folder: Path) -> ModelPaths:
    return ModelPaths(model=model_folders["sdxl"], refiner=refiner_folder)


@lru_cache
def loaded(folders: ModelPaths, copy: int = 0) -> tuple[Adapter, Adapter | None]:
    """Ranks that are threads need a copy each: a tokenizer is not thread-safe."""
    return load_models(folders, CPU, "float32", model_info(folders))


def spec_of(folders: ModelPaths, **values: Any) -> Spec:
    names = {"model": str(folders.model), "refiner": str(folders.refiner)}
    small = {"prompt": PROMPT, "negative_prompt": NEGATIVE, "width": 64, "height": 64, "tile_size": 64}
    return Spec.from_mapping(small | names | values)


@contextmanager
def stock_noise() -> Iterator[None]:
    """Replace the engine's noise, which is keyed by position, with that of a stock pipeline."""
    generator = torch.Generator().manual_seed(3)

    def drawn(_seed: int, _stage: int, step: int, *_: Any) -> Any:
        fresh = unit_noise() if step == INITIAL else torch.randn((1, 4, 8, 8), generator=generator)
        return fresh[0].numpy()

    with patch("render.sampling.noise.normal", drawn):
        yield


def stock_handover(folders: ModelPaths, sampler: str, steps: int, guidance: float, start: float) -> Tensor:
    options = {
        "prompt": PROMPT,
        "negative_prompt": NEGATIVE,
        "num_inference_steps": steps,
        "guidance_scale": guidance,
        "generator": torch.Generator().manual_seed(3),
        "output_type": "latent",
    }
    base = stock(folders.model, sampler)
    base_latents = base(height=64, width=64, latents=unit_noise(), denoising_end=start, **options).images
    refiner = stock_refiner(folders)
    refiner.scheduler = stock_scheduler(base.scheduler.config, sampler)
    refined: Tensor = refiner(image=base_latents, denoising_start=start, **options).images
    alone = base(height=64, width=64, latents=unit_noise(), **options).images
    assert (refined - alone).abs().max() > 1e-3, "the refiner changes the result"
    return refined


@lru_cache
def stock_refiner(folders: ModelPaths) -> Any:
    pipeline = StableDiffusionXLImg2ImgPipeline.from_pretrained(
        folders.refiner, use_safetensors=True, local_files_only=True, low_cpu_mem_usage=False
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize(
    ("steps", "guidance", "start"), [(5, 4.0, 0.8), (5, 1.0, 0.5), (7, 4.0, 0.4), (16, 4.0, 0.7)]
)
@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
def test_the_handover_equals_the_stock_pipelines(
    folders: ModelPaths, sampler: str, steps: int, guidance: float, start: float
) -> None:
    spec = spec_of(folders, sampler=sampler, steps=steps, guidance_scale=guidance, refiner_start=start)
    adapter, refiner = loaded(folders)
    with stock_noise():
        done = render_latents(spec, adapter, SingleRankGroup(), device=CPU, refiner=refiner)
    ours = done.gather(done.state.tiling.grid.whole).latents[None]
    theirs = stock_handover(folders, sampler, steps, guidance, start)
    assert (ours - theirs).abs().max() <= 1e-5 * max(1.0, float(theirs.std()))


LARGE = {"width": 160, "height": 128, "steps": 6, "strength": 0.7, "refiner_start": 0.6}


@pytest.mark.parametrize("attention", [0.0, 0.5])
def test_ranks_and_checkpoints_around_the_handover_change_nothing(
    folders: ModelPaths, attention: float
) -> None:
    # A multistep sampler: its history of the other network must not be restored from a checkpoint.
    spec = spec_of(folders, sampler="dpmpp-2m", cross_attention=attention, **LARGE)
    models = [loaded(folders, copy) for copy in range(3)]
    digest = spec.digest(model_info(folders).digest)

    def render(group: Group, sink: MemorySink, steps: int) -> str | None:
        kinds: list[str] = []
        adapter, refiner = models[group.rank]
        checkpoints = CheckpointManager(
            sink, digest, CPU, every_s=1e9, stop=lambda: kinds.count(StepDone.kind) >= steps
        )
        try:
            return render_image(
                spec,
                adapter,
                group,
                sink,
                device=CPU,
                on_event=lambda event: kinds.append(event.kind),
                checkpoints=checkpoints,
                refiner=refiner,
            ).root
        except Stopped:
            return None

    root = render(SingleRankGroup(), MemorySink(), 99)
    # Six steps of the first stage; of the four of the last stage, the model does the first. 7 stops after it.
    for steps in (6, 7, 8) if attention == 0 else (7,):
        sink = MemorySink()
        assert set(run_ranks(2, lambda group: render(group, sink, steps - 1))) == {None}  # noqa: B023
        assert set(run_ranks(3, lambda group: render(group, sink, 99))) == {root}  # noqa: B023
    alone = render_image(
        spec.with_changes(refiner=None),
        load_models(ModelPaths(model=folders.model), CPU, "float32", read_model_info(folders.model))[0],
        SingleRankGroup(),
        MemorySink(),
        device=CPU,
    )
    assert alone.root != root


def test_a_refiner_must_be_loaded_if_the_spec_names_one(folders: ModelPaths) -> None:
    adapter, _ = loaded(folders)
    with pytest.raises(ValueError, match="must be loaded if"):
        render_latents(spec_of(folders), adapter, SingleRankGroup(), device=CPU)
    with pytest.raises(ValueError, match="not the digests"):
        spec_of(folders).digest("of one model")


def test_the_digest_covers_both_weights_and_no_folder_names(folders: ModelPaths, tmp_path: Path) -> None:
    spec, info = spec_of(folders), model_info(folders)
    moved = ModelPaths(
        model=folders.model, refiner=Path(shutil.copytree(folders.refiner or "", tmp_path / "r"))
    )
    there = spec_of(moved)
    assert there.digest(model_info(moved).digest) == spec.digest(info.digest)
    written = json.loads(spec.canonical_json(info.digest))
    assert f"{written['model']}+{written['refiner']}" == info.digest
    assert written["model"] == read_model_info(folders.model).digest
    edit(tmp_path / "r" / "unet/config.json", anything="else")
    assert there.digest(model_info(moved).digest) != spec.digest(info.digest)
    alone = spec.with_changes(refiner=None)
    assert alone.digest(read_model_info(folders.model).digest) != spec.digest(info.digest)


def edit(file: Path, **changes: object) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def other_channels(folder: Path) -> None:
    edit(folder / "vae/config.json", latent_channels=8)
    edit(folder / "unet/config.json", in_channels=8, out_channels=8)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (other_channels, "has 8 latent channels of 8 px, the model 4 of 8 px"),
        (
            lambda folder: edit(folder / "model_index.json", requires_aesthetics_score=False),
            "is not a refiner",
        ),
        (lambda folder: edit(folder / "scheduler/scheduler_config.json", beta_end=0.5), "with beta_end 0.5"),
        (
            lambda folder: edit(folder / "scheduler/scheduler_config.json", prediction_type="v_prediction"),
            "with prediction_type 'v_prediction'",
        ),
        (lambda folder: edit(folder / "unet/config.json", time_cond_proj_dim=8), "takes guidance in another"),
        (lambda folder: (folder / "unet/config.json").unlink(), "lacks unet/"),
    ],
)
def test_a_refiner_that_does_not_fit_the_model_is_refused(
    folders: ModelPaths, tmp_path: Path, spoil: Callable[[Path], None], message: str
) -> None:
    spoiled = Path(shutil.copytree(folders.refiner or "", tmp_path / "refiner"))
    spoil(spoiled)
    with pytest.raises(ModelNotUsable, match=message) as refusal:
        model_info(find_model_paths(str(folders.model), str(spoiled)))
    assert refusal.value.field == "refiner"


def test_a_model_and_a_refiner_cannot_be_swapped(folders: ModelPaths) -> None:
    model, refiner = str(folders.model), str(folders.refiner)
    with pytest.raises(ModelNotUsable, match="and not a refiner"):
        model_info(find_model_paths(model, model))
    with pytest.raises(ModelNotUsable, match=r"^model: .*is a refiner"):
        model_info(find_model_paths(refiner, refiner))
    with pytest.raises(ModelNotUsable, match=r"^refiner: 'nowhere' is not on this machine"):
        find_model_paths(model, "nowhere")
    with pytest.raises(ModelNotUsable, match=r"^model: 'nowhere' is not on this machine"):
        find_model_paths("nowhere", refiner)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"refiner_start": 0.0}, "refiner_start: 0.0 is out of range; use more than 0, less than 1"),
        ({"refiner_start": 1.0}, "refiner_start: 1.0 is out of range"),
        ({"refiner_start": 1.5}, "refiner_start: 1.5 is out of range"),
        ({"refiner_start": float("nan")}, "is not a finite number"),
        ({"refiner_start": 0.9, "steps": 5, "refiner": "a"}, "leaves the refiner none of 5 steps"),
        ({"refiner": " "}, "refiner: ' ' is empty"),
        ({"refiner": 7}, "refiner: 7 is not text"),
    ],
)
def test_bad_values_are_refused_in_one_sentence(values: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        Spec.from_mapping({"prompt": "a vase"} | values)


def test_a_model_without_a_step_is_refused(folders: ModelPaths) -> None:
    adapter, refiner = loaded(folders)
    spec = spec_of(folders, steps=2, refiner_start=0.1)
    with pytest.raises(BadInput, match="leaves the model none of 2 steps"):
        render_latents(spec, adapter, SingleRankGroup(), device=CPU, refiner=refiner)


@given(st.integers(1, 200), st.floats(0.01, 0.99))
def test_every_step_belongs_to_the_model_or_the_refiner(steps: int, start: float) -> None:
    timesteps = tuple(999.0 * (steps - number) / steps for number in range(steps))
    schedule = NoiseSchedule(timesteps=timesteps, sigmas=(1.0,) * (steps + 1))
    step = refiner_step(schedule, start)
    level = round(1000 - 1000 * start)
    assert all(timestep >= level for timestep in timesteps[:step])
    assert all(timestep < level for timestep in timesteps[step:])
    assert refiner_step(replace(schedule, trained_steps=2000), start / 2 + 0.5) == step


def test_the_command_line_renders_with_two_ranks_and_refuses_a_model_as_the_refiner(
    folders: ModelPaths, tmp_path: Path
) -> None:
    options = (
        PROMPT,
        "--model",
        str(folders.model),
        "--size",
        "160x128",
        "--steps",
        "6",
        "--strength",
        "0.7",
    )
    refined = (*options, "--refiner", str(folders.refiner), "--refiner-start", "0.6", "--tile-size", "64")
    two = chorale("render", *refined, "--ranks", "2", "--out", str(tmp_path / "two"), "--json")
    assert two.returncode == 0, two.stderr
    adapter, refiner = loaded(folders)
    spec = spec_of(folders, negative_prompt="", **LARGE)
    one = render_image(spec, adapter, SingleRankGroup(), MemorySink(), device=CPU, refiner=refiner)
    assert (last_json(two.stdout)["digest"], last_json(two.stdout)["root"]) == (one.digest, one.root)
    example = ("--spec", "examples/refined.yaml", "--model", str(folders.model))
    dry = chorale("render", *example, "--refiner", str(folders.refiner), "--dry-run", "--json")
    assert (dry.returncode, len(last_json(dry.stdout)["digest"])) == (0, 64), dry.stderr
    bad = chorale("render", *options, "--refiner", str(folders.model), "--out", str(tmp_path / "bad"))
    assert (bad.returncode, (tmp_path / "bad").exists()) == (2, False)
    assert "and not a refiner" in bad.stderr and "Traceback" not in bad.stderr
