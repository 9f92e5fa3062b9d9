"""The canvas of the running step on every rank, so that the loss of a rank loses no step but the running one.

In a group that may change, each rank adds the latents of its own region, as they were before the step, to the
message of the step's one all-gather. Whoever has received it holds the whole canvas, and may pass it to ranks
that join later. It stays packed on the device; only a group that forms anew unpacks it.

In-memory replicas in place of checkpoints are the idea of Gemini (Wang et al., SOSP 2023).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from render.canvas import Canvas, Reference, gather_planes
from render.distributed import Group
from render.plan.replica_size import LARGEST_REPLICA_BYTES, replica_bytes
from render.plan.tiling import Tiling


@dataclass(frozen=True, kw_only=True)
class Replica:
    """The whole canvas before a step of a stage."""

    stage: int
    step: int
    """Steps that are done."""
    history: int
    hook_state: Tensor
    packed: Tensor
    """[world_size, P * C, longest region] float32: the regions of all ranks. P is 1 and the history."""
    tiling: Tiling
    reference: Tensor | None
    """[2, C, height, width] on the host: what the stage started from."""

    def canvas(self) -> Canvas:
        """The canvas, on the host."""
        whole = self.tiling.grid.whole
        packed = self.packed.cpu()
        planes = torch.empty((packed.shape[1], whole.area))
        for rank in range(self.tiling.world_size):
            region = torch.from_numpy(self.tiling.region(rank))
            planes[:, region] = packed[rank][:, : len(region)]
        planes = planes.view(1 + self.history, -1, whole.height, whole.width)
        if self.reference is not None:
            planes = torch.cat([planes, self.reference])
        return Canvas(
            step=self.step,
            planes=planes,
            area=whole,
            history=self.history,
            has_reference=self.reference is not None,
            hook_state=self.hook_state,
        )


class Replicas:
    """The newest canvas that this rank has, from one forming of its group to the next."""

    def __init__(self, largest_bytes: int = LARGEST_REPLICA_BYTES) -> None:
        self._largest_bytes = largest_bytes
        self._newest: Replica | tuple[int, Canvas] | None = None
        self._reference: Tensor | None = None
        self._places: Tensor | None = None

    def found(self) -> tuple[int, int] | None:
        """(stage, steps done) of the newest canvas; None without one."""
        match self._newest:
            case None:
                return None
            case Replica() as replica:
                return replica.stage, replica.step
            case stage, canvas:
                return stage, canvas.step

    def take(self) -> tuple[int, Canvas]:
        """The newest canvas, on the host, and its stage."""
        match self._newest:
            case Replica() as replica:
                return replica.stage, replica.canvas()
            case stage, canvas:
                return stage, canvas
        raise AssertionError("there is no replica")

    def begin(self, tiling: Tiling, group: Group, x: Tensor, reference: Reference | None) -> None:
        """Before the first step of a stage, or of a group that has formed anew; all ranks call it.

        `x` is the rank's part of the latents, [C, box.height, box.width].
        """
        self._reference = self._places = None
        planes = 2 if reference is None else 4
        size = replica_bytes(planes, len(x), tiling.grid.whole.area)
        if group.world_size == 1 or size > self._largest_bytes:
            # From here on what was kept is out of date, and a checkpoint may be newer.
            self._newest = None
            return
        if reference is not None:
            own = torch.stack([reference.latents, reference.colors])
            self._reference = gather_planes(own, tiling, group, tiling.grid.whole)
        places = tiling.surface.inside(tiling.region(group.rank), tiling.boxes[group.rank])[1]
        self._places = torch.from_numpy(places).to(x.device)

    def pack(self, planes: Sequence[Tensor], tiling: Tiling) -> Tensor | None:
        """What this rank sends with a step: the latents of its own region, [P * C, longest region].

        `planes` are P of [C, box.height, box.width]. None where nothing is sent.
        """
        if self._places is None:
            return None
        flat = torch.cat([each.flatten(1) for each in planes])
        message = flat.new_zeros((len(flat), tiling.longest_region))
        message[:, : len(self._places)] = flat[:, self._places]
        return message

    def keep(
        self, stage: int, step: int, tiling: Tiling, received: Tensor, history: int, hook_state: Tensor
    ) -> None:
        """Keep what the ranks have sent each other: [world_size, C, n] int32; nothing where n is 0."""
        if not received.shape[-1]:
            return
        rows = received.shape[1] * (1 + history)
        # A copy: the rest of the message, the borders, is not kept.
        packed = received.reshape(len(received), rows, -1).clone().view(torch.float32)
        self._newest = Replica(
            stage=stage,
            step=step,
            history=history,
            hook_state=hook_state,
            packed=packed,
            tiling=tiling,
            reference=self._reference,
        )

    def keep_canvas(self, stage: int, canvas: Canvas) -> None:
        """Keep a whole canvas that was gathered."""
        self._newest = stage, canvas
