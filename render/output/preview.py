"""What people see while an image is rendered: the picture of the stage that was finished last.

It is made by rank 0, of latents that it hears anyway on the way to the next stage, and goes when the image
is done, like all of `work/`.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

import torch

from render.canvas import LatentRegion
from render.models.adapter import Adapter
from render.output.decode import decode_block
from render.output.encode import Pixels, encode
from render.plan.geometry import Rect
from render.plan.stages import Stage
from render.sink import UNFINISHED_PREVIEW, Sink

_LARGEST_SIDE = 512
_SHARE = 4
"""A stage is shown up to this many pixels a side, and up to a quarter of the image's own, but for the first,
which always is: one rank alone decodes, and the others wait for it."""
_DECODE_SIDE = 64
"""Of its decode tiles, in latents."""
_QUALITY = 85


class Preview:
    """Keeps the newest picture in the image's sink. Whatever goes wrong with that, the render goes on."""

    def __init__(self, sink: Sink, width: int, height: int) -> None:
        """`width` and `height` are the image's, in pixels."""
        self._sink, self._limit = sink, min(_LARGEST_SIDE, max(width, height) // _SHARE)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="preview")
        self._storing: Future[None] | None = None

    def takes(self, stage: Stage) -> bool:
        """Is this stage small enough, and the one before stored?"""
        stored = self._storing is None or self._storing.done()
        return stored and (stage.index == 0 or max(stage.width, stage.height) <= self._limit)

    def show(self, finished: LatentRegion, adapter: Adapter, device: torch.device) -> None:
        """Decode a finished stage, all of it, and store its picture beside the next steps."""
        scale, whole = adapter.info.scale_factor, finished.canvas
        picture = Rect(y=0, x=0, height=whole.height * scale, width=whole.width * scale)
        pixels = decode_block(adapter, finished, picture, _DECODE_SIDE, device)
        self._storing = self._pool.submit(self._store, pixels)

    def forget(self) -> None:
        """The image is done: take the preview away."""
        self._pool.shutdown(wait=True)
        self._sink.delete(UNFINISHED_PREVIEW)

    def _store(self, pixels: Pixels) -> None:
        self._sink.put(UNFINISHED_PREVIEW, encode(pixels, "webp", _QUALITY), "image/webp")
