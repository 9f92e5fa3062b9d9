"""The preview of an image that is being rendered: the stage that was finished last.

Rank 0 makes it from latents that it receives anyway on the way to the next stage. It is deleted when the
image is done, like all of `work/`.
"""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor

import torch

from render.canvas import LatentRegion
from render.distributed import SingleRankGroup
from render.models.adapter import Adapter
from render.output.decode import block_decoder
from render.output.encode import encode
from render.output.pixels import Pixels
from render.plan.decode_layout import PREVIEW_DECODE_TILE
from render.plan.geometry import Rect
from render.plan.plan import StagePlan
from render.plan.tile_grid import even_grid, tile_side
from render.sink import UNFINISHED_PREVIEW, Sink

_QUALITY = 85


class Preview:
    """Keeps the newest preview in the image's sink. A sink that refuses it does not stop the render."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="preview")
        self._storing: Future[None] | None = None

    def wants(self, stage: StagePlan) -> bool:
        """Whether the plan shows this stage and the preview before it is stored."""
        return stage.has_preview and (self._storing is None or self._storing.done())

    def show(self, finished: LatentRegion, adapter: Adapter, device: torch.device) -> None:
        """Decode a finished stage, the whole canvas, and store its pixels while the render goes on."""
        scale, canvas = adapter.info.scale_factor, finished.canvas
        whole = Rect(y=0, x=0, height=canvas.height * scale, width=canvas.width * scale)
        side = tile_side(scale) if adapter.info.layered_autoencoder else PREVIEW_DECODE_TILE
        grid = even_grid(canvas, side, 1)
        with block_decoder(adapter, finished, grid, SingleRankGroup(), device) as decode_block:
            pixels = decode_block(whole)
        self._storing = self._pool.submit(self._store, pixels)

    def close(self) -> None:
        """Wait for the preview that is being stored, so that none appears later."""
        self._pool.shutdown(wait=True)

    def delete(self) -> None:
        """Delete the preview of an image that is done."""
        self.close()
        self._sink.delete(UNFINISHED_PREVIEW)

    def _store(self, pixels: Pixels) -> None:
        self._sink.put(UNFINISHED_PREVIEW, encode(pixels, "webp", _QUALITY), "image/webp")
