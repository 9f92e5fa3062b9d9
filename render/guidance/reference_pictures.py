"""Reference pictures: whole for every window, or cut for each at its own place.

An edit that keeps the layout at a size above the model's own needs the second: a window that sees the whole
picture draws all of it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Self

import numpy as np
import torch
from torch import Tensor

from render.guidance.hook import GuidanceHook, StageContext
from render.guidance.window_pictures import WindowPictures
from render.models.model_call import ModelCall
from render.models.references import TakesReferences
from render.spec.reference import ALIGNED, ReferencePicture


class ReferencePictures(GuidanceHook):
    """Shows each model call the reference pictures."""

    def __init__(self, context: StageContext) -> None:
        self._context = context
        self._parts = WindowPictures(context, self._encoded)
        self._whole: dict[int, Tensor] = {}

    @classmethod
    def create(cls, context: StageContext) -> Self | None:
        # A model that sees them through its prompts alone has them there.
        takes = context.spec.reference and isinstance(context.adapter, TakesReferences)
        return cls(context) if takes else None

    def adjust_call(self, call: ModelCall) -> ModelCall:
        pictures = enumerate(self._context.spec.reference)
        return replace(call, references=[self._latents(*each, call) for each in pictures])

    def _latents(self, number: int, picture: ReferencePicture, call: ModelCall) -> Tensor:
        """[B, C, h, w] latents of what the windows of a call see of a picture."""
        if self._context.spec.reference_mode == ALIGNED:
            return self._parts.of(number, picture.pixels, call.windows)
        if number not in self._whole:
            adapter = self._context.adapter
            assert isinstance(adapter, TakesReferences), "the plan refuses pictures for other models"
            scaled = picture.scaled(*adapter.reference_size(picture.width, picture.height))
            pixels = torch.from_numpy(np.array(scaled)).permute(2, 0, 1)[None]
            self._whole[number] = self._encoded(number, pixels.float() / 255)
        return self._whole[number].expand(len(call.latents), -1, -1, -1)

    def _encoded(self, number: int, pixels: Tensor) -> Tensor:
        return self._context.adapter.encode(pixels)
