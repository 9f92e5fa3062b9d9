"""What an inpainting model is shown beside the latents: the mask, and what is kept.

Each window sees its own part, at the size of its stage. `KeptPixels` holds what is kept in place, as with any
other model; this one also knows what it paints beside.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Self

import torch
from torch import Tensor

from render.guidance.hook import GuidanceHook, StageContext
from render.guidance.window_pictures import WindowPictures
from render.models.inpainting import TakesMasks
from render.models.model_call import ModelCall
from render.spec.source_image import SourceImage

_HALF = 0.5
"""From this weight on a pixel is painted anew, as in diffusers' pipelines."""


class MaskedPicture(GuidanceHook):
    """Adds the channels of an inpainting model to each call."""

    def __init__(self, context: StageContext, source: SourceImage, adapter: TakesMasks) -> None:
        # A network is shown the colors in 8 bits.
        self._source, self._adapter = replace(source, depth=8), adapter
        self._parts = WindowPictures(context, self._channels)

    @classmethod
    def create(cls, context: StageContext) -> Self | None:
        source, adapter = context.spec.kept, context.adapter
        if source is None or not adapter.info.takes_mask:
            return None
        assert isinstance(adapter, TakesMasks), "`takes_mask` says so"
        return cls(context, source, adapter)

    def adjust_call(self, call: ModelCall) -> ModelCall:
        channels = self._parts.of(0, self._source.kept, call.windows).to(call.latents)
        return replace(call, latents=torch.cat([call.latents, channels], dim=1))

    def _channels(self, number: int, kept: Tensor) -> Tensor:
        colors, weight = kept[:, :3], kept[:, 3:]
        return self._adapter.masked_picture(colors, (1.0 - weight >= _HALF).float())
