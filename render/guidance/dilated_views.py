"""The dilated branch of DemoFusion (Du et al. 2024, section 3.3): the model sees the whole canvas.

Every n-th latent of a canvas forms a view of native size, and the n * n interleaved views are n * n whole
images to the model. Its predictions for the views, put back in their places, guide the windows: the estimate
of x0 that the sampler steps on is mixed with theirs, by a strength that decays over the stage's steps. The
canvas is blurred first, less at each step, so that neighbouring views look alike and agree.

A view needs latents of all ranks, and all ranks need its prediction. Both are sent in the step's one
all-gather and are one step old. At a step, each rank sends the latents of its region for the next step's
views, and its own views' predictions for the canvas of the step before. For a stage's first step the canvas
is gathered beforehand; the second step's views see the latents of the first step too.
"""

from __future__ import annotations

import math
import time
from functools import lru_cache
from typing import Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from render.distributed import Group, all_gather_fp16
from render.finite import check_prediction
from render.guidance.hook import GuidanceHook, StageContext, Step
from render.models.adapter import WindowPlace
from render.plan.communication import sends_canvas, view_bytes
from render.plan.decay import Span, decayed_strength, raised_cosine
from render.plan.dilation import Dilation, uses_views
from render.plan.tiling import Tiling
from render.rect import Rect
from render.sampling.process import NoiseLevel
from render.sampling.samplers import to_denoised

_SIGMA, _LAST_SIGMA_SHARE = 0.8, 0.01
"""Standard deviation of the blur in latents at a stage's first step, and the share of it at the last one."""


class DilatedViews(GuidanceHook):
    """Evaluates this rank's views, and mixes the predictions of all views into the estimate of x0."""

    def __init__(self, context: StageContext, dilation: Dilation) -> None:
        self._context, self._dilation = context, dilation
        self._channels = context.adapter.info.latent_channels
        self._canvas: Tensor | None = None
        """[C, height, width] float16: the canvas at the step before (at a stage's first step, at this one),
        scaled as the network takes it."""
        self._own: Tensor | None = None
        """[max views per rank, C, h, w] float16: the predictions of this rank's views at this step."""
        self._prediction: Tensor | None = None
        """[C, area.height, area.width] float32: the predictions of all views in this rank's area."""

    @classmethod
    def create(cls, context: StageContext) -> Self | None:
        return None if context.stage.dilation is None else cls(context, context.stage.dilation)

    def restore(self, step: int, state: Tensor) -> None:
        grid = self._context.tiling.grid
        self._canvas = state.view(self._channels, grid.height, grid.width)

    def state_length(self, step: int) -> int:
        grid = self._context.tiling.grid
        sent = sends_canvas(self._context.spec, self._context.stage, step - 1)
        return self._channels * grid.height * grid.width if sent else 0

    def state(self) -> Tensor | None:
        return self._canvas

    def prime(self, step: int, x: Tensor, group: Group) -> None:
        """Gather the canvas for the views of a stage's first step."""
        first = step == self._context.stage.first_step
        if not first or self._canvas is not None or not self._used_at(step):
            return
        region = self._region_of(x, self._context.schedule.level(step))
        messages = all_gather_fp16(group, region.flatten())
        self._canvas = unpack_canvas(messages.reshape(len(messages), *region.shape), self._context.tiling)

    def before_step(self, step: Step) -> None:
        self._own = None
        if self._used_at(step.index):
            started = time.perf_counter()
            self._own = self._evaluate(step)
            step.model_seconds += time.perf_counter() - started

    def message_bytes(self, step: int) -> int:
        context = self._context
        return view_bytes(context.spec, context.stage, context.tiling, context.adapter.info, step)

    def pack(self, step: Step, sums: Tensor) -> Tensor | None:
        """Flat float16: the predictions of own views, then the own region of the canvas."""
        parts = [] if self._own is None else [self._own.flatten()]
        if self._sends_canvas_at(step.index):
            parts.append(self._region_of(step.x, step.level).flatten())
        return torch.cat(parts) if parts else None

    def unpack(self, step: Step, messages: Tensor | None) -> None:
        self._canvas = None
        if messages is None:
            return
        context, world, end = self._context, len(messages), 0
        if self._own is not None:
            end = self._own.numel()
            predictions = messages[:, :end].reshape(world, *self._own.shape)
            self._prediction = unpack_predictions(predictions, self._dilation, context.tiling, context.area)
        if self._sends_canvas_at(step.index):
            regions = messages[:, end:].reshape(world, self._channels, -1)
            self._canvas = unpack_canvas(regions, context.tiling)

    def adjust_denoised(self, step: Step, denoised: Tensor) -> Tensor:
        if self._prediction is None:
            return denoised
        strength = decayed_strength(self._context.spec.dilated, self._context.stage, step.index)
        prediction, self._prediction = self._prediction, None
        if self._context.prompt_weights is None:
            return denoised * (1.0 - strength) + prediction * strength
        # The views are evaluated under the image's own prompt, so they count where it does.
        mask = self._context.prompt_weights[0] * strength
        return denoised * (1.0 - mask) + prediction * mask

    def _used_at(self, step: int) -> bool:
        return uses_views(self._context.spec.dilated, self._context.stage, step)

    def _sends_canvas_at(self, step: int) -> bool:
        return sends_canvas(self._context.spec, self._context.stage, step)

    def _region_of(self, x: Tensor, level: NoiseLevel) -> Tensor:
        context = self._context
        return pack_region(x * level.input_scale, context.tiling, context.rank)

    def _evaluate(self, step: Step) -> Tensor:
        """[max views per rank, C, h, w] float16: the estimates of x0 of this rank's views; the rest is 0."""
        assert self._canvas is not None, "prime or unpack has received the canvas"
        dilation, tiling, canvas = self._dilation, self._context.tiling, self._canvas.float()
        slots = dilation.max_views_per_rank(tiling.world_size)
        shape = slots, len(canvas), dilation.height, dilation.width
        predictions = canvas.new_zeros(shape, dtype=torch.float16)
        own = dilation.views_of(self._context.rank, tiling.world_size)
        if len(own):
            padded = pad_canvas(blur(canvas, dilation.every, self._context.stage, step.index), dilation)
            views = torch.stack([_view(padded, dilation, view) for view in own])
            predictions[: len(own)] = self._predict(step, views).half()
        return predictions

    def _predict(self, step: Step, views: Tensor) -> Tensor:
        """Estimates of x0 [n, C, h, w] of whole views [n, C, h, w], under the image's own prompt and at the
        noise level at which the canvas was sent."""
        context, size, conditions = self._context, self._context.stage.view_batch, self._context.tiling.passes
        sent = max(step.index - 1, context.stage.first_step)
        level = context.schedule.level(sent)
        rows = [(view, condition) for view in range(len(views)) for condition in range(conditions)]
        sums = torch.zeros_like(views)
        for start in range(0, len(rows), size):
            batch = rows[start : start + size]
            filled = batch + [batch[-1]] * (size - len(batch))
            predictions = context.adapter.predict(
                views[[view for view, _ in filled]],
                context.schedule.timesteps[sent],
                context.texts[0],
                [self._whole_image()] * size,
                [condition for _, condition in filled],
                context.guidance_scale,
            )
            step.model_calls += 1
            check_prediction(predictions[: len(batch)], step.index, context.stage.index, context.spec.dtype)
            for (view, condition), prediction in zip(batch, predictions, strict=False):
                sums[view] += prediction * context.condition_weights[condition]
        return to_denoised(sums, views / level.input_scale, level, context.adapter.prediction_type)

    def _whole_image(self) -> WindowPlace:
        pixel = self._context.adapter.info.scale_factor
        height, width = self._dilation.height * pixel, self._dilation.width * pixel
        return WindowPlace(
            image_height=height, image_width=width, pixel_y=0, pixel_x=0, height=height, width=width
        )


def pack_region(x: Tensor, tiling: Tiling, rank: int) -> Tensor:
    """[C, longest region] float16: the rank's region, cut from its `x` [C, area.height, area.width]."""
    grid, area, region = tiling.grid, tiling.boxes[rank], torch.from_numpy(tiling.region(rank))
    # Modulo the canvas, since an area may cross a joined edge.
    down, right = (region // grid.width - area.y) % grid.height, (region % grid.width - area.x) % grid.width
    places = (down * area.width + right).to(x.device)
    message = x.new_zeros((len(x), tiling.longest_region), dtype=torch.float16)
    message[:, : len(region)] = x.flatten(1)[:, places].half()
    return message


def unpack_canvas(messages: Tensor, tiling: Tiling) -> Tensor:
    """[world_size, C, longest region] float16 of all ranks -> the canvas [C, height, width]."""
    places = _places(tiling).to(messages.device)
    flat = messages.transpose(0, 1).flatten(1)[:, places]
    return flat.view(-1, tiling.grid.height, tiling.grid.width)


def unpack_predictions(messages: Tensor, dilation: Dilation, tiling: Tiling, area: Rect) -> Tensor:
    """[world_size, max views per rank, C, h, w] float16 -> their part in an area, [C, area.height,
    area.width] float32."""
    every, (height, width) = dilation.every, (dilation.height, dilation.width)
    whole = messages.new_empty((messages.shape[2], height * every, width * every))
    for rank, message in enumerate(messages):
        for number, view in enumerate(dilation.views_of(rank, tiling.world_size)):
            _view(whole, dilation, view).copy_(message[number])
    grid = tiling.grid
    rows = (torch.arange(area.height, device=whole.device) + area.y) % grid.height
    cols = (torch.arange(area.width, device=whole.device) + area.x) % grid.width
    return whole[:, rows[:, None], cols].float()


def blur(canvas: Tensor, every: int, span: Span, step: int) -> Tensor:
    """[C, H, W], blurred by a Gaussian of 2 * every - 1 latents, with its mean and deviation restored."""
    sigma = _SIGMA * ((1 - _LAST_SIGMA_SHARE) * raised_cosine(span, step) + _LAST_SIGMA_SHARE)
    reach = every - 1
    taps = [math.exp(-0.5 * (away / sigma) ** 2) for away in range(-reach, reach + 1)]
    kernel = canvas.new_tensor([weight / sum(taps) for weight in taps]).view(1, 1, 1, -1)
    soft = functional.pad(canvas[:, None], (reach, reach, reach, reach), mode="replicate")
    soft = functional.conv2d(functional.conv2d(soft, kernel), kernel.transpose(2, 3))[:, 0]
    # All ranks have the same canvas, so these sums are the same on all of them.
    return (soft - soft.mean()) * (canvas.std() / soft.std()) + canvas.mean()


def pad_canvas(canvas: Tensor, dilation: Dilation) -> Tensor:
    """[C, H, W], padded with copies of its last row and column until the views divide it evenly."""
    down = dilation.height * dilation.every - canvas.shape[1]
    right = dilation.width * dilation.every - canvas.shape[2]
    return functional.pad(canvas[None], (0, right, 0, down), mode="replicate")[0] if down or right else canvas


def _view(canvas: Tensor, dilation: Dilation, view: int) -> Tensor:
    y, x = dilation.corner(view)
    return canvas[:, y :: dilation.every, x :: dilation.every]


@lru_cache(maxsize=2)
def _places(tiling: Tiling) -> Tensor:
    """The place of each latent of the canvas in the concatenation of the ranks' padded regions."""
    regions = [tiling.region(rank) for rank in range(tiling.world_size)]
    places = np.empty(tiling.grid.height * tiling.grid.width, np.int64)
    for rank, region in enumerate(regions):
        places[region] = rank * tiling.longest_region + np.arange(len(region))
    return torch.from_numpy(places)
