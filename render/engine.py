"""One image: a spec, a loaded model and a process group in; tiles and a manifest out."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from safetensors.torch import save

from render.canvas import Canvas, LatentRegion
from render.denoise.checkpoint import KEY as CHECKPOINT
from render.denoise.checkpoint import CheckpointManager, ControlFlag
from render.denoise.stage_loop import Regroup, StageLoop, StageState, StepTimes
from render.denoise.stage_models import assign_models
from render.denoise.upscaling import (
    area_to_enlarge,
    enlarge,
    first_canvas,
    next_canvas,
    pixels_of_init_image,
    pixels_of_previous_stage,
)
from render.distributed import Group
from render.errors import Stopped
from render.events import ImageDone, OnEvent, StageStarted, StepDone, TilesWritten, ignore_event
from render.models.adapter import Adapter
from render.output.block_journal import BlockJournal, delete_journal
from render.output.manifest import build_manifest, check_picture, write_manifest
from render.output.preview import Preview
from render.output.pyramid import publish_pyramid
from render.plan.decode_layout import make_decode_layout
from render.plan.geometry import Rect
from render.plan.stages import Stage, make_stages
from render.plan.topology import topology_of
from render.sampling.schedule import NoiseSchedule
from render.sink import Sink
from render.spec import Spec


@dataclass(frozen=True, kw_only=True)
class ImageReport:
    """What a finished image is known by."""

    digest: str
    root: str
    manifest: dict[str, Any]
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Denoised:
    """All stages done; each rank holds its own part of the last one."""

    seat: StageState
    scale: float
    """The latents times this are what the decoder takes."""
    seconds: dict[str, float]
    """This rank's, by phase."""

    @property
    def group(self) -> Group:
        """The group that has finished the image."""
        return self.seat.group

    def piece(self, area: Rect) -> LatentRegion:
        """The area of the finished latents that this rank asks for; all ranks must call it."""
        latents, colours = self.seat.finished(area)
        return LatentRegion(
            latents=latents.mul_(self.scale), area=area, canvas=self.seat.tiling.surface, colours=colours
        )


def render_latents(
    spec: Spec,
    adapter: Adapter,
    group: Group,
    *,
    device: torch.device,
    on_event: OnEvent = ignore_event,
    regroup: Regroup | None = None,
    checkpoints: CheckpointManager | None = None,
    preview: Preview | None = None,
    refiner: Adapter | None = None,
) -> Denoised:
    """Denoise all stages of the cascade, from the keeper's checkpoint on if it has one.

    Raises `Stopped` when the keeper was asked to stop, `BadInput` for a refiner that has no step to do.
    """
    stages = make_stages(spec, adapter.info)
    casts = assign_models(spec, stages, adapter, refiner)
    seconds = {"model": 0.0, "wait": 0.0, "fuse": 0.0, "enlarge": 0.0}
    done: Denoised | None = None
    found = None if checkpoints is None else checkpoints.find(group)
    for stage in stages[0 if found is None else found.stage :]:
        on_event(_stage_started(stage, len(stages)))
        cast = casts[stage.index]
        loop = StageLoop(
            spec=spec,
            stage=stage,
            schedule=cast.schedule,
            adapter=cast.adapter,
            texts=cast.texts,
            device=device,
        )
        group = group if done is None else done.group
        started = time.perf_counter()
        # In a list, so that the loop can let go of it: a canvas is the largest thing that a rank holds.
        if found is not None and found.stage == stage.index:
            tiling = loop.tiling(group)
            canvas = [found.canvas(tiling.boxes[group.rank], tiling.surface, group, device)]
            found = None
        else:
            canvas = [_start(loop, done, group, preview)]
        seconds["enlarge"] += time.perf_counter() - started
        report = _StepReporter(stage, cast.schedule, on_event, seconds)
        seat = loop.run(
            canvas.pop(),
            group,
            on_step=report,
            regroup=regroup,
            before_step=None if checkpoints is None else checkpoints.wish,
            after_step=None if checkpoints is None else partial(_grant, checkpoints, stage.index),
        )
        done = Denoised(seat=seat, scale=cast.schedule.final_scale, seconds=seconds)
    assert done is not None, "a cascade has at least one stage"
    return done


def _grant(checkpoints: CheckpointManager, stage: int, seat: StageState, wish: int) -> None:
    """Do what the ranks have asked for; all of them do the same."""
    if wish:
        checkpoints.keep(stage, seat)
    if wish & ControlFlag.STOP:
        checkpoints.close()
        raise Stopped(f"stopped after step {seat.step} of stage {stage}; what is done is kept")


def _start(loop: StageLoop, below: Denoised | None, group: Group, preview: Preview | None) -> Canvas:
    """The rank's part of a stage's canvas before its first step."""
    stage, info, seed = loop.stage, loop.adapter.info, loop.spec.seed_of(loop.stage.index)
    box = loop.tiling(group).boxes[group.rank]
    if below is not None:
        grid = below.seat.tiling.grid
        # One gather for both: a rank that shows the stage below only asks for all of it.
        shown = preview is not None and group.rank == 0 and preview.takes(below.seat.loop.stage)
        piece = below.piece(grid.whole if shown else area_to_enlarge(grid, stage, info, group))
        if preview is not None and shown:
            preview.show(piece, loop.adapter, loop.device)
        init = loop.spec.init
        # A stage larger than the picture finds no detail in it.
        source = init if init is not None and stage.width <= init.width else None
        pixels = pixels_of_previous_stage(piece, stage, loop.adapter, loop.device, source)
    elif loop.spec.init is not None:
        pixels = pixels_of_init_image(loop.spec.init, stage)
    else:
        return first_canvas(stage, loop.schedule, seed, info.latent_channels, box)
    anchored = loop.spec.skip_residual > 0 or (stage.enlarges and loop.spec.ilvr > 0)
    share = loop.colour_share(topology_of(stage.grid), box) if anchored else None
    enlarged = enlarge(pixels, stage, loop.adapter, group, loop.device, box, share)
    return next_canvas(enlarged, stage, loop.schedule, seed, anchored=anchored)


def render_image(
    spec: Spec,
    adapter: Adapter,
    group: Group,
    sink: Sink,
    *,
    device: torch.device,
    on_event: OnEvent = ignore_event,
    regroup: Regroup | None = None,
    checkpoints: CheckpointManager | None = None,
    refiner: Adapter | None = None,
) -> ImageReport:
    """Render one image and publish it: every rank its own tiles, then rank 0 the manifest, last.

    With a keeper, unfinished work is kept in the sink and gone on from. `refiner` is the loaded one where the
    spec names one; `adapter.facts` are of both then.
    Raises `Stopped` when the keeper was asked to stop, `RenderFailed` for a picture that is not fit to be
    published (NaN, flat), `OSError` and the sink's own errors when tiles cannot be written.
    """
    started = time.perf_counter()
    preview = None if checkpoints is None else Preview(sink, spec.width, spec.height)
    denoised = render_latents(
        spec,
        adapter,
        group,
        device=device,
        on_event=on_event,
        regroup=regroup,
        checkpoints=checkpoints,
        preview=preview,
        refiner=refiner,
    )
    group, seconds = denoised.group, denoised.seconds
    cut = make_decode_layout(spec, adapter.info)
    if checkpoints is not None and len(cut.blocks) > group.world_size:
        # Publishing a large picture takes long; whoever goes on after an end in it needs no step again.
        checkpoints.keep(denoised.seat.loop.stage.index, denoised.seat)
    piece = denoised.piece(cut.latents_of(group.rank, group.world_size, adapter.info))
    del denoised
    tiles = _TilesReporter(on_event)
    pyramid = publish_pyramid(
        piece,
        adapter,
        spec,
        group,
        sink,
        device=device,
        records=None if checkpoints is None else BlockJournal(sink, checkpoints.identity),
        on_progress=tiles,
    )
    check_picture(pyramid)
    elapsed = time.perf_counter() - started
    manifest = build_manifest(
        spec,
        adapter.info,
        pyramid,
        device=device.type,
        ranks=group.world_size,
        timings=seconds | pyramid.seconds | {"total": elapsed},
    )
    if group.rank == 0:
        write_manifest(manifest, sink)
        if checkpoints is not None:
            checkpoints.close()
            sink.delete(CHECKPOINT)
            delete_journal(sink, cut)
        if preview is not None:
            preview.forget()
    report = ImageReport(digest=manifest["digest"], root=manifest["root"], manifest=manifest, seconds=elapsed)
    rest = tiles.since_last(pyramid.seconds)
    on_event(ImageDone(digest=report.digest, root=report.root, seconds=elapsed, phases=rest))
    return report


def render_to_latents(
    spec: Spec,
    adapter: Adapter,
    group: Group,
    sink: Sink,
    key: str,
    *,
    device: torch.device,
    on_event: OnEvent = ignore_event,
    checkpoints: CheckpointManager | None = None,
    refiner: Adapter | None = None,
) -> None:
    """Render one image up to its final latents, which rank 0 stores under `key` as safetensors.

    They are one tensor `latents`, float32 [C, h, w], in the scale of diffusers' `output_type="latent"`. The
    event `ImageDone` carries the SHA-256 of the file as its root. Raises as `render_image`.
    """
    started = time.perf_counter()
    denoised = render_latents(
        spec,
        adapter,
        group,
        device=device,
        on_event=on_event,
        checkpoints=checkpoints,
        refiner=refiner,
    )
    group, grid = denoised.group, denoised.seat.tiling.grid
    region = denoised.piece(grid.whole if group.rank == 0 else Rect(y=0, x=0, height=0, width=0))
    root = ""
    if group.rank == 0:
        data = save({"latents": region.latents.float().contiguous()})
        root = hashlib.sha256(data).hexdigest()
        sink.put(key, data, "application/octet-stream")
        if checkpoints is not None:
            checkpoints.close()
            sink.delete(CHECKPOINT)
    elapsed = time.perf_counter() - started
    on_event(ImageDone(digest=spec.digest(adapter.info.digest), root=root, seconds=elapsed))


class _StepReporter:
    """Turns the loop's calls into events, and adds the phases' seconds up."""

    def __init__(
        self, stage: Stage, schedule: NoiseSchedule, on_event: OnEvent, seconds: dict[str, float]
    ) -> None:
        self._stage, self._schedule, self._on_event, self._seconds = stage, schedule, on_event, seconds

    def __call__(self, done: int, times: StepTimes) -> None:
        phases = times.phases()
        for phase, spent in phases.items():
            self._seconds[phase] += spent
        first, last = self._stage.first_step, self._stage.steps
        self._on_event(
            StepDone(
                stage=self._stage.index,
                step=done - first,
                steps=last - first,
                timestep=self._schedule.timesteps[done - 1],
                seconds=sum(phases.values()),
                phases=phases,
                exchange_seconds=times.exchange,
                model_calls=times.calls,
                border_bytes=times.border_bytes,
            )
        )


class _TilesReporter:
    """Turns the pyramid's progress into events, with the phases' seconds since the last one."""

    def __init__(self, on_event: OnEvent) -> None:
        self._on_event = on_event
        self._reported: dict[str, float] = {}

    def __call__(self, done: int, total: int, pixels: int, seconds: dict[str, float]) -> None:
        phases = self.since_last(seconds)
        self._on_event(TilesWritten(blocks_done=done, blocks_total=total, pixels=pixels, phases=phases))

    def since_last(self, seconds: dict[str, float]) -> dict[str, float]:
        reported, self._reported = self._reported, seconds
        return {phase: spent - reported.get(phase, 0.0) for phase, spent in seconds.items()}


def _stage_started(stage: Stage, stages: int) -> StageStarted:
    return StageStarted(
        stage=stage.index,
        stages=stages,
        width=stage.width,
        height=stage.height,
        steps=stage.steps - stage.first_step,
    )
