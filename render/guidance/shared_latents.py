"""Shared latents of a tile set in the step loop. `render.plan.latent_classes` says which latents are equal.

They start equal (`render.sampling.noise.stage_noise`, `render.denoise.upscaling.enlarge`). At each step the
predictions of all latents of a class, wherever they lie on the canvas, are averaged. Ranks send their sums of
each class as 64-bit integers, so the mean does not depend on the ranks. The sampler is elementwise and keeps
equal latents equal.
"""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor

from render.guidance.hook import GuidanceHook, StageContext, Step
from render.models.model_call import Evaluation
from render.plan.latent_classes import LatentClasses


class SharedLatents(GuidanceHook):
    """Gives all latents of a class the mean of their predictions."""

    def __init__(self, context: StageContext, classes: LatentClasses) -> None:
        self._context = context
        self._channels = context.adapter.info.latent_channels
        places, numbers = classes.inside(context.tiling.surface, context.area)
        self._mask = torch.zeros(context.area.area, dtype=torch.bool)
        self._mask[torch.from_numpy(places)] = True
        self._mask = self._mask.view(context.area.height, context.area.width)
        self._places = torch.from_numpy(places).to(context.device)
        self._numbers = torch.from_numpy(numbers).to(context.device)
        self._sizes = torch.from_numpy(classes.sizes).to(context.device)
        self._totals: Tensor | None = None
        """[C, classes] int64: the sums of all ranks at this step."""

    @classmethod
    def create(cls, context: StageContext) -> Self | None:
        classes = context.stage.latent_classes
        return None if classes is None else cls(context, classes)

    def must_run_first(self, evaluation: Evaluation) -> bool:
        pieces = self._context.tiling.surface.intersect(evaluation.window, self._context.area)
        return any(bool(self._mask[place].any()) for _, place in pieces)

    def message_bytes(self, step: int) -> int:
        return 8 * self._channels * len(self._sizes)

    def pack(self, step: Step, sums: Tensor) -> Tensor:
        """[C, classes] int64: the sum of this rank's predictions of each class."""
        totals = torch.zeros((len(sums), len(self._sizes)), dtype=torch.int64, device=sums.device)
        totals.index_add_(1, self._numbers, sums.flatten(1)[:, self._places].long())
        return totals

    def unpack(self, step: Step, messages: Tensor | None) -> None:
        assert messages is not None, "every rank sends its sums"
        self._totals = messages.sum(0)

    def adjust_fused(self, step: Step, prediction: Tensor) -> Tensor:
        assert self._totals is not None, "unpack comes first"
        mean = self._context.decode_sums(self._totals.double() / self._sizes)
        prediction.flatten(1)[:, self._places] = mean[:, self._numbers]
        self._totals = None
        return prediction
