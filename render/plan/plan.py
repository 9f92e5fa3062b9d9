"""The plan: what a render will do, before anything runs. `chorale plan` prints it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from render.models.adapter import ModelFacts
from render.plan.stages import Stage, make_stages
from render.plan.tiling import Tiling
from render.spec import Spec

WIRE_BYTES = 4
"""A border latent crosses as a 32-bit fixed-point number (see render.denoise.fuse)."""


@dataclass(frozen=True, kw_only=True)
class StagePlan:
    """One stage dealt out to the ranks."""

    stage: Stage
    tiling: Tiling
    channels: int

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
        """Model calls of each rank at each step; one call is a batch of `stage.batch` evaluations."""
        return tuple(-(-count // self.stage.batch) for count in self.evaluations_per_rank)

    @cached_property
    def border_bytes(self) -> tuple[int, ...]:
        """Bytes that each rank has to say at a step (grid at rest); the gather pads to the largest."""
        if self.tiling.world_size == 1:
            return (0,)
        ranks = range(self.tiling.world_size)
        return tuple(len(self.tiling.border(rank)) * self.channels * WIRE_BYTES for rank in ranks)

    @cached_property
    def memory_bytes(self) -> tuple[int, ...]:
        """Estimate of each rank's memory above the loaded model, in bytes.

        Latents, their sums, prediction and history over the rank's box, what a gather receives, and the
        rank's part of the finished canvas, which it decodes.
        """
        canvas = self.stage.grid.height * self.stage.grid.width * self.channels
        part = -(-canvas // self.tiling.world_size)
        received = self.tiling.world_size * max(self.border_bytes)
        boxes = (box.area * self.channels for box in self.tiling.boxes)
        return tuple(box * 5 * 4 + received + part * 4 * 2 for box in boxes)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All stages of an image for one world size."""

    spec: Spec
    facts: ModelFacts
    world_size: int
    stages: tuple[StagePlan, ...]

    @property
    def useful_ranks(self) -> int:
        """More ranks than this have nothing to evaluate at any stage."""
        return max(stage.tiling.evaluations for stage in self.stages)

    @cached_property
    def work(self) -> int:
        """Latents that all evaluations of all steps cover: what the time of a render is proportional to."""
        return sum(
            stage.steps
            * stage.tiling.passes
            * layer.grid.windows
            * layer.grid.rows.window
            * layer.grid.cols.window
            for stage in self.stages
            for layer in stage.tiling.layers
        )

    @cached_property
    def model_calls(self) -> int:
        """Model calls of the busiest rank over the whole image."""
        return sum(max(stage.calls_per_step) * stage.steps for stage in self.stages)


def make_plan(spec: Spec, facts: ModelFacts, world_size: int) -> Plan:
    """Deal every stage of the image out to `world_size` ranks (1 to 1,024)."""
    stages = tuple(
        StagePlan(
            stage=stage,
            tiling=stage.tiling(world_size),
            channels=facts.latent_channels,
        )
        for stage in make_stages(spec, facts)
    )
    return Plan(spec=spec, facts=facts, world_size=world_size, stages=stages)
