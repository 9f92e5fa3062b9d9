"""The plan of an image: what a render does, before anything runs.

The engine executes this plan and `chorale plan` prints it. It holds frozen, pure geometry: no torch, no
process group. A group that changes its size in the middle of an image takes the plan of the new world size;
everything else in a plan is the same for every world size.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

from render.model_info import ModelInfo
from render.plan import communication
from render.plan.decode_layout import DecodeLayout, has_preview, make_decode_layout
from render.plan.dilation import steps_with_views
from render.plan.enlarge_layout import EnlargeLayout, network_scale
from render.plan.geometry import Rect
from render.plan.seam_lines import SeamLines, seam_lines
from render.plan.stages import Stage, make_stages
from render.plan.tiling import Tiling
from render.plan.topology import Topology, topology_of
from render.spec import Spec
from render.spec.source_image import SourceImage

BORDER_BYTES = 4
"""A border latent is sent as a 32-bit fixed-point number (see `render.denoise.fusion`)."""
SHARED_LATENT_BYTES = 8
"""A class of shared latents of a tile set is sent as a 64-bit sum (see `render.guidance.shared_latents`)."""
CONTROL_BYTES = 4
"""Beside them, each channel of a message has one 32-bit number for control flags."""


@dataclass(frozen=True, kw_only=True)
class StagePlan:
    """One stage of an image, dealt out to `world_size` ranks."""

    spec: Spec
    info: ModelInfo
    stage: Stage
    below: Topology | None = None
    """The canvas of the stage below; None for the first stage."""
    world_size: int = 1

    def for_world_size(self, world_size: int) -> StagePlan:
        """The same stage, dealt out to another number of ranks."""
        return self if world_size == self.world_size else replace(self, world_size=world_size)

    @cached_property
    def tiling(self) -> Tiling:
        """Windows, regions and borders of all ranks."""
        return self.stage.tiling(self.world_size)

    @cached_property
    def enlarging(self) -> EnlargeLayout:
        """How the stage's canvas is made from the stage below, or from the spec's init image."""
        return EnlargeLayout(
            canvas=topology_of(self.stage.grid),
            below=self.below,
            scale_factor=self.info.scale_factor,
            halo=self.info.decode_halo,
            world_size=self.world_size,
            layered=self.info.layered_autoencoder,
            network=self.enlarges_by_network,
        )

    @property
    def enlarges_by_network(self) -> bool:
        """Whether the spec's super-resolution network enlarges the stage below. Where an init image has the
        detail, that is taken instead."""
        source = self.spec.source
        has_detail = source is not None and not source.keeps and source.has_detail_for(self.stage.width)
        return bool(self.spec.enlarger and self.below and self.stage.enlarges and not has_detail)

    def enlarging_init(self, source: SourceImage, scale: int) -> EnlargeLayout:
        """How a network that makes pictures `scale` times as large makes the stage's picture from an init
        image. Its lengths are in pixels."""
        canvas, pixel = topology_of(self.stage.grid), self.info.scale_factor
        scale = network_scale(scale, source.enlarging * self.stage.width / source.width)
        height, width = canvas.height * pixel, canvas.width * pixel
        return EnlargeLayout(
            canvas=replace(canvas, height=height, width=width),
            below=replace(canvas, height=-(-height // scale), width=-(-width // scale)),
            scale_factor=1,
            halo=0,
            world_size=1,
            network=True,
        )

    @property
    def seed(self) -> int:
        """The seed of the stage's noise and of its grid's offsets."""
        return self.spec.seed_of(self.stage.index)

    @property
    def has_preview(self) -> bool:
        """Whether rank 0 shows the stage when it is finished."""
        side = max(self.spec.width, self.spec.height)
        return has_preview(self.stage.index, self.stage.width, self.stage.height, side)

    @property
    def channels(self) -> int:
        """Channels of a latent."""
        return self.info.latent_channels

    @property
    def width(self) -> int:
        """Pixels."""
        return self.stage.width

    @property
    def height(self) -> int:
        """Pixels."""
        return self.stage.height

    @property
    def windows(self) -> int:
        """Windows of all layers."""
        return self.tiling.windows

    @property
    def steps(self) -> int:
        """Steps that the stage takes."""
        return self.stage.steps - self.stage.first_step

    @cached_property
    def view_steps(self) -> int:
        """Steps at which dilated views are evaluated."""
        if self.stage.dilation is None:
            return 0
        return sum(1 for _ in steps_with_views(self.spec.dilated, self.stage))

    @cached_property
    def evaluations_per_rank(self) -> tuple[int, ...]:
        """Windows times passes (2 with guidance) of each rank; ranks differ by one at most."""
        return tuple(sum(self.tiling.evaluations_by_layer(rank)) for rank in range(self.world_size))

    @cached_property
    def calls_per_step(self) -> tuple[int, ...]:
        """Model calls of each rank for its windows at each step.

        A call is a batch of `stage.batch` evaluations of one layer.
        """
        counts = (self.tiling.evaluations_by_layer(rank) for rank in range(self.world_size))
        return tuple(sum(-(-count // self.stage.batch) for count in layers) for layers in counts)

    @cached_property
    def view_calls(self) -> tuple[int, ...]:
        """Model calls of each rank for dilated views, at each of `view_steps`."""
        dilation, passes = self.stage.dilation, self.tiling.passes
        if dilation is None:
            return (0,) * self.world_size
        counts = (len(dilation.views_of(rank, self.world_size)) * passes for rank in range(self.world_size))
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
    def token_bytes(self) -> int:
        """Bytes of pooled tokens (cross attention) that each rank sends at the stage's first step."""
        return communication.token_bytes(self.spec, self.stage, self.tiling, self.info)

    @cached_property
    def view_bytes(self) -> int:
        """Bytes that each rank sends for dilated views at the stage's first step."""
        return communication.view_bytes(self.spec, self.stage, self.tiling, self.info)

    @cached_property
    def shared_latent_bytes(self) -> int:
        """Bytes of the sums of shared latents of a tile set that each rank sends at a step."""
        shared = self.stage.latent_classes
        return 0 if shared is None else len(shared.firsts) * self.channels * SHARED_LATENT_BYTES

    @cached_property
    def border_bytes(self) -> tuple[int, ...]:
        """Bytes that each rank has to send at the stage's first step (grid at rest), without padding."""
        if self.world_size == 1:
            return (0,)
        to_all = self.token_bytes + self.view_bytes + self.shared_latent_bytes
        borders = (len(self.tiling.border(rank)) for rank in range(self.world_size))
        return tuple(border * self.channels * BORDER_BYTES + to_all for border in borders)

    @cached_property
    def message_bytes(self) -> int:
        """Bytes of the message that each rank sends at the stage's first step (grid at rest).

        It is the largest of `border_bytes`, since a gather takes blocks of one size, and one column of
        control flags; what is sent in half precision fills whole columns.
        """
        if self.world_size == 1:
            return 0
        longest = max(len(self.tiling.border(rank)) for rank in range(self.world_size))
        column = self.channels * BORDER_BYTES
        halves = -(-(self.token_bytes + self.view_bytes) // column) * column
        return longest * column + self.channels * CONTROL_BYTES + self.shared_latent_bytes + halves

    @cached_property
    def memory_bytes(self) -> tuple[int, ...]:
        """Estimate of each rank's memory above the loaded model, in bytes.

        Latents, their sums, prediction, history, anchor and colors over the rank's area, what a gather
        receives, and the rank's part of the finished canvas, which it decodes.
        """
        canvas = self.stage.grid.height * self.stage.grid.width * self.channels
        part = -(-canvas // self.world_size)
        received = self.world_size * max(self.border_bytes)
        areas = (box.area * self.channels for box in self.tiling.boxes)
        # A rank that evaluates views holds the whole canvas: as received, blurred twice, and the prediction.
        views = canvas * (2 + 4 + 4 + 2) if self.view_bytes else 0
        return tuple(area * 7 * 4 + received + part * 4 * 2 + views for area in areas)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All stages of an image and the layout of its output, for one world size."""

    spec: Spec
    info: ModelInfo
    world_size: int
    stages: tuple[StagePlan, ...]
    decode: DecodeLayout
    """Decode tiles, blocks and pyramid levels."""

    def for_world_size(self, world_size: int) -> Plan:
        """The same image on another number of ranks."""
        if world_size == self.world_size:
            return self
        stages = tuple(stage.for_world_size(world_size) for stage in self.stages)
        return replace(self, world_size=world_size, stages=stages)

    def blocks_of(self, rank: int) -> tuple[Rect, ...]:
        """The blocks of the finished image that a rank decodes and writes, in pixels."""
        return self.decode.blocks_of(rank, self.world_size)

    def latents_of(self, rank: int) -> Rect:
        """The latents of the last stage that a rank decodes its blocks from."""
        return self.decode.latents_of(rank, self.world_size)

    @cached_property
    def seam_lines(self) -> tuple[SeamLines, SeamLines]:
        """The columns and the rows of the image that the seam score looks at."""
        last = self.stages[-1]
        return seam_lines(self.decode, last.stage, last.seed)

    @property
    def useful_ranks(self) -> int:
        """More ranks than this have nothing to evaluate at any stage."""
        return max(-(-stage.tiling.evaluations // stage.stage.batch) for stage in self.stages)

    @property
    def images_at_once(self) -> int:
        """Images like this one whose evaluations of a step fill one joined call; 1 for a large image."""
        return max(1, min(each.stage.most_joined // each.tiling.evaluations for each in self.stages))

    @cached_property
    def work(self) -> int:
        """Latents that all evaluations of all steps cover: what the time of a render is proportional to."""
        return sum(stage.work for stage in self.stages)

    @cached_property
    def model_calls(self) -> int:
        """Model calls of the busiest rank over the whole image."""
        return sum(stage.model_calls for stage in self.stages)


def make_plan(spec: Spec, info: ModelInfo, world_size: int) -> Plan:
    """Plan an image for `world_size` ranks (1 to 1,024).

    Raises `BadInput` for a spec that the model cannot render (see `make_stages`).
    """
    if world_size < 1:
        raise ValueError(f"world_size {world_size} is below 1")
    stages = make_stages(spec, info)
    canvases = [topology_of(stage.grid) for stage in stages]
    plans = tuple(
        StagePlan(spec=spec, info=info, stage=stage, below=below, world_size=world_size)
        for stage, below in zip(stages, [None, *canvases[:-1]], strict=True)
    )
    decode = make_decode_layout(spec, info)
    return Plan(spec=spec, info=info, world_size=world_size, stages=plans, decode=decode)
