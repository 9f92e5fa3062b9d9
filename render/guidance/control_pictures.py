"""Control pictures, cut for each window at its own place.

Giving every window the whole picture is the best-known fault of tiled renderers: each of them then draws all
of it (UltimateSDUpscale #177). Here a window sees the part that it covers, at the size of its stage.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from typing import Self

import torch
from torch import Tensor

from render.guidance.hook import GuidanceHook, StageContext, Step
from render.guidance.kept_pixels import read_pixels
from render.models.controlnet import ControlInput
from render.models.controlnet_folder import UNION_MODES, network_of
from render.models.model_call import ModelCall
from render.plan.topology import topology_of
from render.rect import Rect
from render.spec.control import Control

_REMEMBERED = 64
"""Cut windows that are kept for the next step, each of 3 MiB for a field of 1024 pixels."""


class ControlPictures(GuidanceHook):
    """Shows each model call its part of the control pictures."""

    def __init__(self, context: StageContext) -> None:
        self._context = context
        self._canvas = topology_of(context.stage.grid)
        self._active: tuple[int, ...] = ()
        self._cut: OrderedDict[tuple[int, Rect], Tensor] = OrderedDict()

    @classmethod
    def create(cls, context: StageContext) -> Self | None:
        return cls(context) if context.spec.control else None

    def before_step(self, step: Step) -> None:
        steps = len(self._context.schedule.timesteps)
        controls = enumerate(self._context.spec.control)
        self._active = tuple(number for number, each in controls if each.counts_at(step.index, steps))

    def adjust_call(self, call: ModelCall) -> ModelCall:
        return replace(call, controls=[self._input(number, call) for number in self._active])

    def _input(self, number: int, call: ModelCall) -> ControlInput:
        spec = self._context.spec
        control = spec.control[number]
        pixels = torch.stack([self._pixels(number, control, window) for window in call.windows])
        return ControlInput(
            network=network_of(number, spec.controlnet),
            mode=UNION_MODES.get(control.kind, 0),
            pixels=pixels.float() / 255,
            weight=control.weight,
        )

    def _pixels(self, number: int, control: Control, window: Rect) -> Tensor:
        """[3, H, W] bytes of a window's part of a picture."""
        key = number, window
        if key not in self._cut:
            pixel = self._context.adapter.info.scale_factor
            self._cut[key] = read_pixels(control.pixels, self._canvas, pixel, window)[0]
            if len(self._cut) > _REMEMBERED:
                self._cut.popitem(last=False)
        self._cut.move_to_end(key)
        return self._cut[key]
