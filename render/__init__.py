"""The engine: a spec and a process group in, a tile pyramid out. Importing this package imports no torch.

from render import ParallelizedDiffusionPipeline      images on many ranks, as a diffusers pipeline
from render import MiniParallelDiffusion              the same mathematics in one readable file
from render import CrossSpatialAttention              attention across the tiles of an image
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from render.guidance.cross_spatial_attention import CrossSpatialAttention
    from render.mini import MiniParallelDiffusion
    from render.pipeline import ParallelizedDiffusionPipeline
    from render.rendered_image import RenderedImage

__all__ = ["CrossSpatialAttention", "MiniParallelDiffusion", "ParallelizedDiffusionPipeline", "RenderedImage"]

_HOMES = {
    "CrossSpatialAttention": "render.guidance.cross_spatial_attention",
    "MiniParallelDiffusion": "render.mini",
    "ParallelizedDiffusionPipeline": "render.pipeline",
    "RenderedImage": "render.rendered_image",
}


def __getattr__(name: str) -> Any:
    # Looked up when asked for, so that checking a spec does not load torch.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
