"""Against diffusers' own StableDiffusionPanoramaPipeline, on SD-shaped networks of the same weights."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPanoramaPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from transformers import CLIPTextModel

from bench.launch import run_case
from bench.table import Row
from render.builtin.folder import new_text_encoder, new_tokenizer
from render.denoise.stage_loop import StageLoop
from render.denoise.upscaling import first_canvas
from render.models import load_adapter
from render.models.folder import read_model_info
from render.output.pixels import Pixels
from render.output.seams import score_image
from render.plan.geometry import Axis, Grid
from render.plan.plan import StagePlan
from render.plan.stages import Stage
from render.spec import Spec

WINDOW, CANVAS = 64, 128
PROMPT, STEPS = "a red vase on a wooden table", 2
SEEDS = range(4)
"""Of the pictures that seams are looked for in: with random weights one's ratio differs by 0.03."""


def sd_folder(target: Path) -> Path:
    """A Stable Diffusion folder with random weights and SD's window of 64x64 latents, but narrow."""
    torch.manual_seed(0)
    tokenizer = new_tokenizer()
    unet = UNet2DConditionModel(
        sample_size=WINDOW,
        block_out_channels=(64, 128, 128),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=4,
        cross_attention_dim=96,
        norm_num_groups=16,
    )
    vae = AutoencoderKL(
        block_out_channels=(16, 16, 32, 32),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        norm_num_groups=8,
    )
    pipeline = StableDiffusionPipeline(
        unet=unet,
        vae=vae,
        text_encoder=CLIPTextModel(new_text_encoder(tokenizer).config),
        tokenizer=tokenizer,
        scheduler=DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(target)
    return target


def our_loop(model: Path, case: dict[str, Any], device: torch.device) -> tuple[StageLoop, Any]:
    """One stage from noise on a grid of the same windows as the panorama's."""
    info = read_model_info(model)
    adapter = load_adapter(model, device, "float32", info)
    spec = Spec(
        prompt=PROMPT,
        width=CANVAS * 8,
        height=CANVAS * 8,
        seed=case["seed"],
        steps=STEPS,
        sampler="ddim",
        guidance_scale=4.0,
    )
    axis = Axis(length=CANVAS, window=WINDOW, overlap=case["overlap"], moving=False)
    stage = Stage(
        index=0,
        width=spec.width,
        height=spec.height,
        first_step=0,
        steps=STEPS,
        batch=case["batch"],
        grid=Grid(rows=axis, cols=axis),
        passes=2,
    )
    schedule = adapter.schedule(spec.sampler, spec.steps)
    text = adapter.encode_prompt(spec.prompt, "", True)
    canvas = first_canvas(stage, schedule, spec.seed, info.latent_channels, stage.grid.whole)
    loop = StageLoop(
        plan=StagePlan(spec=spec, info=adapter.info, stage=stage),
        schedule=schedule,
        adapter=adapter,
        texts=(text,),
        device=device,
    )
    return loop, canvas


def panorama_seconds(model: Path, stride: int, batch: int, seed: int = 0) -> tuple[float, torch.Tensor]:
    """Seconds and latents of diffusers' pipeline at a stride and a view batch size."""

    class Strided(StableDiffusionPanoramaPipeline):
        def get_views(self, height: int, width: int, *_: Any, **more: Any) -> Any:
            return super().get_views(height, width, window_size=WINDOW, stride=stride, **more)

    pipeline = Strided.from_pretrained(model)
    pipeline.set_progress_bar_config(disable=True)
    started = time.perf_counter()
    latents = pipeline(
        PROMPT,
        height=CANVAS * 8,
        width=CANVAS * 8,
        num_inference_steps=STEPS,
        guidance_scale=4.0,
        view_batch_size=batch,
        generator=torch.Generator().manual_seed(seed),
        output_type="latent",
    ).images
    return time.perf_counter() - started, latents[0]


def _pictures(model: Path, latents: list[torch.Tensor]) -> list[Pixels]:
    adapter = load_adapter(model, torch.device("cpu"), "float32", read_model_info(model))
    decoded = (adapter.decode(each[None])[0] for each in latents)
    return [pixels.mul(255).round().byte().permute(1, 2, 0).numpy() for pixels in decoded]


def _seams(pictures: list[Pixels], borders: range) -> float:
    """The mean of the pictures' ratios, each by its own controls; `borders` in latents."""
    lines = [border * 8 for border in borders]
    return fmean(score_image(picture, lines, lines, WINDOW * 8).ratio for picture in pictures)


def rows() -> list[Row]:
    """Same windows and overlap at its best batch; then its default stride against our default blend."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        model = sd_folder(Path(folder) / "sd")
        theirs = min(panorama_seconds(model, 32, batch)[0] for batch in (1, 3, 9))
        case = {"kind": "stage", "model": str(model), "overlap": 32, "seed": 0}
        # Our batches count evaluations, of which a window has two; 9 windows make 9 for each of two ranks.
        ours = min(run_case(case | {"batch": batch})["seconds"] for batch in (1, 2, 6))
        two = min(run_case(case | {"batch": batch}, ranks=2)["seconds"] for batch in (1, 3))
        default, blend, far, near = [], [], [], []
        for seed in SEEDS:
            seconds, latents = panorama_seconds(model, 8, 3, seed)
            default.append(seconds)
            far.append(latents)
            kept = str(Path(folder) / f"{seed}.pt")
            more = {"overlap": 16, "batch": 2, "seed": seed, "latents": kept}
            blend.append(run_case(case | more)["seconds"])
            near.append(torch.load(kept))
        theirs_seen, ours_seen = _pictures(model, far), _pictures(model, near)
    # The panorama has borders where ours has them, and everywhere between.
    our_borders, their_borders = range(32, CANVAS, 32), range(8, CANVAS, 8)
    at_ours = _seams(theirs_seen, our_borders)
    score = f"seams there, ratio of means of {len(SEEDS)} pictures"
    return [
        Row("panorama, same windows and overlap: its seconds over ours, one rank", theirs / ours, ">= 1.00"),
        Row("panorama, same windows and overlap: its seconds over ours, two ranks", theirs / two, ">= 1.85"),
        Row(
            "panorama at its default stride over our default blend, one rank",
            min(default) / min(blend),
            ">= 8.00",
        ),
        Row(f"{score}: panorama, all its borders", _seams(theirs_seen, their_borders), ""),
        Row(f"{score}: panorama, those that ours has too", at_ours, ""),
        Row(f"{score}: ours", _seams(ours_seen, our_borders), f"<= {at_ours:.3f}"),
    ]
