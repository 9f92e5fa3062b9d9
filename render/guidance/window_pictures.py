"""Pictures that cover the canvas, cut for windows at their places and kept for the next step."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from render.guidance.hook import StageContext
from render.guidance.kept_pixels import ReadPixels, read_pixels
from render.plan.topology import topology_of
from render.rect import Rect

_REMEMBERED = 256 * 2**20
"""Bytes that are kept. A field of 1024 pixels has 3 MiB, its latents 1."""


class WindowPictures:
    """The parts of pictures that windows see, at the size of a stage."""

    def __init__(self, context: StageContext, prepare: Callable[[int, Tensor], Tensor] | None = None) -> None:
        """`prepare` makes what is kept of [1, bands, H, W] pixels in [0, 1] of a picture of this number; by
        default they are kept as they are."""
        self._pixel = context.adapter.info.scale_factor
        self._canvas = topology_of(context.stage.grid)
        self._prepare = prepare
        self._kept: OrderedDict[tuple[int, Rect], Tensor] = OrderedDict()

    def of(self, number: int, read: ReadPixels, windows: Sequence[Rect]) -> Tensor:
        """[B, bands, H, W] in [0, 1] of the windows' parts of the picture that `read` reads, or what
        `prepare` makes of them."""
        found = torch.cat([self._part(number, read, window) for window in windows])
        return found.float() / 255 if self._prepare is None else found

    def _part(self, number: int, read: ReadPixels, window: Rect) -> Tensor:
        key = number, window
        if key not in self._kept:
            found = read_pixels(read, self._canvas, self._pixel, window)
            if self._prepare is not None:
                # One window at a time: its bits must not depend on what else is in the call.
                found = self._prepare(number, found.float() / 255).cpu()
            self._kept[key] = found
            if len(self._kept) > max(1, _REMEMBERED // found.nbytes):
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]
