"""One image: a spec, a loaded model and a process group in; tiles and a manifest out."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from render.denoise.cascade import enlarge, first_canvas, next_canvas
from render.denoise.group import Group
from render.denoise.loop import Regroup, StageLoop, StepTimes
from render.models.adapter import Adapter
from render.picture.manifest import build_manifest, check_picture, write_manifest
from render.picture.pyramid import publish_pyramid
from render.plan.stages import Stage, make_stages
from render.sink import Sink
from render.spec import Spec

OnNews = Callable[[dict[str, Any]], None]
"""Called with small dictionaries: `kind` is stage, step, tiles or done."""


@dataclass(frozen=True, kw_only=True)
class ImageReport:
    """What a finished image is known by."""

    digest: str
    root: str
    manifest: dict[str, Any]
    seconds: float


def render_latents(
    spec: Spec,
    adapter: Adapter,
    group: Group,
    *,
    device: torch.device,
    on_news: OnNews = lambda news: None,
    regroup: Regroup | None = None,
) -> tuple[torch.Tensor, Group, dict[str, float]]:
    """Denoise all stages; the finished latents [C, h, w], the same on every rank, and seconds by phase."""
    stages = make_stages(spec, adapter.facts)
    schedule = adapter.schedule(spec.sampler, spec.steps)
    text = adapter.encode_prompt(spec.prompt, spec.negative_prompt, stages[0].passes == 2)
    seconds = {"model": 0.0, "wait": 0.0, "fuse": 0.0, "enlarge": 0.0}
    latents = None
    for stage in stages:
        on_news(_stage_news(stage, len(stages)))
        started = time.perf_counter()
        if latents is None:
            canvas = first_canvas(stage, schedule, spec.seed, adapter.facts.latent_channels)
        else:
            latents = enlarge(latents, stage, adapter, group, device)
            canvas = next_canvas(latents, stage, schedule, spec.seed)
        seconds["enlarge"] += time.perf_counter() - started
        loop = StageLoop(spec=spec, stage=stage, schedule=schedule, adapter=adapter, text=text, device=device)
        report = _StepReporter(stage, on_news, seconds)
        finished, group = loop.run(canvas, group, on_step=report, regroup=regroup)
        latents = finished.latents * schedule.final_scale
    assert latents is not None, "a cascade has at least one stage"
    return latents, group, seconds


def render_image(
    spec: Spec,
    adapter: Adapter,
    group: Group,
    sink: Sink,
    *,
    device: torch.device,
    on_news: OnNews = lambda news: None,
    regroup: Regroup | None = None,
) -> ImageReport:
    """Render one image and publish it: every rank its own tiles, then rank 0 the manifest, last.

    Raises `RenderFailed` for a picture that is not fit to be published (NaN, flat), `OSError` and the
    sink's own errors when tiles cannot be written.
    """
    started = time.perf_counter()
    latents, group, seconds = render_latents(
        spec, adapter, group, device=device, on_news=on_news, regroup=regroup
    )
    pyramid = publish_pyramid(
        latents,
        adapter,
        spec,
        group,
        sink,
        device=device,
        on_progress=lambda done, total: on_news({"kind": "tiles", "done": done, "total": total}),
    )
    check_picture(pyramid)
    elapsed = time.perf_counter() - started
    manifest = build_manifest(
        spec,
        adapter.facts,
        pyramid,
        make_stages(spec, adapter.facts)[-1],
        device=device.type,
        ranks=group.world_size,
        timings=seconds | pyramid.seconds | {"total": elapsed},
    )
    if group.rank == 0:
        write_manifest(manifest, sink)
    report = ImageReport(digest=manifest["digest"], root=manifest["root"], manifest=manifest, seconds=elapsed)
    on_news({"kind": "done", "digest": report.digest, "root": report.root, "seconds": elapsed})
    return report


class _StepReporter:
    """Turns the loop's calls into news, and adds the phases' seconds up."""

    def __init__(self, stage: Stage, on_news: OnNews, seconds: dict[str, float]) -> None:
        self._stage, self._on_news, self._seconds = stage, on_news, seconds

    def __call__(self, done: int, times: StepTimes) -> None:
        phases = asdict(times)
        for phase, spent in phases.items():
            self._seconds[phase] += spent
        first, last = self._stage.first_step, self._stage.steps
        self._on_news(
            {
                "kind": "step",
                "stage": self._stage.index,
                "step": done - first,
                "steps": last - first,
                "seconds": sum(phases.values()),
                "phases": phases,
            }
        )


def _stage_news(stage: Stage, stages: int) -> dict[str, Any]:
    return {
        "kind": "stage",
        "stage": stage.index,
        "stages": stages,
        "width": stage.width,
        "height": stage.height,
        "steps": stage.steps - stage.first_step,
    }
