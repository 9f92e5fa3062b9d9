"""The dilated branch of DemoFusion (Du et al. 2024, section 3.3): the model looks at the whole canvas.

Through every n-th latent a canvas is of native size, and its n * n interleaved views are n * n whole
pictures to the model. Their answers, put back where they came from, guide the windows: the denoised
prediction that the sampler steps on is mixed with theirs, by a share that fades over the stage's steps.
Before, the canvas is blurred, less and less, so that neighbouring views see alike and agree.

A view needs latents of all ranks, and all ranks need its answer. Both cross in the step's one gather and are
one step old: at a step, each rank says the latents of its region for the next step's views, and the answers
of its own views to what it has heard at the step before. For a stage's first step the canvas is gathered
beforehand; it is then all that the second one has, too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from render.plan.decay import Span, raised_cosine
from render.plan.dilation import Dilation
from render.plan.geometry import Rect
from render.plan.tiling import Tiling

_SIGMA, _LEAST_SIGMA = 0.8, 0.01
"""The blur's width in latents at a stage's first step, and the share of it that is left in the end."""

Look = Callable[[Tensor], Tensor]
"""[views, C, height, width] latents as the network takes them -> the denoised prediction of each."""


@dataclass
class DilatedViews:
    """One rank's share of the views, and what it has heard for them."""

    dilation: Dilation
    tiling: Tiling
    rank: int
    echo: Tensor | None
    """[C, height, width] float16: the canvas at the step before (at a stage's first step, at this one), as
    the network takes it."""
    answer: Tensor | None = field(default=None, init=False)
    """[C, box] float32: what the views have answered in this rank's box at this step."""

    def look(self, span: Span, step: int, look: Look) -> Tensor:
        """Evaluate this rank's views: [most views, C, h, w] float16, those that it does not have empty."""
        assert self.echo is not None, "views are looked at when something was heard"
        dilation, canvas = self.dilation, self.echo.float()
        most = dilation.most_views(self.tiling.world_size)
        answers = canvas.new_zeros((most, len(canvas), dilation.height, dilation.width), dtype=torch.float16)
        own = dilation.views_of(self.rank, self.tiling.world_size)
        if len(own):
            seen = continued(blurred(canvas, dilation.every, span, step), dilation)
            answers[: len(own)] = look(torch.stack([_view(seen, dilation, view) for view in own])).half()
        return answers

    def speak(self, x: Tensor, box: Rect) -> Tensor:
        """[C, longest region] float16: the own region's part of `x`, [C, box]."""
        # Modulo the canvas, so that a box may run across an edge.
        grid, region = self.tiling.grid, torch.from_numpy(self.tiling.region(self.rank))
        down, right = (region // grid.width - box.y) % grid.height, (region % grid.width - box.x) % grid.width
        places = (down * box.width + right).to(x.device)
        message = x.new_zeros((len(x), self.tiling.longest_region), dtype=torch.float16)
        message[:, : len(region)] = x.flatten(1)[:, places].half()
        return message

    def hear_answers(self, messages: Tensor, box: Rect) -> None:
        """Take [world_size, most views, C, h, w] float16, and keep what lies in the box."""
        dilation, world = self.dilation, self.tiling.world_size
        every, (height, width) = dilation.every, (dilation.height, dilation.width)
        whole = messages.new_empty((messages.shape[2], height * every, width * every))
        for rank in range(world):
            for number, view in enumerate(dilation.views_of(rank, world)):
                _view(whole, dilation, view).copy_(messages[rank, number])
        grid = self.tiling.grid
        rows = (torch.arange(box.height, device=whole.device) + box.y) % grid.height
        cols = (torch.arange(box.width, device=whole.device) + box.x) % grid.width
        self.answer = whole[:, rows[:, None], cols].float()

    def hear_canvas(self, messages: Tensor) -> None:
        """Take [world_size, C, longest region] float16 for the next step."""
        grid = self.tiling.grid
        places = _places(self.tiling).to(messages.device)
        flat = messages.transpose(0, 1).flatten(1)[:, places]
        self.echo = flat.view(-1, grid.height, grid.width)


def blurred(canvas: Tensor, every: int, span: Span, step: int) -> Tensor:
    """[C, H, W], blurred by a Gaussian of 2 * every - 1 latents, at the mean and deviation that it had."""
    sigma = _SIGMA * ((1 - _LEAST_SIGMA) * raised_cosine(span, step) + _LEAST_SIGMA)
    reach = every - 1
    bell = [math.exp(-0.5 * (away / sigma) ** 2) for away in range(-reach, reach + 1)]
    kernel = canvas.new_tensor([weight / sum(bell) for weight in bell]).view(1, 1, 1, -1)
    soft = functional.pad(canvas[:, None], (reach, reach, reach, reach), mode="replicate")
    soft = functional.conv2d(functional.conv2d(soft, kernel), kernel.transpose(2, 3))[:, 0]
    # All ranks have the same canvas, so these sums are the same on all of them.
    return (soft - soft.mean()) * (canvas.std() / soft.std()) + canvas.mean()


def continued(canvas: Tensor, dilation: Dilation) -> Tensor:
    """[C, H, W], continued by its last row and column until the views divide it."""
    down = dilation.height * dilation.every - canvas.shape[1]
    right = dilation.width * dilation.every - canvas.shape[2]
    return functional.pad(canvas[None], (0, right, 0, down), mode="replicate")[0] if down or right else canvas


def _view(canvas: Tensor, dilation: Dilation, view: int) -> Tensor:
    y, x = dilation.corner(view)
    return canvas[:, y :: dilation.every, x :: dilation.every]


@lru_cache(maxsize=2)
def _places(tiling: Tiling) -> Tensor:
    """Where each latent of the canvas stands in the ranks' regions, laid out one behind the other."""
    regions = [tiling.region(rank) for rank in range(tiling.world_size)]
    places = np.empty(tiling.grid.height * tiling.grid.width, np.int64)
    for rank, region in enumerate(regions):
        places[region] = rank * tiling.longest_region + np.arange(len(region))
    return torch.from_numpy(places)
