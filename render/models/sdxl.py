"""SDXL: one or two text encoders, pooled text, and time ids with a window's position."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from render.model_info import ModelInfo
from render.models.adapter import WindowPlace
from render.models.clip_prompts import SDXL_STATES, encode_long, is_plain, pooled
from render.models.loading import load_pipeline
from render.models.unet import TextStates, UNetAdapter, find_trained_attention


class StableDiffusionXL(UNetAdapter):
    """An SDXL model, also one with only the second text encoder (like the built-in model)."""

    @torch.no_grad()
    def encode_prompt(self, prompt: str, negative_prompt: str, guided: bool) -> TextStates:
        """Text states, ready for `predict`; computed once per image.

        An empty negative prompt is passed as None, so that `force_zeros_for_empty_prompt` works as in
        diffusers.
        """
        prompts = [negative_prompt, prompt] if guided else [prompt]
        if not is_plain(self._pipeline, prompts):
            return self._encode_long(prompts)
        conditional, unconditional, own, other = self._pipeline.encode_prompt(
            prompt,
            device=self._device,
            do_classifier_free_guidance=guided,
            negative_prompt=negative_prompt or None,
        )
        if not guided:
            return TextStates(states=conditional, pooled=own)
        return TextStates(states=torch.cat([unconditional, conditional]), pooled=torch.cat([other, own]))

    def _encode_long(self, prompts: list[str]) -> TextStates:
        states = encode_long(self._pipeline, prompts, SDXL_STATES)
        added = pooled(self._pipeline, prompts)
        if not prompts[0] and self._pipeline.config.force_zeros_for_empty_prompt:
            states[0], added[0] = 0.0, 0.0
        return TextStates(states=states, pooled=added)

    def _added(
        self, text: TextStates, places: Sequence[WindowPlace], conditions: Sequence[int]
    ) -> dict[str, Tensor]:
        # Always float32: half precision would round the coordinates of a large image.
        ids = torch.tensor(self._time_ids(text, places, conditions), dtype=torch.float32, device=self._device)
        assert text.pooled is not None
        return {"text_embeds": text.pooled[list(conditions)], "time_ids": ids}

    def _time_ids(
        self, text: TextStates, places: Sequence[WindowPlace], conditions: Sequence[int]
    ) -> list[tuple[float, ...]]:
        """The time ids of each evaluation."""
        return [time_ids(place, self.info) for place in places]


def time_ids(place: WindowPlace, info: ModelInfo) -> tuple[float, ...]:
    """SDXL's micro-conditioning (arXiv 2307.01952, section 2.2): image size, crop corner, crop size.

    A model with a `zoom_limit` was trained on images whose short side is at most that many native sizes. For
    a larger image the image size and the corner are scaled down to the limit together, so that the window
    keeps its relative position. The crop size stays as in training.
    """
    short_side = min(place.image_height, place.image_width)
    shrink = 1.0
    if info.zoom_limit is not None:
        shrink = min(1.0, info.zoom_limit * info.native_size / short_side)
    size_and_corner = (place.image_height, place.image_width, place.pixel_y, place.pixel_x)
    return (*(value * shrink for value in size_and_corner), float(place.height), float(place.width))


def load(path: Path, info: ModelInfo, device: torch.device, dtype: str) -> StableDiffusionXL:
    """Load a folder of class `StableDiffusionXLPipeline`; raises `ModelNotUsable` when it does not load."""
    pipeline = load_pipeline(
        "StableDiffusionXLPipeline",
        path,
        device,
        dtype,
        feature_extractor=None,
        image_encoder=None,
        add_watermarker=False,
    )
    # SDXL's own autoencoder overflows in float16; `force_upcast` in its config marks that.
    if dtype == "float16" and pipeline.vae.config.force_upcast:
        pipeline.vae.to(torch.float32)
    return StableDiffusionXL(pipeline, info, device, dtype, find_trained_attention(path, info, device, dtype))
