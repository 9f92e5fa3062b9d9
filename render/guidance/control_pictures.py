"""Control pictures, cut for each window at its own place.

Giving every window the whole picture is the best-known fault of tiled renderers: each of them then draws all
of it (UltimateSDUpscale #177). Here a window sees the part that it covers, at the size of its stage.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Self

from torch import Tensor

from render.guidance.hook import GuidanceHook, StageContext, Step
from render.guidance.window_pictures import WindowPictures
from render.models.controlnet import ControlInput, EncodesControls
from render.models.controlnet_folder import network_of
from render.models.model_call import ModelCall


class ControlPictures(GuidanceHook):
    """Shows each model call its part of the control pictures."""

    def __init__(self, context: StageContext) -> None:
        self._context = context
        self._active: tuple[int, ...] = ()
        encodes = isinstance(context.adapter, EncodesControls)
        self._pictures = WindowPictures(context, self._encoded if encodes else None)

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
        control = self._context.spec.control[number]
        return ControlInput(
            network=self._network(number),
            kind=control.kind,
            picture=self._pictures.of(number, control.pixels, call.windows),
            weight=control.weight,
        )

    def _encoded(self, number: int, pixels: Tensor) -> Tensor:
        adapter = self._context.adapter
        assert isinstance(adapter, EncodesControls)
        return adapter.control_picture(self._network(number), pixels)

    def _network(self, number: int) -> int:
        return network_of(number, self._context.spec.controlnet)
