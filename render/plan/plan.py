"""The plan: what a render will do, before anything runs. `chorale plan` prints it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from render.model_info import ModelInfo
from render.plan.communication import token_bytes, view_bytes
from render.plan.dilation import steps_with_views
from render.plan.stages import Stage, make_stages
from render.plan.tiling import Tiling
from render.spec import Spec

WIRE_BYTES = 4
"""A border latent crosses as a 32-bit fixed-point number (see render.denoise.fusion)."""
TIE_BYTES = 8
"""So does a class of equal latents of a tile set as one of 64 bits (see render.guidance.shared_latents)."""


@dataclass(frozen=True, kw_only=True)
class StagePlan:
    """One stage dealt out to the ranks."""

    stage: Stage
    tiling: Tiling
    channels: int
    token_bytes: int = 0
    """Of the bytes that each rank says at a step, those of pooled tokens (cross attention)."""
    view_bytes: int = 0
    """Those of dilated views, at a step that has them."""
    view_steps: int = 0
    """Steps at which dilated views are looked at."""

    @property
    def width(self) -> int:
        return self.stage.width

    @property
    def height(self) -> int:
        return self.stage.height

    @property
    def windows(self) -> int:
        return self.tiling.windows

    @property
    def steps(self) -> int:
        return self.stage.steps - self.stage.first_step

    @cached_property
    def evaluations_per_rank(self) -> tuple[int, ...]:
        """Windows times passes (2 with guidance) of each rank; differ by one at most."""
        total, world = self.tiling.evaluations, self.tiling.world_size
        return tuple(total * (rank + 1) // world - total * rank // world for rank in range(world))

    @cached_property
    def calls_per_step(self) -> tuple[int, ...]:
        """Model calls of each rank for its windows at each step; a call is a batch of `stage.batch`
        evaluations."""
        return tuple(-(-count // self.stage.batch) for count in self.evaluations_per_rank)

    @cached_property
    def view_calls(self) -> tuple[int, ...]:
        """Model calls of each rank for dilated views, at each of `view_steps`."""
        dilation, world, passes = self.stage.dilation, self.tiling.world_size, self.tiling.passes
        if dilation is None:
            return (0,) * world
        counts = (len(dilation.views_of(rank, world)) * passes for rank in range(world))
        return tuple(-(-count // self.stage.view_batch) for count in counts)

    @cached_property
    def model_calls(self) -> int:
        """Model calls of the busiest rank over the whole stage."""
        both = zip(self.calls_per_step, self.view_calls, strict=True)
        return max(own * self.steps + views * self.view_steps for own, views in both)

    @property
    def work(self) -> int:
        """Latents that all evaluations of all steps cover."""
        windows = sum(
            layer.grid.windows * layer.grid.rows.window * layer.grid.cols.window
            for layer in self.tiling.layers
        )
        dilation = self.stage.dilation
        views = 0 if dilation is None else dilation.views * dilation.height * dilation.width
        return self.tiling.passes * (self.steps * windows + self.view_steps * views)

    @cached_property
    def border_bytes(self) -> tuple[int, ...]:
        """Bytes that each rank has to say at a step (grid at rest), with what is said to all; the gather
        pads to the largest."""
        if self.tiling.world_size == 1:
            return (0,)
        ranks = range(self.tiling.world_size)
        ties = self.stage.latent_classes
        tied = 0 if ties is None else len(ties.firsts) * self.channels * TIE_BYTES
        said = self.token_bytes + self.view_bytes + tied
        return tuple(len(self.tiling.border(rank)) * self.channels * WIRE_BYTES + said for rank in ranks)

    @cached_property
    def memory_bytes(self) -> tuple[int, ...]:
        """Estimate of each rank's memory above the loaded model, in bytes.

        Latents, their sums, prediction, history, anchor and colours over the rank's box, what a gather
        receives, and the rank's part of the finished canvas, which it decodes.
        """
        canvas = self.stage.grid.height * self.stage.grid.width * self.channels
        part = -(-canvas // self.tiling.world_size)
        received = self.tiling.world_size * max(self.border_bytes)
        boxes = (box.area * self.channels for box in self.tiling.boxes)
        # Whoever looks at views holds the whole canvas: as it was heard, blurred twice, and answered.
        views = canvas * (2 + 4 + 4 + 2) if self.view_bytes else 0
        return tuple(box * 7 * 4 + received + part * 4 * 2 + views for box in boxes)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All stages of an image for one world size."""

    spec: Spec
    info: ModelInfo
    world_size: int
    stages: tuple[StagePlan, ...]

    @property
    def useful_ranks(self) -> int:
        """More ranks than this have nothing to evaluate at any stage."""
        return max(stage.tiling.evaluations for stage in self.stages)

    @cached_property
    def work(self) -> int:
        """Latents that all evaluations of all steps cover: what the time of a render is proportional to."""
        return sum(stage.work for stage in self.stages)

    @cached_property
    def model_calls(self) -> int:
        """Model calls of the busiest rank over the whole image."""
        return sum(stage.model_calls for stage in self.stages)


def make_plan(spec: Spec, info: ModelInfo, world_size: int) -> Plan:
    """Deal every stage of the image out to `world_size` ranks (1 to 1,024)."""
    stages = tuple(_stage_plan(spec, info, stage, world_size) for stage in make_stages(spec, info))
    return Plan(spec=spec, info=info, world_size=world_size, stages=stages)


def _stage_plan(spec: Spec, info: ModelInfo, stage: Stage, world_size: int) -> StagePlan:
    tiling = stage.tiling(world_size)
    looking = 0 if stage.dilation is None else sum(1 for _ in steps_with_views(spec.dilated, stage))
    return StagePlan(
        stage=stage,
        tiling=tiling,
        channels=info.latent_channels,
        token_bytes=token_bytes(spec, stage, tiling, info),
        view_bytes=view_bytes(spec, stage, tiling, info),
        view_steps=looking,
    )
