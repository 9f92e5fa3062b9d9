"""One image: a spec, a loaded model and a process group in; tiles and a manifest out."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass, replace
from functools import partial

import torch
from safetensors.torch import save

from render.canvas import Canvas, LatentRegion
from render.denoise.checkpoint import KEY as CHECKPOINT
from render.denoise.checkpoint import CheckpointManager, ControlFlag
from render.denoise.checkpoint_fit import misfit
from render.denoise.model_calls import ModelCalls, SingleCalls
from render.denoise.stage_loop import Regroup, StageLoop, StageState, StepTimes
from render.denoise.stage_models import assign_models
from render.denoise.upscaling import (
    enlarge,
    first_canvas,
    next_canvas,
    painted_canvas,
    pixels_of_init_image,
    pixels_of_previous_stage,
)
from render.distributed import Group
from render.errors import GroupChanges, RanksLost, Stopped
from render.events import ImageDone, OnEvent, StageStarted, StepDone, TilesWritten, ignore_event
from render.guidance.color_correction import color_strength
from render.guidance.hooks import needs_reference
from render.models.adapter import Adapter
from render.models.enlarger import Enlarger, open_enlarger
from render.models.prompt_limits import dropped_by
from render.output.block_journal import BlockJournal
from render.output.manifest import Manifest, build_manifest, check_image, read_published, write_manifest
from render.output.preview import Preview
from render.output.pyramid import publish_pyramid
from render.plan.geometry import Rect
from render.plan.plan import Plan, StagePlan, make_plan
from render.sampling.schedule import NoiseSchedule
from render.sink import Sink
from render.spec import Spec


@dataclass(frozen=True, kw_only=True)
class ImageReport:
    """A finished image."""

    digest: str
    root: str
    manifest: Manifest
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Denoised:
    """All stages done; each rank holds its own part of the last one (or, in between, of the one so far)."""

    state: StageState
    scale: float
    """The latents times this are the decoder's input."""
    seconds: dict[str, float]
    """This rank's, by phase."""

    @property
    def plan(self) -> StagePlan:
        """Of the last stage, for the group that has finished it."""
        return self.state.plan

    @property
    def group(self) -> Group:
        """The group that has finished the image."""
        return self.state.group

    def gather(self, area: Rect, *, for_stage: bool = False) -> LatentRegion:
        """An area of the finished latents. All ranks must call it; their areas may differ. `for_stage` says
        that another stage starts from it."""
        latents, colors = self.state.finished(area)
        kept = self.plan.spec.kept
        if kept is not None and for_stage:
            # A shadow is drawn into the finished image: the stages above would darken it again. They take
            # the colors in 8 bits.
            kept = replace(kept, shadow=0.0, depth=8)
        return LatentRegion(
            latents=latents.mul_(self.scale),
            area=area,
            canvas=self.plan.tiling.surface,
            colors=colors,
            kept=kept,
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
    plan: Plan | None = None,
    calls: ModelCalls | None = None,
) -> Denoised:
    """Denoise all stages of the cascade, from a checkpoint on if `checkpoints` has one.

    `plan` is that of the group's world size; it is made here unless given. `calls` runs the model calls, by
    default one by one.
    Raises `Stopped` when a rank was told to stop, `BadInput` for a refiner without a step, and for an
    enlarger that does not load.
    """
    plan = plan or make_plan(spec, adapter.info, group.world_size)
    models = assign_models(spec, [each.stage for each in plan.stages], adapter, refiner)
    seconds = {"model": 0.0, "wait": 0.0, "fuse": 0.0, "enlarge": 0.0}
    done: Denoised | None = None
    found = None if checkpoints is None else checkpoints.restore(group, partial(misfit, plan=plan))
    enlarger = None if spec.enlarger is None else open_enlarger(spec.enlarger, device)
    for planned in plan.stages[0 if found is None else found.stage :]:
        group = group if done is None else done.group
        # The group may have changed its size in the stage before.
        planned, stage = planned.for_world_size(group.world_size), planned.stage
        on_event(_stage_started(planned, len(plan.stages)))
        model = models[stage.index]
        loop = StageLoop(
            plan=planned,
            schedule=model.schedule,
            adapter=model.adapter,
            texts=model.texts,
            device=device,
            calls=calls or SingleCalls(),
            replicas=None if checkpoints is None else checkpoints.replicas,
        )
        started = time.perf_counter()
        # In a list, so that the loop can release it: a canvas is the largest thing that a rank holds.
        if found is not None and found.stage == stage.index:
            tiling = planned.tiling
            canvas = [found.canvas(tiling.boxes[group.rank], tiling.surface, group, device)]
            found = None
        else:
            canvas = [_start(planned, loop, done, group, preview, enlarger)]
        seconds["enlarge"] += time.perf_counter() - started
        state = loop.run(
            canvas.pop(),
            group,
            on_step=_StepReporter(planned, model.schedule, on_event, seconds),
            regroup=regroup,
            before_step=None if checkpoints is None else checkpoints.control_flags,
            after_step=None if checkpoints is None else partial(_grant, checkpoints, stage.index),
        )
        done = Denoised(state=state, scale=model.schedule.final_scale, seconds=seconds)
    assert done is not None, "a cascade has at least one stage"
    return done


def _grant(checkpoints: CheckpointManager, stage: int, state: StageState, flags: int) -> None:
    """Act on the control flags of a step; they are the same on all ranks."""
    if flags & (ControlFlag.CHECKPOINT | ControlFlag.STOP):
        checkpoints.save(stage, state)
    if flags & ControlFlag.STOP:
        checkpoints.close()
        raise Stopped(f"stopped after step {state.steps_done} of stage {stage}; what is done is kept")
    if flags & ControlFlag.CHANGE and state.steps_done < state.plan.stage.steps:
        # At the end of a stage the group changes after the first step of the next one.
        checkpoints.keep_for_change(stage, state)
        raise GroupChanges(f"the group changes after step {state.steps_done} of stage {stage}")


def _start(
    plan: StagePlan,
    loop: StageLoop,
    below: Denoised | None,
    group: Group,
    preview: Preview | None,
    enlarger: Enlarger | None,
) -> Canvas:
    """The rank's part of a stage's canvas before its first step."""
    stage, spec, box = plan.stage, plan.spec, plan.tiling.boxes[group.rank]
    if below is not None:
        # One gather for both: the rank that shows the stage below needs all of it.
        shown = preview is not None and group.rank == 0 and preview.wants(below.plan)
        # Painting around what is kept reads farther than enlarging does, on a canvas that is small.
        whole = shown or stage.paints
        wanted = below.plan.stage.grid.whole if whole else plan.enlarging.decoded_by(group.rank)
        region = below.gather(wanted, for_stage=True)
        if preview is not None and shown:
            preview.show(region, loop.adapter, loop.device)
        # An init image has no detail to add to a stage that is larger.
        source = spec.source if spec.source is not None and spec.source.has_detail_for(stage.width) else None
        pixels = pixels_of_previous_stage(region, plan, loop.adapter, group, loop.device, source, enlarger)
    elif spec.source is not None:
        pixels = pixels_of_init_image(spec.source, plan, enlarger if stage.enlarges else None)
    else:
        return first_canvas(stage, loop.schedule, plan.seed, plan.channels, box)
    has_reference = needs_reference(spec, stage)
    strength = color_strength(spec, stage, box) if has_reference else None
    enlarged = enlarge(pixels, plan, loop.adapter, group, loop.device, box, strength)
    if stage.paints and stage.first_step == 0:
        return painted_canvas(enlarged, stage, loop.schedule, plan.seed)
    return next_canvas(enlarged, stage, loop.schedule, plan.seed, has_reference=has_reference)


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
    calls: ModelCalls | None = None,
) -> ImageReport:
    """Render one image and publish it: every rank writes its own tiles, then rank 0 the manifest.

    With `checkpoints`, unfinished work is saved in the sink and continued from. `refiner` is the loaded one
    where the spec names one; `adapter.info` is of both then. `calls` runs the model calls, by default one by
    one.
    Raises `Stopped` when a rank was told to stop, `RenderFailed` for an image that must not be
    published (NaN, flat), `OSError` and the sink's own errors when tiles cannot be written.
    """
    started = time.perf_counter()
    plan = make_plan(spec, adapter.info, group.world_size)
    preview = None if checkpoints is None else Preview(sink)
    journal = None if checkpoints is None else BlockJournal(sink, checkpoints.identity)
    try:
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
            plan=plan,
            calls=calls,
        )
        group, seconds = denoised.group, denoised.seconds
        plan = plan.for_world_size(group.world_size)
        digest = spec.digest(adapter.info.digest)
        if checkpoints is not None and (published := read_published(sink, digest, group)) is not None:
            # Another attempt was faster. Its numerics are equal, and so are its bits.
            if group.rank == 0:
                _delete_work(sink, plan, checkpoints, journal, preview)
            elapsed = time.perf_counter() - started
            on_event(ImageDone(digest=digest, root=published.root, seconds=elapsed))
            return ImageReport(digest=digest, root=published.root, manifest=published, seconds=elapsed)
        if checkpoints is not None and len(plan.decode.blocks) > group.world_size:
            # Publishing a large image takes long; a group that resumes in the middle of it repeats no step.
            checkpoints.save(denoised.plan.stage.index, denoised.state)
        latents = denoised.gather(plan.latents_of(group.rank))
        del denoised
        tiles = _TilesReporter(on_event)
        pyramid = publish_pyramid(
            latents,
            adapter,
            plan,
            group,
            sink,
            device=device,
            journal=journal,
            on_progress=tiles,
        )
        check_image(pyramid)
        elapsed = time.perf_counter() - started
        manifest = build_manifest(
            spec,
            adapter.info,
            pyramid,
            device=device.type,
            ranks=group.world_size,
            timings=seconds | pyramid.seconds | {"total": elapsed},
            dropped={
                each.field: each.text for each in dropped_by(adapter.pipeline, adapter.info, spec.prompts)
            },
        )
        if group.rank == 0:
            write_manifest(manifest, sink)
            _delete_work(sink, plan, checkpoints, journal, preview)
        rest = tiles.since_last(pyramid.seconds)
        on_event(ImageDone(digest=manifest.digest, root=manifest.root, seconds=elapsed, phases=rest))
        return ImageReport(digest=manifest.digest, root=manifest.root, manifest=manifest, seconds=elapsed)
    except (RanksLost, GroupChanges):
        # The ranks that go on delete the preview when the image is done; this one must not come after that.
        if preview is not None:
            preview.close()
        raise


def _delete_work(
    sink: Sink,
    plan: Plan,
    checkpoints: CheckpointManager | None,
    journal: BlockJournal | None,
    preview: Preview | None,
) -> None:
    """Delete the files of the unfinished image once it is published."""
    if checkpoints is not None:
        checkpoints.close()
        sink.delete(CHECKPOINT)
    if journal is not None:
        journal.delete(plan.decode)
    if preview is not None:
        preview.delete()


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
    calls: ModelCalls | None = None,
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
        calls=calls,
    )
    group, grid = denoised.group, denoised.plan.stage.grid
    region = denoised.gather(grid.whole if group.rank == 0 else Rect(y=0, x=0, height=0, width=0))
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
        self, plan: StagePlan, schedule: NoiseSchedule, on_event: OnEvent, seconds: dict[str, float]
    ) -> None:
        self._plan, self._schedule, self._on_event, self._seconds = plan, schedule, on_event, seconds

    def __call__(self, done: int, times: StepTimes) -> None:
        phases = times.phases()
        for phase, spent in phases.items():
            self._seconds[phase] += spent
        stage = self._plan.stage
        self._on_event(
            StepDone(
                stage=stage.index,
                step=done - stage.first_step,
                steps=self._plan.steps,
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


def _stage_started(plan: StagePlan, stages: int) -> StageStarted:
    return StageStarted(
        stage=plan.stage.index,
        stages=stages,
        width=plan.width,
        height=plan.height,
        steps=plan.steps,
    )
