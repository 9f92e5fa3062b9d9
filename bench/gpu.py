"""What a GPU does with full-width models: speed over bare kernels, memory, quantized weights, CUDA and NCCL.

    python -m bench.gpu --json out.json     on a machine with an NVIDIA GPU, within --budget seconds
    python -m bench.gpu                     without one: prints what it would run
    python -m bench.gpu --tiny              all of it on a CPU, with a few channels

Weights are random, so pictures are noise. Cases that would not end within the budget are named and left out.
"""

from __future__ import annotations

import json
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import click
import torch

from bench.gpu_models import SHAPES, Shape
from infra.settings import read_settings
from infra.store.open import open_store
from render.distributed import SingleRankGroup
from render.engine import render_image
from render.errors import NoImage
from render.events import Event, StepDone
from render.launch.rank_group import RankGroup
from render.launch.request import Request
from render.models import find_model_paths, model_info
from render.models.adapter import WindowPlace
from render.models.quantization import quantize, quantizing
from render.output.manifest import Manifest
from render.plan.plan import make_plan
from render.spec import NO_QUANTIZATION, QUANTIZATIONS, Spec

GIB = 2**30
SIZES = (2048, 4096, 8192)
_TINY_SIZES = (64, 128)
_H200_TFLOPS = 400.0
"""Of bfloat16 in such networks, as a guess for the plan alone."""
_STEPS, _STRENGTH = 2, 0.5
"""Two steps of the first stage, one of each later one."""


@dataclass
class Run:
    """The state of a run: where, until when, and what was found."""

    device: torch.device
    tiny: bool
    ends: float
    results: list[dict[str, Any]] = field(default_factory=list)

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32 if self.tiny else torch.bfloat16

    @property
    def sizes(self) -> tuple[int, ...]:
        return _TINY_SIZES if self.tiny else SIZES

    def left(self) -> float:
        """Seconds of the budget that are left."""
        return self.ends - time.monotonic()

    def add(self, case: str, **found: Any) -> None:
        self.results.append({"case": case} | found)
        click.echo(f"{case}: " + ", ".join(f"{name} {_shown(value)}" for name, value in found.items()))


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def spec_of(shape: Shape, size: int, run: Run) -> Spec:
    """The spec of one picture."""
    return Spec(
        prompt="x",
        model=shape.name,
        width=size,
        height=size,
        steps=_STEPS,
        strength=_STRENGTH,
        guidance_scale=4.0,
        dtype=str(run.dtype).removeprefix("torch."),
        tile_size=64 if run.tiny else 512,
        format="webp",
    )


def evaluations(spec: Spec, info: Any) -> int:
    """Rows of model calls of a render on one rank, filled batches counted whole."""
    plan = make_plan(spec, info, 1)
    return sum(stage.calls_per_step[0] * stage.steps * stage.stage.batch for stage in plan.stages)


def call_seconds(adapter: Any, batch: int, run: Run) -> float:
    """The fastest of three bare calls with a batch of native windows."""
    info, device = adapter.info, run.device
    side = info.native_size // info.scale_factor
    latents = torch.randn(batch, info.latent_channels, side, side)
    text = adapter.encode_prompt("x", "", True)
    place = WindowPlace(
        image_height=info.native_size,
        image_width=info.native_size,
        pixel_y=0,
        pixel_x=0,
        height=info.native_size,
        width=info.native_size,
    )
    times = []
    for _ in range(4):
        _synchronize(device)
        started = time.perf_counter()
        adapter.predict(latents, 500.0, text, [place] * batch, [0] * batch, 4.0)
        _synchronize(device)
        times.append(time.perf_counter() - started)
    return min(times[1:])


def rows_are_independent(adapter: Any, batch: int) -> bool:
    """Whether a row of a batch has the same bits beside other rows, on which equal roots rest."""
    info = adapter.info
    side = info.native_size // info.scale_factor
    text = adapter.encode_prompt("x", "", True)
    place = WindowPlace(image_height=1024, image_width=1024, pixel_y=0, pixel_x=0, height=1024, width=1024)
    latents = torch.randn(batch, info.latent_channels, side, side)
    others = torch.cat([latents[:1], torch.randn(batch - 1, *latents.shape[1:])])
    first, second = (
        adapter.predict(each, 500.0, text, [place] * batch, [0] * batch, 4.0)[0] for each in (latents, others)
    )
    return bool(torch.equal(first, second))


def render_case(shape: Shape, adapter: Any, size: int, run: Run) -> None:
    """Render one picture on one rank; the share of the time that is not the model's bare calls."""
    spec = spec_of(shape, size, run)
    batch = make_plan(spec, adapter.info, 1).stages[-1].stage.batch
    bare = call_seconds(adapter, batch, run)
    calls, seconds = 0, 0.0

    def on_event(event: Event) -> None:
        nonlocal calls, seconds
        if isinstance(event, StepDone):
            calls, seconds = calls + event.model_calls, seconds + event.seconds

    if run.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="chorale-gpu-") as out:
        sink = open_store(out, read_settings({}), patience_s=60.0)
        try:
            report = render_image(
                spec, adapter, SingleRankGroup(), sink, device=run.device, on_event=on_event
            )
            found = {name: float(value) for name, value in report.manifest.timings.items()}
        except NoImage as exc:
            found = {"no_image": str(exc)}  # random weights may give one; the steps are measured all the same
    run.add(
        f"{shape.name} {size}x{size}",
        batch=batch,
        call_s=bare,
        calls=calls,
        step_over_bare=seconds / (calls * bare),
        wall_s=time.perf_counter() - started,
        peak_gib=_peak_gib(run.device),
        **{f"{name}_s": value for name, value in found.items() if name != "no_image"},
        **{name: value for name, value in found.items() if name == "no_image"},
    )


def shape_cases(shape: Shape, run: Run, share: float) -> None:
    """A model at all sizes that its share of the budget has time for."""
    ends = time.monotonic() + share
    adapter = shape.make(run.device, run.dtype, run.tiny)
    one = call_seconds(adapter, 1, run)
    run.add(f"{shape.name} call", batch=1, call_s=one, rows_independent=rows_are_independent(adapter, 2))
    for size in run.sizes:
        expected = 1.5 * one * evaluations(spec_of(shape, size, run), adapter.info)
        if time.monotonic() + expected > ends:
            run.add(
                f"{shape.name} {size}x{size}", left_out=f"needs about {expected:.0f} s more than its share"
            )
            continue
        render_case(shape, adapter, size, run)


def quantized_cases(run: Run) -> None:
    """The first shape's network with weights in fewer bits: memory of its weights, seconds of a call."""
    for kind in QUANTIZATIONS:
        adapter = SHAPES[0].make(run.device, run.dtype, run.tiny)
        network = adapter.pipeline.unet
        if kind != NO_QUANTIZATION:
            with quantizing(kind):
                quantize(network, run.dtype)
        before = _allocated(run.device)
        _synchronize(run.device)
        run.add(
            f"{SHAPES[0].name} quantize {kind}",
            call_s=call_seconds(adapter, 2, run),
            rows_independent=rows_are_independent(adapter, 2),
            weights_gib=before / GIB,
        )
        del adapter, network
        _free(run.device)


def group_cases(run: Run) -> None:
    """The built-in model by real processes (NCCL on GPUs, gloo on a CPU): one root on any number of ranks."""
    ranks = (1, 2) if run.device.type == "cpu" else (1, torch.cuda.device_count())
    roots = {}
    for number in dict.fromkeys(ranks):
        roots[number] = builtin_root(number, run.device.type)
    run.add(
        "groups",
        backend="nccl" if run.device.type == "cuda" else "gloo",
        ranks=list(roots),
        one_root=len(set(roots.values())) == 1,
    )


def builtin_root(ranks: int, device: str) -> str:
    """The root of a small picture of the built-in model."""
    spec = Spec(prompt="a red vase", width=384, height=256, steps=2, tile_size=128)
    paths = find_model_paths(spec.model, None)
    group = RankGroup(ranks)
    with tempfile.TemporaryDirectory(prefix="chorale-gpu-") as out:
        request = Request(spec=spec.to_dict(), folders=paths, info=model_info(paths), device=device, out=out)
        try:
            group.render(request)
        finally:
            group.close()
        return Manifest.model_validate_json((Path(out) / "manifest.json").read_bytes()).root


def print_plan() -> None:
    """What would run on a GPU, with the time and the memory that it needs."""
    run = Run(device=torch.device("cpu"), tiny=False, ends=0.0)
    for shape in SHAPES:
        info = _planned_info(shape)
        for size in SIZES:
            rows = evaluations(spec_of(shape, size, run), info)
            seconds = rows * shape.call_tflop / _H200_TFLOPS
            click.echo(
                f"{shape.name} {size}x{size}: {rows:,} evaluations, weights {shape.gib:g} GiB, about "
                f"{seconds:,.0f} s at {_H200_TFLOPS:g} TFLOP/s"
            )
    click.echo("then: quantized weights of SDXL's network, and the built-in model on all GPUs by NCCL")
    click.echo("No GPU here; run this on a machine with one, or with --tiny on this one.")


def _planned_info(shape: Shape) -> Any:
    """Of the full-width model, without its weights."""
    info = shape.make(torch.device("cpu"), torch.float32, True).info
    return replace(info, native_size=1024)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _allocated(device: torch.device) -> int:
    return torch.cuda.memory_allocated() if device.type == "cuda" else 0


def _peak_gib(device: torch.device) -> float:
    return torch.cuda.max_memory_allocated() / GIB if device.type == "cuda" else 0.0


def _free(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()


@click.command()
@click.option("--tiny", is_flag=True, help="A few channels and small pictures, on the CPU.")
@click.option("--budget", default=420.0, help="Seconds after which no case is begun.")
@click.option("--json", "file", type=click.Path(path_type=Path), help="Write the figures to this file.")
def main(tiny: bool, budget: float, file: Path | None) -> None:
    """See the module."""
    if not tiny and not torch.cuda.is_available():
        print_plan()
        return
    device = torch.device("cpu" if tiny else "cuda")
    if tiny:
        torch.set_num_threads(1)
    run = Run(device=device, tiny=tiny, ends=time.monotonic() + budget)
    torch.manual_seed(0)
    group_cases(run)
    quantized_cases(run)
    for number, shape in enumerate(SHAPES):
        shape_cases(shape, run, run.left() / (len(SHAPES) - number))
        _free(device)
    if file is not None:
        name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
        document = {"device": name, "torch": torch.__version__, "results": run.results}
        file.write_text(json.dumps(document, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
