"""SDXL's refiner: one text encoder, and an aesthetic score instead of the crop size.

It continues from the latents of another model, in that model's latent space, and needs no autoencoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from render.model_info import ModelInfo
from render.models.adapter import WindowPlace
from render.models.loading import load_pipeline
from render.models.sdxl import StableDiffusionXL, time_ids
from render.models.unet import TextStates

AESTHETIC_SCORE, NEGATIVE_AESTHETIC_SCORE = 6.0, 2.5
"""The stock pipelines' defaults with the prompt and without it (arXiv 2307.01952, section 2.5)."""


class StableDiffusionXLRefiner(StableDiffusionXL):
    """The second network of SDXL; `decode` and `encode` are done by the first model."""

    def _time_ids(
        self, text: TextStates, places: Sequence[WindowPlace], conditions: Sequence[int]
    ) -> list[tuple[float, ...]]:
        prompted = len(text.states) - 1
        scores = (AESTHETIC_SCORE if row == prompted else NEGATIVE_AESTHETIC_SCORE for row in conditions)
        return [(*time_ids(place, self.info)[:4], score) for place, score in zip(places, scores, strict=True)]


def load(path: Path, info: ModelInfo, device: torch.device, dtype: str) -> StableDiffusionXLRefiner:
    """Load a folder of class `StableDiffusionXLImg2ImgPipeline` without its autoencoder.

    Raises `ModelNotUsable` when it does not load.
    """
    pipeline = load_pipeline(
        "StableDiffusionXLImg2ImgPipeline",
        path,
        device,
        dtype,
        vae=None,
        feature_extractor=None,
        image_encoder=None,
        add_watermarker=False,
    )
    return StableDiffusionXLRefiner(pipeline, info, device, dtype)
